"""Promises about the code itself: how modules, names and errors look."""

from __future__ import annotations

import importlib
import inspect
import pickle
import re
from typing import Any

import pytest

import cqrs_sync
from cqrs_sync import errors
from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import BrokerUnavailable, CqrsError, EventsFailed, Failure, MessageRejected, PublishFailed
from tests.source import (
    CORE,
    MODULES,
    circles,
    layers,
    lonely_protocols,
    metaphors,
    name_of,
    pages,
    private_reach,
    prose,
    repeated_classes,
    roots,
)

ERRORS = [error for error in vars(errors).values() if inspect.isclass(error) and issubclass(error, Exception)]


#: Ideas that take more lines than most, and why.
LONGER_THAN_MOST = {
    "cqrs_sync.testing.contracts.outbox": "one class with a method for each promise of the largest socket",
}
#: What is left to do, see `python -m tests.source lines`. Nothing is added here, and each is taken out when it is done.
LEFT_CLASSES = {"Delivery", "Receipt"}
LEFT_PROSE, LEFT_PAGES, LEFT_PRIVATE = 0, 1, 47


def test_modules_hold_one_idea():
    """A module is as long as its idea, and few ideas take more than 600 lines."""
    long = {name_of(module) for module in MODULES if len(module.read_text().splitlines()) > 600}

    assert set(LONGER_THAN_MOST) == long


def test_there_are_few_files_and_layers():
    """A newcomer can look at the package, its root and its layers, and remember them."""
    assert len(MODULES) <= 155
    assert len(roots()) <= 24
    assert len(layers()) <= 16


def test_no_modules_import_each_other():
    """Each module can be understood after those that it imports."""
    pytest.importorskip("grimp")

    assert [] == circles()


def test_a_class_name_stands_for_one_thing():
    """A name in a stack trace leads to one class."""
    assert repeated_classes().keys() <= LEFT_CLASSES, repeated_classes()


def test_a_protocol_has_several_implementations():
    """Outside of the socket modules, a Protocol with one implementation hides a back pointer."""
    assert {} == lonely_protocols()


def test_names_are_terms_of_the_field():
    """No module and no class has a metaphor for a name."""
    assert [] == metaphors()


def test_prose_is_plain_english():
    """No docstring, comment, text of the package or page of the documentation has a word of `tests.source.PROSE`."""
    assert len(list(prose())) <= LEFT_PROSE
    assert len(list(pages())) <= LEFT_PAGES


def test_tests_use_public_names():
    """Private names of the package are for what a test cannot see otherwise."""
    assert sum(map(len, private_reach().values())) <= LEFT_PRIVATE


@pytest.mark.parametrize("module", CORE)
def test_public_names_are_listed_in_order(module):
    """`__all__` is sorted, names nothing twice and nothing that is not there."""
    imported = importlib.import_module(module)
    names = getattr(imported, "__all__", [])

    if module != "cqrs_sync":
        assert sorted(set(names)) == list(names)
    assert [name for name in names if not hasattr(imported, name)] == []


def test_the_names_of_the_root_stand_in_order_under_headings():
    """Each name once."""
    listed = inspect.getsource(cqrs_sync).partition("__all__ = [")[2].partition("]")[0]
    groups = [re.findall(r'"(\w+)"', group) for group in listed.split("# ")[1:]]

    assert len(groups) == 7
    assert groups == [sorted(set(group), key=str.lower) for group in groups]
    assert sorted(name for group in groups for name in group) == sorted(set(cqrs_sync.__all__))


def test_every_public_name_is_listed():
    """What `cqrs_sync` shows is in its `__all__`, and every error is."""
    names = [name for name in dir(cqrs_sync) if not name.startswith("_")]
    shown = {name for name in names if not inspect.ismodule(getattr(cqrs_sync, name))}

    assert shown - {"annotations"} == set(cqrs_sync.__all__)
    assert {error.__name__ for error in ERRORS} - shown == set()


# Errors


def instance_of(error: type[Exception]) -> Exception:
    """Make one as the library does."""
    if error is PublishFailed:
        outgoing = OutgoingMessage(id="1", topic="meetings", type="meeting.joined", body=b"{}", key=None, attributes={})
        return PublishFailed([(outgoing, MessageRejected("too large")), (outgoing, BrokerUnavailable("gone"))])
    if error is EventsFailed:
        cause = ValueError("no such meeting")
        return EventsFailed("1 of 2", [cause], {"response": 1}, [Failure("Handler", "event", cause)])
    return error("what happened, and the way out")


def facts(error: Exception) -> tuple[Any, ...]:
    """Tell what must survive; exceptions compare by identity, so those inside are told by their repr."""
    attributes = {name: repr(value) for name, value in vars(error).items()}
    attributes |= {name: repr(getattr(error, name)) for name in ("failures", "exceptions") if hasattr(error, name)}
    return type(error), str(error), getattr(error, "retryable", None), attributes


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_is_ours(error):
    """`except CqrsError` catches whatever this library raises."""
    assert issubclass(error, CqrsError)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_error_survives_pickling(error, protocol):
    """An error arrives whole in another process: Celery and multiprocessing send them."""
    before = instance_of(error)
    before.add_note("seen in a worker")
    after = pickle.loads(pickle.dumps(before, protocol))  # noqa: S301 -- we have just written it

    assert facts(before) == facts(after)


def test_the_tree_of_errors_is_drawn_as_it_is():
    """The docstring of `errors` shows every error below its base, and none that is not there."""
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in re.findall(r"^[│├└─ ]*[A-Z]\w+.*$", inspect.getdoc(errors).split("```")[1], re.MULTILINE):
        branch, name = re.match(r"([│├└─ ]*)(\w+)", line).groups()
        path[len(branch) // 4 :] = [name]
        drawn[name] = path[-2] if len(path) > 1 else ""

    assert {error.__name__: _parent_of(error) for error in ERRORS} == drawn


def _parent_of(error: type[Exception]) -> str:
    return next((base.__name__ for base in error.__mro__[1:] if issubclass(base, CqrsError)), "")
