"""The admin of the Django app: who may see, replay and discard, and what its log records."""

from __future__ import annotations

import pytest

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker
from cqrs_sync.outbox import DeadLetterSelection, OutboxEntry, Outcome
from cqrs_sync.testing.contracts.broker import message
from tests.waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.usefixtures("django_emptied")]

VIEW = ("view_delivery", "view_message")
ALL = (*VIEW, "view_payload", "replay_delivery", "discard_delivery")
DELIVERIES = "/admin/cqrs_sync/delivery/"
MESSAGES = "/admin/cqrs_sync/message/"
RECEIPTS = "/admin/cqrs_sync/receipt/"
PAYLOAD = b'{"a": "<script>alert(1)</script>"}'


def outbox_with_dead(alias, number=1, *, body=PAYLOAD, error="MessageRejected: <b>no queue</b>"):
    """An outbox with dead deliveries, and their numbers."""
    from django.db import transaction  # noqa: PLC0415 -- needs settings

    from cqrs_sync.integrations.django import DjangoOutbox  # noqa: PLC0415 -- as above

    outbox = DjangoOutbox(alias)
    with transaction.atomic(using=alias):
        outbox.add([OutboxEntry(message("orders", body), publish=True) for _ in range(number)])
    claimed = outbox.claim(number, 60)
    outbox.settle([Outcome.failed(each, error, after=None) for each in claimed])
    return outbox, claimed


@pytest.fixture
def dead(django_emptied):
    """A dead delivery with a script in its payload."""
    outbox, (claimed,) = outbox_with_dead("default")
    return outbox, claimed


@pytest.fixture
def client_of(django_databases):
    """A browser of a user with these permissions."""
    from django.contrib.admin.models import LogEntry  # noqa: PLC0415 -- as above
    from django.contrib.auth.models import Permission, User  # noqa: PLC0415 -- as above
    from django.test import Client  # noqa: PLC0415 -- as above

    users = []

    def client_of(*permissions, staff=True):
        user = User.objects.create(username=f"user-{len(users)}", is_staff=staff)
        users.append(user)
        codes = Permission.objects.filter(content_type__app_label="cqrs_sync", codename__in=permissions)
        assert len(codes) == len(permissions)
        user.user_permissions.set(codes)
        client = Client(HTTP_HOST="localhost")
        client.force_login(user)
        return client

    yield client_of
    LogEntry.objects.all().delete()
    for user in users:
        user.delete()


def act(client, action, *numbers, **more):
    """As the button *Go* does."""
    return client.post(DELIVERIES, {"action": action, "_selected_action": numbers, **more})


def written_down():
    from django.contrib.admin.models import LogEntry  # noqa: PLC0415 -- as above

    return sorted(LogEntry.objects.values_list("user__username", "object_id", "change_message"))


# Permissions


@pytest.mark.parametrize(
    ("permissions", "may_look", "may_replay", "may_discard"),
    [
        ((), False, False, False),
        (VIEW, True, False, False),
        (("replay_delivery", "discard_delivery"), False, False, False),
        (("view_message", "replay_delivery"), False, False, False),
        ((*VIEW, "view_payload"), True, False, False),
        (("view_delivery", "replay_delivery"), True, True, False),
        (("view_delivery", "discard_delivery"), True, False, True),
        (ALL, True, True, True),
    ],
)
def test_each_action_has_its_permission(dead, client_of, permissions, may_look, may_replay, may_discard):
    """
    Users without view permission cannot act, and the page offers only what a user may do.
    """
    outbox, claimed = dead
    client = client_of(*permissions)
    page = client.get(DELIVERIES)
    assert may_look == (page.status_code == 200)
    assert may_replay == (b'value="replay"' in page.content)
    assert may_discard == (b'value="discard"' in page.content)

    act(client, "replay", claimed.number)
    assert may_replay == (outbox.backlog().waiting == 1)
    if may_replay:
        outbox.settle([Outcome.failed(each, "again", after=None) for each in outbox.claim(1, 60)])
    act(client, "discard", claimed.number)
    assert may_discard == (outbox.backlog().dead == 0)

    done = [name for name, may in (("replayed", may_replay), ("discarded", may_discard)) if may]
    assert sorted(("user-0", str(claimed.number), name) for name in done) == written_down()


def test_looking_changes_nothing(dead, client_of):
    """
    Actions need a POST.
    """
    outbox, claimed = dead
    client_of(*ALL).get(DELIVERIES, {"action": "replay", "_selected_action": claimed.number})

    assert (0, 1) == (outbox.backlog().waiting, outbox.backlog().dead)


def test_a_page_of_another_site_cannot_act(dead, client_of):
    """
    Django asks for its token.
    """
    from django.test import Client, modify_settings  # noqa: PLC0415 -- as above

    outbox, claimed = dead
    with modify_settings(MIDDLEWARE={"append": "django.middleware.csrf.CsrfViewMiddleware"}):
        client = Client(enforce_csrf_checks=True, HTTP_HOST="localhost")
        client.cookies = client_of(*ALL).cookies
        assert 403 == act(client, "replay", claimed.number).status_code

    assert 0 == outbox.backlog().waiting


def test_rows_cannot_be_added_changed_or_deleted_by_hand(dead, client_of):
    """
    Not with any permission.
    """
    _, claimed = dead
    client = client_of(*ALL)
    delivery, kept = f"{DELIVERIES}{claimed.number}/", f"{MESSAGES}{claimed.message.id}/"
    pages = [f"{DELIVERIES}add/", f"{delivery}delete/", f"{MESSAGES}add/", f"{kept}delete/"]

    assert [403] * 4 == [client.get(page).status_code for page in pages]
    assert [403] * 2 == [
        client.post(f"{page}change/", {"status": "pending", "topic": "x"}).status_code for page in (delivery, kept)
    ]
    assert b"delete_selected" not in client.get(DELIVERIES).content


def test_anonymous_users_are_sent_to_the_login(dead, client_of):
    """
    Before they see anything.
    """
    from django.test import Client  # noqa: PLC0415 -- as above

    assert 302 == Client(HTTP_HOST="localhost").get(DELIVERIES).status_code
    assert 302 == client_of(*ALL, staff=False).get(DELIVERIES).status_code


# Pages


@pytest.mark.parametrize("may", [False, True])
def test_the_admin_shows_payloads_as_text_to_users_with_the_permission(dead, client_of, may):
    """
    A script in it does not run.
    """
    _, claimed = dead
    client = client_of(*VIEW, *(["view_payload"] if may else []))
    page = client.get(f"{MESSAGES}{claimed.message.id}/change/").content.decode()

    assert may == ("&lt;script&gt;alert(1)" in page)
    assert "<script>alert(1)" not in page


def test_the_admin_cuts_a_large_payload_and_says_so(django_emptied, client_of):
    """
    With its size.
    """
    _, (claimed,) = outbox_with_dead("default", body=b"x" * 500_000)
    page = client_of(*ALL).get(f"{MESSAGES}{claimed.message.id}/change/").content

    assert len(page) < 50_000
    assert "x… (500000 bytes)".encode() in page


@pytest.mark.parametrize(
    "address",
    [
        f"{MESSAGES}?payload__contains=script",
        f"{MESSAGES}?payload__gt=a",
        f"{DELIVERIES}?message__payload__contains=script",
    ],
)
def test_urls_reveal_nothing_of_payloads(dead, client_of, address):
    """
    A user without the permission cannot find out the content letter by letter.
    """
    assert 400 == client_of(*VIEW).get(address).status_code


def test_lists_do_not_load_what_they_do_not_show(dead, client_of):
    """
    A hundred payloads may be a hundred megabytes.
    """
    from django.db import connection  # noqa: PLC0415 -- as above
    from django.test.utils import CaptureQueriesContext  # noqa: PLC0415 -- as above

    client = client_of(*ALL)
    with CaptureQueriesContext(connection) as queries:
        assert 200 == client.get(MESSAGES).status_code
        assert 200 == client.get(DELIVERIES).status_code

    assert [] == [query["sql"] for query in queries if '"payload"' in query["sql"]]


def test_the_admin_shows_errors_as_text(dead, client_of):
    """
    In the list and on the page of a delivery.
    """
    _, claimed = dead
    client = client_of(*VIEW)
    for address in (DELIVERIES, f"{DELIVERIES}{claimed.number}/change/"):
        page = client.get(address).content.decode()
        assert "&lt;b&gt;no queue" in page
        assert "<b>no queue" not in page


def test_a_filter_groups_dead_deliveries_by_reason(django_emptied, client_of):
    """
    The most frequent reason first, each with its count; a whole group can be replayed.
    """
    outbox, _ = outbox_with_dead("default", 1, error="ValueError: 4711 is too much")
    outbox_with_dead("default", 3, error="KeyError: 12")
    client = client_of(*ALL)
    page = client.get(DELIVERIES).content.decode()
    assert "By reason of dead deliveries" in page
    assert "Outbox and inbox" in page
    assert -1 < page.index("KeyError: … (3)") < page.index("ValueError: … is too much (1)")

    client.post(
        f"{DELIVERIES}?reason=KeyError: …",
        {
            "action": "replay",
            "select_across": 1,
            "_selected_action": [outbox.dead_letters(DeadLetterSelection())[-1].number],
        },
    )
    assert (3, (("ValueError: … is too much", 1),)) == (outbox.backlog().waiting, outbox.backlog().dead_by_reason)


# Actions


def test_one_action_replays_any_number_of_deliveries(django_emptied, client_of):
    """
    The log has an entry for each.
    """
    outbox, claimed = outbox_with_dead("default", 1_100)
    act(client_of(*ALL), "replay", claimed[0].number, select_across=1)

    assert (1_100, 0) == (outbox.backlog().waiting, outbox.backlog().dead)
    assert 1_100 == len(written_down())


def test_a_delivery_that_is_not_dead_is_left_alone(django_emptied, client_of):
    """
    Another user was faster.
    """
    outbox, (claimed,) = outbox_with_dead("default")
    outbox.replay(DeadLetterSelection())
    client = client_of(*ALL)
    page = client.post(DELIVERIES, {"action": "discard", "_selected_action": [claimed.number]}, follow=True)

    assert b"0 dead deliveries were discarded" in page.content
    assert (1, []) == (outbox.backlog().waiting, written_down())


def test_a_change_without_its_log_entry_is_rolled_back(dead, client_of, monkeypatch):
    """
    They commit together or not at all.
    """
    from django.contrib.admin.models import LogEntry  # noqa: PLC0415 -- as above

    def fails(*_, **__):
        raise OSError("no space left")

    outbox, claimed = dead
    client = client_of(*ALL)
    monkeypatch.setattr(type(LogEntry.objects), "bulk_create", fails)
    with pytest.raises(OSError, match="no space"):
        act(client, "replay", claimed.number)

    assert (0, 1) == (outbox.backlog().waiting, outbox.backlog().dead)


@pytest.mark.parametrize("alias", ["postgresql", "mariadb", "sqlite"])
@pytest.mark.parametrize("atomic", [False, True], ids=["autocommit", "atomic-requests"])
def test_the_admin_shows_the_mediators_outbox_which_delivers_replayed_messages(
    django_mediator, client_of, monkeypatch, alias, atomic
):
    """
    In any database, with or without a transaction around the request, at once.
    """
    from django.db import connections  # noqa: PLC0415 -- as above

    from cqrs_sync.integrations.django import DjangoOutbox, bootstrap  # noqa: PLC0415 -- as above

    monkeypatch.setitem(connections.settings[alias], "ATOMIC_REQUESTS", atomic)
    outbox, (claimed,) = outbox_with_dead(alias)
    broker = MemoryBroker()
    with bootstrap(
        cqrs.RequestMap(), source="tests", using=alias, outbox=DjangoOutbox(alias), broker=broker, threads=1
    ) as mediator:
        django_mediator(mediator)
        client = client_of(*ALL)
        assert str(claimed.number).encode() in client.get(DELIVERIES).content
        act(client, "replay", claimed.number)
        eventually(lambda: outbox.backlog().waiting == 0)

    assert [PAYLOAD] == [each.body for each in broker.published]
    assert [("user-0", str(claimed.number), "replayed")] == written_down()


# The inbox


@pytest.mark.parametrize(("permissions", "status"), [((), 403), (("view_receipt",), 200)])
def test_receipts_are_a_read_only_list(client_of, permissions, status):
    """
    Two handlers of one message are two lines. No page shows a single one.
    """
    from cqrs_sync.integrations.django import DjangoInbox  # noqa: PLC0415 -- needs settings

    inbox = DjangoInbox("default")
    for handler in ("bill", "pack"):
        with inbox.once("/shop 1", handler) as receipt:
            receipt.keep_result(b"<secret>")
    client = client_of(*permissions)
    listed = client.get(RECEIPTS)

    assert status == listed.status_code
    if status == 200:
        page = listed.content.decode()
        assert ("bill" in page, "pack" in page, "secret" in page) == (True, True, False)
        assert 302 == client.get(f"{RECEIPTS}%2Fshop 1/change/").status_code
        assert 400 == client.get(f"{RECEIPTS}?result__contains=s").status_code
    assert 403 == client.get(f"{RECEIPTS}add/").status_code


def test_the_admin_shows_the_mediators_inbox(client_of, django_mediator):
    """
    In any database.
    """
    from cqrs_sync.integrations.django import DjangoInbox, bootstrap  # noqa: PLC0415 -- as above

    with DjangoInbox("postgresql").once("1", "bill-elsewhere"):
        pass
    client = client_of("view_receipt")
    assert "bill-elsewhere" not in client.get(RECEIPTS).content.decode()
    mediator = bootstrap(source="tests", using="postgresql", outbox=None, threads=1)
    with mediator:
        django_mediator(mediator)
        assert "bill-elsewhere" in client.get(RECEIPTS).content.decode()
