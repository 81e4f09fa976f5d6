"""The admin of the Django app: who may see what, who may replay and discard, and what is written down of it."""

from __future__ import annotations

import pytest

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker
from cqrs_sync.outbox import Entry, Outcome, Selection
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
        outbox.add([Entry(message("orders", body), publish=True) for _ in range(number)])
    claimed = outbox.claim(number, 60)
    outbox.settle([Outcome.failed(each, error, after=None) for each in claimed])
    return outbox, claimed


@pytest.fixture
def dead(django_emptied):
    """A dead delivery with a payload that would like to be a script."""
    outbox, (claimed,) = outbox_with_dead("default")
    return outbox, claimed


@pytest.fixture
def client_of(django_databases):
    """A browser of somebody with these permissions."""
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
    """What the button *Go* does."""
    return client.post(DELIVERIES, {"action": action, "_selected_action": numbers, **more})


def written_down():
    from django.contrib.admin.models import LogEntry  # noqa: PLC0415 -- as above

    return sorted(LogEntry.objects.values_list("user__username", "object_id", "change_message"))


# Who may


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
    Nobody acts who may not look, and the page offers what one may do.
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
    Actions are posted.
    """
    outbox, claimed = dead
    client_of(*ALL).get(DELIVERIES, {"action": "replay", "_selected_action": claimed.number})

    assert (0, 1) == (outbox.backlog().waiting, outbox.backlog().dead)


def test_a_page_of_somebody_else_cannot_act(dead, client_of):
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


def test_nobody_adds_changes_or_deletes_by_hand(dead, client_of):
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


def test_strangers_are_sent_away(dead, client_of):
    """
    To where one logs in.
    """
    from django.test import Client  # noqa: PLC0415 -- as above

    assert 302 == Client(HTTP_HOST="localhost").get(DELIVERIES).status_code
    assert 302 == client_of(*ALL, staff=False).get(DELIVERIES).status_code


# What is seen


@pytest.mark.parametrize("may", [False, True])
def test_a_payload_is_shown_as_text_to_those_who_may_see_it(dead, client_of, may):
    """
    Nothing in it is a script.
    """
    _, claimed = dead
    client = client_of(*VIEW, *(["view_payload"] if may else []))
    page = client.get(f"{MESSAGES}{claimed.message.id}/change/").content.decode()

    assert may == ("&lt;script&gt;alert(1)" in page)
    assert "<script>alert(1)" not in page


def test_a_large_payload_is_cut_and_says_so(django_emptied, client_of):
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
def test_addresses_tell_nothing_of_payloads(dead, client_of, address):
    """
    Who may not see them cannot ask what is in them, letter by letter.
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


def test_errors_are_shown_as_text(dead, client_of):
    """
    In the list and on the page of a delivery.
    """
    _, claimed = dead
    client = client_of(*VIEW)
    for address in (DELIVERIES, f"{DELIVERIES}{claimed.number}/change/"):
        page = client.get(address).content.decode()
        assert "&lt;b&gt;no queue" in page
        assert "<b>no queue" not in page


def test_what_is_dead_is_shown_in_groups_of_what_failed_alike(django_emptied, client_of):
    """
    The largest first, each with its number; a group can be replayed as a whole.
    """
    outbox, _ = outbox_with_dead("default", 1, error="ValueError: 4711 is too much")
    outbox_with_dead("default", 3, error="KeyError: 12")
    client = client_of(*ALL)
    page = client.get(DELIVERIES).content.decode()
    assert -1 < page.index("KeyError: … (3)") < page.index("ValueError: … is too much (1)")

    client.post(
        f"{DELIVERIES}?reason=KeyError: …",
        {"action": "replay", "select_across": 1, "_selected_action": [outbox.dead(Selection())[-1].number]},
    )
    assert (3, (("ValueError: … is too much", 1),)) == (outbox.backlog().waiting, outbox.backlog().dead_by_reason)


# What is done


def test_any_number_is_replayed_at_once(django_emptied, client_of):
    """
    Each is written down.
    """
    outbox, claimed = outbox_with_dead("default", 1_100)
    act(client_of(*ALL), "replay", claimed[0].number, select_across=1)

    assert (1_100, 0) == (outbox.backlog().waiting, outbox.backlog().dead)
    assert 1_100 == len(written_down())


def test_what_is_not_dead_is_left_alone(django_emptied, client_of):
    """
    Somebody else was faster.
    """
    outbox, (claimed,) = outbox_with_dead("default")
    outbox.replay(Selection())
    client = client_of(*ALL)
    page = client.post(DELIVERIES, {"action": "discard", "_selected_action": [claimed.number]}, follow=True)

    assert b"0 dead deliveries were discarded" in page.content
    assert (1, []) == (outbox.backlog().waiting, written_down())


def test_what_cannot_be_written_down_is_not_done(dead, client_of, monkeypatch):
    """
    It is rolled back.
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
def test_the_outbox_of_the_mediator_is_shown_and_delivers_what_is_replayed(
    django_mediator, client_of, monkeypatch, alias, atomic
):
    """
    In whichever database it is, with or without a transaction around the request, at once.
    """
    from django.db import connections  # noqa: PLC0415 -- as above

    from cqrs_sync.integrations.django import DjangoOutbox, bootstrap  # noqa: PLC0415 -- as above

    monkeypatch.setitem(connections.settings[alias], "ATOMIC_REQUESTS", atomic)
    outbox, (claimed,) = outbox_with_dead(alias)
    broker = MemoryBroker()
    with bootstrap(cqrs.RequestMap(), using=alias, outbox=DjangoOutbox(alias), broker=broker, threads=1) as mediator:
        django_mediator(mediator)
        client = client_of(*ALL)
        assert str(claimed.number).encode() in client.get(DELIVERIES).content
        act(client, "replay", claimed.number)
        eventually(lambda: outbox.backlog().waiting == 0)

    assert [PAYLOAD] == [each.body for each in broker.published]
    assert [("user-0", str(claimed.number), "replayed")] == written_down()


# The inbox


@pytest.mark.parametrize(("permissions", "status"), [((), 403), (("view_receipt",), 200)])
def test_what_was_done_is_listed_and_nothing_else(client_of, permissions, status):
    """
    Two handlers of one message are two lines; no page shows one of them, and nobody changes any.
    """
    from cqrs_sync.integrations.django import DjangoInbox  # noqa: PLC0415 -- needs settings

    inbox = DjangoInbox("default")
    for handler in ("bill", "pack"):
        with inbox.once("/shop 1", handler) as receipt:
            receipt.keep(b"<secret>")
    client = client_of(*permissions)
    listed = client.get(RECEIPTS)

    assert status == listed.status_code
    if status == 200:
        page = listed.content.decode()
        assert ("bill" in page, "pack" in page, "secret" in page) == (True, True, False)
        assert 302 == client.get(f"{RECEIPTS}%2Fshop 1/change/").status_code
        assert 400 == client.get(f"{RECEIPTS}?result__contains=s").status_code
    assert 403 == client.get(f"{RECEIPTS}add/").status_code


def test_the_inbox_of_the_mediator_is_shown(client_of, django_mediator):
    """
    In whichever database it is.
    """
    from cqrs_sync.integrations.django import DjangoInbox, bootstrap  # noqa: PLC0415 -- as above

    with DjangoInbox("postgresql").once("1", "bill-elsewhere"):
        pass
    client = client_of("view_receipt")
    assert "bill-elsewhere" not in client.get(RECEIPTS).content.decode()
    mediator = bootstrap(using="postgresql", outbox=False, inbox=True, threads=1)
    with mediator:
        django_mediator(mediator)
        assert "bill-elsewhere" in client.get(RECEIPTS).content.decode()
