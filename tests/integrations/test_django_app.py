"""The Django app: wired by one call, operated by manage.py."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.consumer import Consumer
from cqrs_sync.memory import MemoryBroker
from cqrs_sync.outbox import DeadLetterSelection, OutboxEntry, Outcome
from cqrs_sync.sql.outbox import OutboxStatements
from cqrs_sync.testing.contracts.broker import message
from tests.consumer.conftest import Joined
from tests.waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.usefixtures("django_databases")]


@frozen
class Sell(cqrs.Command[None]):
    number: int
    fails: bool = False


@frozen
class Sold(cqrs.NotificationEvent, topic="sales", name="django.sold"):
    number: int


@frozen
class Counted(cqrs.NotificationEvent, topic="counts", name="django.counted"):
    number: int


def sell(request: Sell) -> None:
    cqrs.raise_event(Sold(request.number))
    if request.fails:
        raise ValueError("not sold")


@pytest.fixture
def requests():
    requests = cqrs.RequestMap()
    requests.bind(sell)
    return requests


@pytest.fixture
def make(django_emptied, requests):
    """Make a mediator as a project does."""
    from cqrs_sync.integrations.django import bootstrap  # noqa: PLC0415 -- as above

    made = []

    def make(**options):
        mediator = bootstrap(requests, source="tests", **{"threads": 2, "broker": MemoryBroker(), **options})
        made.append(mediator)
        return mediator

    yield make
    for mediator in made:
        mediator.close(5)


def numbers_in(broker):
    return [json.loads(each.body)["number"] for each in broker.published]


# Wiring


@pytest.mark.parametrize("alias", ["postgresql", "mariadb", "sqlite"])
def test_one_call_wires_transactions_and_outbox(make, alias):
    """
    This process publishes what a command commits, and not what it rolls back.
    """
    from django.db import transaction  # noqa: PLC0415 -- as above

    broker = MemoryBroker()
    mediator = make(using=alias, broker=broker)
    with transaction.atomic(using=alias):
        mediator.send(Sell(1))
        with pytest.raises(ValueError, match="not sold"):
            mediator.send(Sell(2, fails=True))
        assert [] == numbers_in(broker)
    eventually(lambda: mediator.relay.outbox.backlog().waiting == 0)

    assert [1] == numbers_in(broker)


@pytest.mark.parametrize("alias", ["postgresql", "mariadb", "sqlite"])
@pytest.mark.parametrize("opens", [True, False], ids=["the-inbox-opens", "a-middleware-opens"])
def test_a_repeated_message_has_its_effect_once(make, alias, opens):
    """
    The events of its handler are kept in the same transaction, and published after it.
    """
    from django.db import connections  # noqa: PLC0415 -- as above

    attributes = {"specversion": "1.0", "source": "/shop", "id": "1", "type": "django.sold"}
    incoming = cqrs.IncomingMessage(topic="sales", body=b'{"number": 7}', attributes=attributes)
    broker, events, failing = MemoryBroker(), cqrs.EventMap(), [True]

    @events.bind(name="count")
    def count(event: Sold) -> None:
        assert connections[alias].in_atomic_block
        cqrs.raise_event(Counted(event.number))
        if failing:
            failing.clear()
            raise ValueError("not yet")

    atomic = (cqrs.Command,) if opens else (cqrs.Command, cqrs.Event)
    mediator = make(using=alias, events=events, broker=broker, atomic=atomic)
    with pytest.raises(cqrs.EventsFailed):
        mediator.receive(incoming)
    for _ in range(2):
        mediator.receive(incoming)
    eventually(lambda: mediator.relay.outbox.backlog().waiting == 0)

    assert [7] == numbers_in(broker)


def test_without_an_outbox_events_leave_after_the_commit(make):
    """
    As long as this process lives.
    """
    broker = MemoryBroker()
    mediator = make(using="sqlite", outbox=None, broker=broker)
    mediator.send(Sell(1))

    assert (None, [1]) == (mediator.relay, numbers_in(broker))


def test_the_error_about_a_missing_transaction_says_how_django_opens_one(make):
    """
    An event handler has none by default.
    """
    mediator = make(using="sqlite", atomic=())
    with pytest.raises(cqrs.NotInTransaction, match=r"transaction\.atomic\(\).*bootstrap\(atomic=\(Command, Event\)\)"):
        mediator.send(Sell(1))


def test_the_error_names_the_other_database_of_a_django_transaction(make):
    """
    And says what to write.
    """
    from django.db import transaction  # noqa: PLC0415 -- as above

    mediator = make(using="sqlite", atomic=())
    with (
        transaction.atomic(using="postgresql"),
        pytest.raises(
            cqrs.NotInTransaction, match=r"on another database, 'postgresql', DjangoOutbox\(using='postgresql'\)"
        ),
    ):
        mediator.send(Sell(1))


def test_an_outbox_in_another_database_than_the_transactions_is_refused(requests):
    """
    When the mediator is made.
    """
    from django.core.exceptions import ImproperlyConfigured  # noqa: PLC0415 -- as above

    from cqrs_sync.integrations.django import DjangoOutbox, bootstrap  # noqa: PLC0415 -- as above

    with pytest.raises(ImproperlyConfigured, match="give both the same database"):
        bootstrap(requests, source="tests", using="sqlite", outbox=DjangoOutbox("mariadb"))


def test_an_inbox_in_another_database_than_the_transactions_is_refused(requests):
    """
    When the mediator is made.
    """
    from django.core.exceptions import ImproperlyConfigured  # noqa: PLC0415 -- as above

    from cqrs_sync.integrations.django import DjangoInbox, bootstrap  # noqa: PLC0415 -- as above

    with pytest.raises(ImproperlyConfigured, match=r"the inbox is in .*'mariadb'.*give both the same database"):
        bootstrap(requests, using="sqlite", inbox=DjangoInbox("mariadb"))


def test_mediators_may_share_a_chain(make):
    """
    Each adds its own transactions to a copy of it.
    """
    from django.db import connections  # noqa: PLC0415 -- as above
    from django.test.utils import CaptureQueriesContext  # noqa: PLC0415 -- as above

    opened = []

    def look(message, call_next):
        with CaptureQueriesContext(connections["sqlite"]) as sqlite:
            response = call_next(message)
        opened.append(any("INSERT INTO" in query["sql"] for query in sqlite))
        return response

    chain = cqrs.MiddlewareChain().add(look, cqrs.Command)
    for alias in ("sqlite", "postgresql"):
        make(using=alias, middleware=chain).send(Sell(1))

    assert [True, False] == opened
    assert [look] == chain.of(Sell)


@pytest.mark.parametrize("alias", ["postgresql", "mariadb", "sqlite"])
def test_threads_of_the_pool_close_old_connections(django_emptied, alias):
    """
    After each handler, as at the end of a request.
    """
    from django.db import connections  # noqa: PLC0415 -- as above

    from cqrs_sync.integrations.django import bootstrap  # noqa: PLC0415 -- as above

    used = []

    def ask(event):
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")
        used.append((threading.current_thread(), connections[alias]))

    events = cqrs.EventMap()
    events.bind(Sold, ask)
    requests = cqrs.RequestMap()
    requests.bind(sell)
    with bootstrap(
        requests, events, source="tests", using=alias, outbox=None, broker=MemoryBroker(), threads=2
    ) as mediator:
        # With a deadline all handlers run on the pool.
        mediator.send(Sell(1), timeout=20)
        ((thread, wrapper),) = used

        assert thread is not threading.current_thread()
        assert eventually(lambda: wrapper.connection is None)


@pytest.mark.parametrize("alias", ["postgresql", "mariadb", "sqlite"])
def test_a_failed_write_to_the_outbox_commits_nothing(make, alias, monkeypatch):
    """
    Even if the application catches the error inside its transaction.
    """
    from django.db import DatabaseError, connections, transaction  # noqa: PLC0415 -- as above

    mediator = make(using=alias, atomic=())
    monkeypatch.setattr(
        OutboxStatements, "insert_deliveries", lambda _, rows: "INSERT INTO cqrs_delivery (nothing) VALUES (%s)" * rows
    )
    with transaction.atomic(using=alias):
        with pytest.raises((DatabaseError, cqrs.OutboxNotInstalled)):
            mediator.send(Sell(1))
        assert connections[alias].needs_rollback
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM cqrs_message")
        assert [(0,)] == list(cursor.fetchall())


def test_errors_about_missing_tables_name_the_way_out(make):
    """
    For senders and for operators.
    """
    from django.db import connections  # noqa: PLC0415 -- as above

    mediator = make(using="sqlite")
    with connections["sqlite"].cursor() as cursor:
        cursor.execute("ALTER TABLE cqrs_delivery RENAME TO elsewhere")
    try:
        with pytest.raises(cqrs.OutboxNotInstalled, match=r"manage\.py migrate cqrs_sync --database sqlite"):
            mediator.send(Sell(1))
        with pytest.raises(cqrs.OutboxNotInstalled, match=r"manage\.py migrate"):
            mediator.relay.outbox.claim(1, 30)
    finally:
        with connections["sqlite"].cursor() as cursor:
            cursor.execute("ALTER TABLE elsewhere RENAME TO cqrs_delivery")


def test_a_listener_is_notified_of_commits_of_other_processes():
    """
    On PostgreSQL, at the commit, and not after a rollback.
    """
    from django.db import transaction  # noqa: PLC0415 -- as above

    from cqrs_sync.integrations.django import DjangoOutbox  # noqa: PLC0415 -- as above

    outbox = DjangoOutbox("postgresql", notify=True)
    listener = outbox.listener()
    try:
        with transaction.atomic(using="postgresql"):
            outbox.add([OutboxEntry(message("orders"), publish=True)])
            assert not listener.wait(0.1)
        assert listener.wait(10)
    finally:
        listener.close()
    assert DjangoOutbox("mariadb").listener() is None
    outbox.settle([Outcome.failed(each, "x", after=None) for each in outbox.claim(10, 30)])
    outbox.discard(DeadLetterSelection())


def test_a_listener_uses_no_pool(django_databases, monkeypatch):
    """
    It would return to the pool still listening. No pool is installed here: if asked for one, Django refuses.
    """
    from django.db import connections  # noqa: PLC0415 -- as above

    from cqrs_sync.integrations.django import DjangoOutbox  # noqa: PLC0415 -- as above

    monkeypatch.setitem(connections.settings["postgresql"], "OPTIONS", {"pool": True})
    listener = DjangoOutbox("postgresql").listener()
    try:
        assert not listener.wait(0.01)
    finally:
        listener.close()


def notifies_of_psycopg_3_1(self):
    """It has no timeout."""


@pytest.mark.parametrize("notifies", [notifies_of_psycopg_3_1, []])
def test_the_outbox_does_not_listen_with_a_driver_without_a_timeout(django_databases, monkeypatch, notifies):
    """
    Psycopg 3.1 and psycopg2 have none, psycopg 3.2 has one. Without a listener relays poll.
    """
    import psycopg  # noqa: PLC0415 -- here only

    from cqrs_sync.integrations.django import DjangoOutbox  # noqa: PLC0415 -- as above

    DjangoOutbox("postgresql").listener().close()
    monkeypatch.setattr(psycopg.Connection, "notifies", notifies)

    assert None is DjangoOutbox("postgresql").listener()


def test_an_alias_that_is_not_there_is_one_error_with_the_aliases_that_are(make):
    """
    Without those of Django's own look-up before it.
    """
    mediator = make(using="nope", fast_path=False)
    with pytest.raises(
        cqrs.ConfigurationError, match="'nope', which `using` names, is not in DATABASES; it has "
    ) as failed:
        mediator.send(Sell(1))

    assert (None, True) == (failed.value.__cause__, failed.value.__suppress_context__)


# Commands


@pytest.fixture
def manage(capfd):
    """Run `manage.py` with these arguments in this process; return its status and output."""
    from django.core.management import load_command_class  # noqa: PLC0415 -- as above

    def manage(name, *arguments):
        capfd.readouterr()
        command = load_command_class("cqrs_sync.integrations.django", name)
        with pytest.raises(SystemExit) as left:
            command.run_from_argv(["manage.py", name, *arguments])
        return left.value.code, capfd.readouterr()

    return manage


def test_manage_py_has_the_commands_of_the_command_line(make, django_mediator, manage):
    """
    With the mediator of the settings.
    """
    broker = MemoryBroker()
    mediator = make(using="sqlite", fast_path=False, broker=broker)
    django_mediator(mediator)
    mediator.send(Sell(1))

    code, printed = manage("cqrs_outbox", "status", "--json")
    assert (0, 1) == (code, json.loads(printed.out)["waiting"])
    assert 1 == manage("cqrs_outbox", "status", "--max-lag", "0s")[0]
    assert 0 == manage("cqrs_relay", "--drain")[0]
    assert [1] == numbers_in(broker)
    code, printed = manage("cqrs_outbox", "purge", "--older-than", "0s")
    assert (0, "1 message purged, 0 receipts purged\n") == (code, printed.out)


def test_manage_py_purges_receipts_as_well(make, django_mediator, manage):
    """
    Where the mediator of the settings has an inbox.
    """
    from django.db import connections  # noqa: PLC0415 -- as above

    mediator = make(using="sqlite", fast_path=False)
    django_mediator(mediator)
    mediator.send(Sell(1), idempotency_key="k")
    code, printed = manage("cqrs_outbox", "purge", "--older-than", "0s")
    assert (0, "0 messages purged, 0 receipts purged\n") == (code, printed.out)
    with connections["sqlite"].cursor() as cursor:
        cursor.execute("UPDATE cqrs_inbox SET created_at = datetime(created_at, '-31 days')")

    code, printed = manage("cqrs_outbox", "purge", "--older-than", "0s")
    assert (0, "0 messages purged, 1 receipt purged\n") == (code, printed.out)


def test_manage_py_has_the_commands_of_groups(django_mediator, manage, monkeypatch):
    """
    With the group of the settings, unless another one is named.
    """
    from django.conf import settings  # noqa: PLC0415 -- as above

    events = cqrs.EventMap()
    events.bind(Joined, lambda event: None)
    mediator = cqrs.bootstrap(source="tests", events=events, broker=MemoryBroker())
    django_mediator(mediator)
    code, printed = manage("cqrs_consumer", "lag")
    assert (2, True) == (code, printed.err.endswith('or CQRS_SYNC = {"GROUP": "shop"} in the settings\n'))
    monkeypatch.setattr(settings, "CQRS_SYNC", {**settings.CQRS_SYNC, "GROUP": "shop"})

    assert "shop" == json.loads(manage("cqrs_consumer", "lag", "--json")[1].out)["group"]
    assert "other" == json.loads(manage("cqrs_consumer", "lag", "--json", "--group", "other")[1].out)["group"]
    assert 0 == manage("cqrs_topology", "apply")[0]
    code, printed = manage("cqrs_consumer", "dead", "replay", "--all")
    assert (0, "0 replayed\n") == (code, printed.out)
    code, printed = manage("cqrs_consumer", "dead", "purge", "--all")
    assert (2, True) == (code, printed.err.endswith("add --yes, or --dry-run\n"))
    assert 0 == manage("cqrs_consumer", "dead", "purge", "--all", "--yes")[0]
    code, printed = manage("cqrs_consumer", "run", "--stop-after", "0.1", "--json")
    assert (0, "stopped") == (code, json.loads(printed.out.splitlines()[-1])["state"])


def test_commands_of_groups_take_the_consumer_of_the_settings(django_mediator, manage, monkeypatch):
    """
    With its group and its pauses; what is no consumer is told of in a line, and by a check.
    """
    from django.conf import settings  # noqa: PLC0415 -- as above

    from cqrs_sync.integrations.django.checks import check_mediator  # noqa: PLC0415 -- as above

    events = cqrs.EventMap()
    events.bind(Joined, lambda event: None)
    mediator = cqrs.bootstrap(source="tests", events=events, broker=MemoryBroker())
    django_mediator(mediator)
    made = Consumer(mediator, "shop", retry=cqrs.RetryPolicy(delays=(0.1, 1.0, 7.0)))
    named = f"{__name__}.consumer_of_test"
    monkeypatch.setitem(globals(), "consumer_of_test", lambda: made)
    monkeypatch.setattr(settings, "CQRS_SYNC", {**settings.CQRS_SYNC, "CONSUMER": named})

    assert "shop" == json.loads(manage("cqrs_consumer", "lag", "--json")[1].out)["group"]
    assert 0 == manage("cqrs_topology", "apply")[0]
    assert 2 == manage("cqrs_consumer", "lag", "--retry-delays", "9s")[0]
    code, printed = manage("cqrs_consumer", "run", "--stop-after", "0.1", "--json")
    assert (0, "stopped") == (code, json.loads(printed.out.splitlines()[-1])["state"])
    assert [] == [found for found in check_mediator(None) if found.id == "cqrs_sync.E001"]

    monkeypatch.setattr(settings, "CQRS_SYNC", {**settings.CQRS_SYNC, "GROUP": "parcels"})
    code, printed = manage("cqrs_consumer", "lag")
    assert (2, True) == (code, "the settings say that the group is 'parcels', but the app" in printed.err)

    monkeypatch.setitem(globals(), "consumer_of_test", mediator)
    words = f"{named!r}: it must be a Consumer, or a function that returns one, not of the type Mediator"
    code, printed = manage("cqrs_consumer", "lag")
    assert (2, True) == (code, words in printed.err)
    assert [words in found.msg for found in check_mediator(None)] == [True]


def test_commands_take_the_settings_that_manage_py_takes(make, django_mediator, manage):
    """
    Django has read them, click need not know them.
    """
    django_mediator(make(using="sqlite"))
    for options in (["--settings=shop.settings"], ["--settings", "shop.settings", "--pythonpath", "/srv"]):
        code, printed = manage("cqrs_outbox", "status", *options, "--json")
        assert (0, 0) == (code, json.loads(printed.out)["waiting"])


def test_commands_are_called_from_code_as_well(make, django_mediator, capfd):
    """
    By `call_command`, as in a test.
    """
    from django.core.management import call_command  # noqa: PLC0415 -- as above

    django_mediator(make(using="sqlite"))
    with pytest.raises(SystemExit) as left:
        call_command("cqrs_outbox", "status", "--json")

    assert (0, 0) == (left.value.code, json.loads(capfd.readouterr().out)["waiting"])


def test_commands_tell_in_a_line_that_there_is_no_mediator(django_mediator, manage):
    """
    With the status of what was called wrongly.
    """
    django_mediator("none")
    code, printed = manage("cqrs_relay")

    assert 2 == code
    assert printed.err.startswith(
        "Error: CQRS_SYNC[\"MEDIATOR\"] names 'a_django_shop.mediator': it must be a Mediator"
    )
    assert 1 == printed.err.count("\n")


@pytest.mark.parametrize("is_imported", [True, False])
def test_a_module_in_place_of_a_mediator_is_an_error_with_the_name_in_it(make, monkeypatch, tmp_path, is_imported):
    """
    Whether or not it was imported before.
    """
    from django.conf import settings  # noqa: PLC0415 -- as above
    from django.core.exceptions import ImproperlyConfigured  # noqa: PLC0415 -- as above

    from cqrs_sync.integrations.django.wiring import mediator_of_settings  # noqa: PLC0415 -- as above

    package = f"a_shop_{is_imported}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("from . import wiring\n" if is_imported else "")
    (tmp_path / package / "wiring.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(settings, "CQRS_SYNC", {"SOURCE": "shop", "MEDIATOR": f"{package}.wiring"}, raising=False)

    words = f"'{package}.wiring', which is a module: did you mean '{package}.wiring.mediator'?"
    with pytest.raises(ImproperlyConfigured, match=re.escape(words)):
        mediator_of_settings()
    importlib.import_module(f"{package}.wiring").shop = make(using="sqlite")
    with pytest.raises(ImproperlyConfigured, match=re.escape(f"did you mean '{package}.wiring.shop'?")):
        mediator_of_settings()


def test_commands_tell_in_a_line_what_the_checks_would_find(make, django_mediator, manage, monkeypatch):
    """
    Unless the settings silence it.
    """
    from django.conf import settings  # noqa: PLC0415 -- as above

    django_mediator(make(using="sqlite"))
    monkeypatch.setattr(settings, "CQRS_SYNC", {**settings.CQRS_SYNC, "GROPU": "shop"})
    code, printed = manage("cqrs_outbox", "status")
    assert (2, 1) == (code, printed.err.count("\n"))
    assert "CQRS_SYNC has the key 'GROPU', which has no meaning: did you mean 'GROUP'?" in printed.err
    assert 2 == manage("cqrs_relay", "--drain")[0]

    monkeypatch.setattr(settings, "CQRS_SYNC", {**settings.CQRS_SYNC, "SOURCE": "two words"})
    code, printed = manage("cqrs_outbox", "status")
    assert (2, True) == (code, printed.err.endswith("such as \"shop\", not 'two words' (cqrs_sync.E009)\n"))

    monkeypatch.setattr(settings, "SILENCED_SYSTEM_CHECKS", ["cqrs_sync.E007", "cqrs_sync.E009"])
    assert 0 == manage("cqrs_outbox", "status")[0]


@pytest.mark.parametrize("settings", [{}, {"DJANGO_SETTINGS_MODULE": "config.settings"}], ids=["none", "named"])
def test_the_program_names_the_command_that_sets_django_up(settings):
    done = subprocess.run(
        [sys.executable, "-m", "cqrs_sync", "outbox", "status", "--app", "meetings.mediator:mediator"],
        cwd=Path(__file__).parents[2] / "docs/examples/django_project",
        env={name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"} | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert 2 == done.returncode
    assert "in a Django project run `manage.py cqrs_outbox status`, which sets Django up" in done.stderr


def test_help_is_that_of_the_command(django_databases, capfd):
    """
    Also as `manage.py help cqrs_relay`.
    """
    from django.core.management import load_command_class  # noqa: PLC0415 -- as above

    load_command_class("cqrs_sync.integrations.django", "cqrs_relay").print_help("manage.py", "cqrs_relay")
    printed = capfd.readouterr().out

    assert printed.startswith("Usage: manage.py cqrs_relay [OPTIONS]")
    assert "--drain" in printed
