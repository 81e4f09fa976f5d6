"""Promises about unknown keywords: the error says which one may be meant, whichever library taught the word."""

from __future__ import annotations

import attrs
import pytest

import cqrs_sync as cqrs
from cqrs_sync import keywords


@attrs.frozen
class Ask(cqrs.Query[str]):
    pass


@attrs.frozen
class Asked(cqrs.DomainEvent, name="asked"):
    pass


def answer(request: Ask) -> str:
    return "yes"


def note(event: Asked) -> None:
    pass


@pytest.fixture
def mediator():
    with cqrs.bootstrap() as mediator:
        yield mediator


@pytest.mark.parametrize(
    ("keyword", "meant"),
    [
        ("max_workers", "threads="),
        ("workers", "threads="),
        ("pool_size", "threads="),
        ("failures", "failure_policy="),
        ("on_error", "failure_policy="),
        ("max_retries", "retry="),
        ("middlewares", "middleware="),
        ("message_broker", "broker="),
        ("di_container", "container="),
        ("commands_mapper", "requests="),
        ("service_name", "source="),
        ("brokr", "broker="),
        ("fastpath", "fast_path="),
    ],
)
def test_bootstrap_says_which_option_may_be_meant(keyword, meant):
    with pytest.raises(TypeError) as caught:
        cqrs.bootstrap(**{keyword: 4})

    assert f"bootstrap() got an unexpected keyword argument {keyword!r}: did you mean {meant}?" == str(caught.value)


@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ("once", r"Mediator\.send\(\) got an unexpected keyword argument 'once': did you mean idempotency_key=\?"),
        ("key", r"did you mean idempotency_key=\?"),
        ("tenant", r"did you mean scope=\?"),
        ("deadline", r"did you mean timeout=\?"),
        ("timout", r"did you mean timeout=\?"),
        ("correlation_id", r"message_attributes\(correlationid=\.\.\.\)"),
        ("colour", "the keywords are timeout, idempotency_key, scope"),
    ],
)
def test_send_says_which_option_may_be_meant(mediator, keyword, words):
    with pytest.raises(TypeError, match=words):
        mediator.send(Ask(), **{keyword: 1})


def test_publish_says_which_option_may_be_meant(mediator):
    with pytest.raises(TypeError, match=r"Mediator\.publish\(\) .* 'ttl': did you mean timeout=\?"):
        mediator.publish(Asked(), ttl=5)


@pytest.mark.parametrize(
    ("bind", "words"),
    [
        (lambda requests, _: requests.bind(answer, retry=3), r"RequestMap\.bind\(\) .*RetryMiddleware"),
        (lambda requests, _: requests.bind(answer, colour=3), "'colour': it takes no keywords"),
        (lambda _, events: events.bind(note, inline=True), r"write events\.inline\(\.\.\.\)"),
        (lambda _, events: events.bind(note, durable=True), r'write events\.durable\("name", \.\.\.\)'),
        (lambda _, events: events.bind(when="inline"), r"did you mean phase=\?"),
        (lambda _, events: events.bind(note, retries=3), r"did you mean retry=\?"),
        (lambda _, events: events.inline(note, retry=3), r'write events\.durable\("name", retry=\.\.\.\)'),
        (
            lambda _, events: events.durable("note", note, max_retries=3),
            r"EventMap\.durable\(\) .*did you mean retry=\?",
        ),
        (lambda _, events: events.durable("note", note, phase=1), r"write events\.bind\(\.\.\., phase=\.\.\.\)"),
    ],
)
def test_the_maps_say_which_option_may_be_meant(bind, words):
    requests, events = cqrs.RequestMap(), cqrs.EventMap()
    with pytest.raises(TypeError, match=words):
        bind(requests, events)

    assert ([], []) == (list(requests), list(events))


def test_the_bootstraps_of_the_integrations_do_so_as_well():
    pytest.importorskip("django")
    pytest.importorskip("sqlalchemy")
    from cqrs_sync.integrations import django, sqlalchemy  # noqa: PLC0415 -- both are extras

    for bootstrap, keyword, meant in [(django.bootstrap, "alias", "using="), (sqlalchemy.bootstrap, "db", "engine=")]:
        with pytest.raises(TypeError, match=f"{keyword!r}: did you mean {meant}"):
            bootstrap(**{keyword: "default"})


@pytest.mark.parametrize(
    ("guess", "meant"),
    [
        ("Retry", "RetryPolicy or TemporaryError"),
        ("RetryLater", "TemporaryError"),
        ("Fatal", "PermanentError"),
        ("EventHandlersFailed", "EventsFailed"),
        ("RequestMediator", "Mediator"),
        ("Closed", "ClosedError"),
        ("Threadpool", "ThreadPool"),
        ("RetryPolicys", "RetryPolicy or RetryPolicies"),
    ],
)
def test_the_error_for_an_unknown_name_of_the_package_names_the_one_that_is_meant(guess, meant):
    with pytest.raises(AttributeError, match=rf"has no attribute '{guess}': did you mean {meant}\?"):
        getattr(cqrs, guess)


@pytest.mark.parametrize("guess", ["Zebra", "__wrapped__"])
def test_the_error_for_a_name_like_no_other_names_none(guess):
    with pytest.raises(AttributeError, match=rf"has no attribute '{guess}'$"):
        getattr(cqrs, guess)


def test_every_name_that_an_error_proposes_exists():
    assert {name for names in keywords._NAMES.values() for name in names.split()} <= set(cqrs.__all__)


def test_the_error_for_a_class_where_an_instance_belongs_says_how_to_write_it():
    for keyword, wrong in (("failure_policy", cqrs.LogFailures), ("threads", cqrs.SameThread)):
        with pytest.raises(cqrs.ConfigurationError, match=rf"{keyword} must be .*: write {wrong.__name__}\(\)"):
            cqrs.bootstrap(**{keyword: wrong})
