"""The Django app: wired by one call, checked at start, looked at in the admin, operated by manage.py."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout

import pytest
from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker
from cqrs_sync.outbox import Entry, Outcome, Selection
from cqrs_sync.testing.contracts import message
from tests.waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.usefixtures("django_databases")]


@frozen
class Sell(cqrs.Command[None]):
    number: int
    fails: bool = False


@frozen
class Sold(cqrs.NotificationEvent, topic="sales", name="django.sold"):
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
def emptied(django_databases):
    from django.db import connections  # noqa: PLC0415 -- needs settings

    yield
    for alias in ("default", "postgresql", "mariadb", "sqlite"):
        with connections[alias].cursor() as cursor:
            cursor.execute("DELETE FROM cqrs_delivery")
            cursor.execute("DELETE FROM cqrs_message")
        connections[alias].close()


@pytest.fixture
def make(emptied, requests):
    """Make a mediator as a project does."""
    from cqrs_sync.integrations.django import bootstrap  # noqa: PLC0415 -- as above

    made = []

    def make(**options):
        mediator = bootstrap(requests, **{"threads": 2, "broker": MemoryBroker(), **options})
        made.append(mediator)
        return mediator

    yield make
    for mediator in made:
        mediator.close(5)


def numbers_in(broker):
    return [json.loads(each.body)["number"] for each in broker.published]


# Wired


@pytest.mark.parametrize("alias", ["postgresql", "mariadb", "sqlite"])
def test_one_call_wires_transactions_and_outbox(make, alias):
    """
    What a command commits is published by this process; what it rolls back is not.
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


def test_without_an_outbox_events_leave_after_the_commit(make):
    """
    As long as this process lives.
    """
    broker = MemoryBroker()
    mediator = make(using="sqlite", outbox=False, broker=broker)
    mediator.send(Sell(1))

    assert (None, [1]) == (mediator.relay, numbers_in(broker))


def test_a_transaction_on_another_database_is_named(make):
    """
    With what to write.
    """
    from django.db import transaction  # noqa: PLC0415 -- as above

    mediator = make(using="sqlite", atomic=())
    with (
        transaction.atomic(using="postgresql"),
        pytest.raises(cqrs.NotInTransaction, match=r"which is on 'postgresql', DjangoOutbox\(using='postgresql'\)"),
    ):
        mediator.send(Sell(1))


def test_an_outbox_in_another_database_than_the_transactions_is_refused(requests):
    """
    When the mediator is made.
    """
    from django.core.exceptions import ImproperlyConfigured  # noqa: PLC0415 -- as above

    from cqrs_sync.integrations.django import DjangoOutbox, bootstrap  # noqa: PLC0415 -- as above

    with pytest.raises(ImproperlyConfigured, match="give both the same database"):
        bootstrap(requests, using="sqlite", outbox=DjangoOutbox("mariadb"))


@pytest.mark.parametrize("alias", ["postgresql", "mariadb", "sqlite"])
def test_what_fails_while_it_is_written_down_commits_nothing_of_it(make, alias, monkeypatch):
    """
    Also where the application catches the error, inside its transaction.
    """
    from django.db import DatabaseError, connections, transaction  # noqa: PLC0415 -- as above

    mediator = make(using=alias, atomic=())
    say = mediator.relay.outbox._say
    monkeypatch.setattr(say, "insert_deliveries", lambda rows: "INSERT INTO cqrs_delivery (nothing) VALUES (%s)" * rows)
    with transaction.atomic(using=alias):
        with pytest.raises((DatabaseError, cqrs.OutboxNotInstalled)):
            mediator.send(Sell(1))
        assert connections[alias].needs_rollback
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM cqrs_message")
        assert [(0,)] == list(cursor.fetchall())


def test_tables_that_are_missing_are_told_with_the_way_out(make):
    """
    To whoever sends, and to whoever operates.
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


def test_a_commit_in_another_process_is_heard():
    """
    On PostgreSQL, at the commit, and not after a rollback.
    """
    from django.db import transaction  # noqa: PLC0415 -- as above

    from cqrs_sync.integrations.django import DjangoOutbox  # noqa: PLC0415 -- as above

    outbox = DjangoOutbox("postgresql", notify=True)
    listener = outbox.listener()
    try:
        with transaction.atomic(using="postgresql"):
            outbox.add([Entry(message("orders"), publish=True)])
            assert not listener.wait(0.1)
        assert listener.wait(10)
    finally:
        listener.close()
    assert DjangoOutbox("mariadb").listener() is None
    outbox.settle([Outcome.failed(each, "x", after=None) for each in outbox.claim(10, 30)])
    outbox.discard(Selection())


# Checked


class TestChecks:
    @pytest.fixture
    def found(self, settings_of):
        """Run the checks with a mediator in the settings; their ids."""
        from django.core.checks import run_checks  # noqa: PLC0415 -- as above

        def found(mediator):
            settings_of(mediator)
            return [each.id for each in run_checks(tags=["cqrs_sync"])]

        return found

    def test_a_mediator_that_is_wired_well_is_not_complained_about(self, found, make):
        assert [] == found(make(using="sqlite"))

    def test_settings_that_name_no_mediator_are_an_error(self, found):
        assert ["cqrs_sync.E001"] == found(42)

    def test_an_alias_that_is_none_is_an_error(self, found, requests):
        from cqrs_sync.integrations.django import DjangoOutbox  # noqa: PLC0415 -- as above

        assert ["cqrs_sync.E002"] == found(cqrs.bootstrap(requests, outbox=DjangoOutbox("nowhere")))

    def test_commands_without_a_transaction_are_warned_of(self, found, make):
        assert ["cqrs_sync.W001"] == found(make(using="sqlite", atomic=()))

    def test_a_sqlite_that_refuses_instead_of_waiting_is_warned_of(self, found, make):
        from django.conf import settings  # noqa: PLC0415 -- as above

        options = settings.DATABASES["sqlite"]["OPTIONS"]
        mode = options.pop("transaction_mode")
        try:
            assert ["cqrs_sync.W002"] == found(make(using="sqlite"))
        finally:
            options["transaction_mode"] = mode


@pytest.fixture
def settings_of(django_databases, monkeypatch):
    """Let the settings name a mediator."""
    import sys  # noqa: PLC0415 -- here only
    import types  # noqa: PLC0415 -- here only

    from django.conf import settings  # noqa: PLC0415 -- as above

    def name(mediator):
        module = types.ModuleType("a_django_shop")
        module.mediator = mediator
        monkeypatch.setitem(sys.modules, "a_django_shop", module)
        monkeypatch.setattr(settings, "CQRS_SYNC", {"MEDIATOR": "a_django_shop.mediator"}, raising=False)

    return name


# Operated


def test_manage_py_has_the_commands_of_the_command_line(make, settings_of):
    """
    With the mediator of the settings.
    """
    from django.core.management import call_command  # noqa: PLC0415 -- as above

    broker = MemoryBroker()
    mediator = make(using="sqlite", fast_path=False, broker=broker)
    settings_of(mediator)
    mediator.send(Sell(1))

    def said(*arguments):
        with redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit) as left:
            call_command(*arguments)
        return left.value.code, output.getvalue()

    code, printed = said("cqrs_status", "--json")
    assert (0, 1) == (code, json.loads(printed)["waiting"])
    assert 1 == said("cqrs_status", "--max-lag", "0s")[0]


# The admin


class TestAdmin:
    @pytest.fixture
    def dead(self, emptied):
        """A dead delivery with a payload that would like to be a script."""
        from django.db import transaction  # noqa: PLC0415 -- as above

        from cqrs_sync.integrations.django import DjangoOutbox  # noqa: PLC0415 -- as above

        outbox = DjangoOutbox()
        with transaction.atomic():
            outbox.add([Entry(message("orders", b'{"a": "<script>alert(1)</script>"}'), publish=True)])
        (claimed,) = outbox.claim(10, 30)
        outbox.settle([Outcome.failed(claimed, "MessageRejected: <b>no queue</b>", after=None)])
        return outbox, claimed

    @pytest.fixture
    def client_of(self, django_databases):
        """A browser of somebody with these permissions."""
        from django.contrib.auth.models import Permission, User  # noqa: PLC0415 -- as above
        from django.test import Client  # noqa: PLC0415 -- as above

        users = []

        def client_of(*permissions, staff=True):
            user = User.objects.create_user(f"user-{len(users)}", password="p", is_staff=staff)  # noqa: S106 -- of a test
            users.append(user)
            codes = Permission.objects.filter(content_type__app_label="cqrs_sync", codename__in=permissions)
            user.user_permissions.set(codes)
            client = Client(headers={"host": "localhost"})
            client.force_login(user)
            return client

        yield client_of
        from django.contrib.admin.models import LogEntry  # noqa: PLC0415 -- as above

        LogEntry.objects.all().delete()
        for user in users:
            user.delete()

    VIEW = ("view_delivery", "view_message")
    DELIVERIES = "/admin/cqrs_sync/delivery/"

    @pytest.mark.parametrize(
        ("permissions", "action", "replayed"),
        [
            ((), "replay", 0),
            (VIEW, "replay", 0),
            ((*VIEW, "discard_delivery"), "replay", 0),
            ((*VIEW, "replay_delivery"), "replay", 1),
        ],
    )
    def test_only_those_who_may_replay_do(self, dead, client_of, permissions, action, replayed):
        outbox, claimed = dead
        client_of(*permissions).post(self.DELIVERIES, {"action": action, "_selected_action": [claimed.number]})

        assert replayed == outbox.backlog().waiting

    def test_a_replay_is_written_down_with_who_did_it(self, dead, client_of):
        from django.contrib.admin.models import LogEntry  # noqa: PLC0415 -- as above

        _, claimed = dead
        client_of(*self.VIEW, "replay_delivery").post(
            self.DELIVERIES, {"action": "replay", "_selected_action": [claimed.number]}
        )
        (entry,) = LogEntry.objects.all()

        assert ("user-0", str(claimed.number), "replayed") == (
            entry.user.username,
            entry.object_id,
            entry.change_message,
        )

    def test_looking_changes_nothing(self, dead, client_of):
        outbox, claimed = dead
        client = client_of(*self.VIEW, "replay_delivery", "discard_delivery")
        client.get(self.DELIVERIES, {"action": "replay", "_selected_action": claimed.number})

        assert (0, 1) == (outbox.backlog().waiting, outbox.backlog().dead)

    def test_what_is_dead_can_be_discarded(self, dead, client_of):
        outbox, claimed = dead
        client_of(*self.VIEW, "discard_delivery").post(
            self.DELIVERIES, {"action": "discard", "_selected_action": [claimed.number]}
        )

        assert 0 == outbox.backlog().dead

    def test_nobody_adds_changes_or_deletes_by_hand(self, dead, client_of):
        _, claimed = dead
        client = client_of(*self.VIEW, "replay_delivery", "discard_delivery", "view_payload")
        pages = [
            f"{self.DELIVERIES}add/",
            f"{self.DELIVERIES}{claimed.number}/delete/",
            "/admin/cqrs_sync/message/add/",
        ]

        assert [403, 403, 403] == [client.get(page).status_code for page in pages]
        assert 403 == client.post(f"{self.DELIVERIES}{claimed.number}/change/", {"status": "pending"}).status_code

    @pytest.mark.parametrize("may", [False, True])
    def test_a_payload_is_shown_as_text_to_those_who_may_see_it(self, dead, client_of, may):
        _, claimed = dead
        client = client_of(*self.VIEW, *(["view_payload"] if may else []))
        page = client.get(f"/admin/cqrs_sync/message/{claimed.message.id}/change/").content.decode()

        assert may == ("&lt;script&gt;alert(1)" in page)
        assert "<script>alert(1)" not in page

    def test_strangers_are_sent_away(self, dead, client_of):
        from django.test import Client  # noqa: PLC0415 -- as above

        assert 302 == Client(headers={"host": "localhost"}).get(self.DELIVERIES).status_code
        assert 302 == client_of(*self.VIEW, staff=False).get(self.DELIVERIES).status_code

    def test_errors_are_shown_as_text(self, dead, client_of):
        page = client_of(*self.VIEW).get(self.DELIVERIES).content.decode()

        assert "&lt;b&gt;no queue" in page
