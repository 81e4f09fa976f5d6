"""What is fetched from Kafka on its way to whoever receives, without a Kafka."""

from __future__ import annotations

import attrs
import pytest

from cqrs_sync.broker import Group, IncomingMessage
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.kafka import (
    BaseKafkaSubscription,
    FetchBuffer,
    GroupTopics,
    PartitionOffsets,
    RecordGroups,
    due_in,
    incoming_message,
    kept_messages,
)


@attrs.frozen
class Record:
    offset: int
    headers: tuple = ()


class Client:
    """Remembers what it is asked for."""

    def __init__(self):
        self.paused = set()
        self.commits = []

    def offset_of(self, record):
        return record.offset

    def headers_of(self, record):
        return record.headers

    def message_of(self, record, *, kept):
        return incoming_message("t", b"%d" % record.offset, None, record.headers, kept=kept)

    def pause(self, places):
        self.paused |= set(places)

    def resume(self, places):
        self.paused -= set(places)

    def commit(self, finished):
        self.commits.append(dict(finished))


GROUP = Group("g", ("t",), delays=(60.0,), prefetch=1)


@pytest.fixture
def client():
    return Client()


@pytest.fixture
def intake(client):
    intake = FetchBuffer(client)
    holding = GroupTopics(GROUP).reading().holding
    intake.got([holding("a", "t", 0), holding("b", "t", 1), holding("later", "g.retry.60", 0)])
    return intake


def drain(intake):
    return intake.hand_out(10_000)


def test_nothing_is_handed_out_too_far_from_the_place_that_the_broker_keeps(intake, client):
    """
    What is finished and not confirmed does not count: somebody else would begin before it.
    """
    intake.take("a", [Record(n) for n in range(1500)])
    intake.take("b", [Record(7)])
    first, *others = drain(intake)
    for each in others:
        each.ack()
    intake.pause_and_resume()

    assert 1001 == 1 + len(others)
    assert {"a"} == client.paused
    assert [] == [commit for commit in client.commits if "a" in commit]
    first.ack()
    assert 1000 == client.commits[-1]["a"]
    assert [] == drain(intake)
    intake.committed("a", 1000)
    assert list(range(1000, 1500)) == [each.offset for each in drain(intake)]
    intake.pause_and_resume()
    assert set() == client.paused


def test_a_gap_in_the_offsets_stops_nobody(intake):
    """
    Where everything is finished and confirmed, the next record may be anywhere.
    """
    intake.take("a", [Record(0), Record(5000)])
    (first,) = intake.hand_out(2)
    first.ack()
    intake.committed("a", 1)
    intake.take("a", [Record(5001)])

    assert [5000, 5001] == [each.offset for each in drain(intake)]


def test_what_is_given_back_comes_in_its_order(intake):
    """
    The oldest comes first, whatever the order of giving back, and says that it was in hand.
    """
    intake.take("a", [Record(n) for n in range(4)])
    for each in drain(intake):
        each.nack()
    again = drain(intake)

    assert [0, 1, 2, 3] == [each.offset for each in again]
    assert {2} == {each.redeliveries for each in again}


def test_what_is_lost_is_not_handed_out_and_lapses(intake, client):
    """
    Neither what waits here nor what is in hand can be settled afterwards.
    """
    intake.take("a", [Record(n) for n in range(3)])
    first, second, third = drain(intake)
    third.nack()
    first.ack()
    finished = intake.lost(["a"])
    count = len(client.commits)
    assert second.lapsed
    second.ack()

    assert {"a": 1} == finished
    assert {} == intake.finished
    assert [] == drain(intake)
    assert count == len(client.commits)


def test_records_that_are_not_due_hold_up_their_own_place_only(intake, client):
    """
    A place is paused while it waits, others are not.
    """
    late = kept_messages([IncomingMessage("t", b"")], "g.retry.60", after=60, limit=10_000)[0]
    intake.take("later", [Record(0, tuple(late.headers)), Record(1)])
    intake.take("a", [Record(0)])
    intake.pause_and_resume()

    assert ["t[0]@0"] == [each.origin for each in drain(intake)]
    assert {"later"} == client.paused
    assert 59 < intake.idle_for(100) <= 60


def test_nothing_more_is_fetched_while_nobody_takes_what_there_is(intake, client):
    """
    Five hundred records are enough; all partitions go on when they are fewer.
    """
    intake.take("a", [Record(n) for n in range(500)])
    intake.pause_and_resume()
    assert {"a", "b", "later"} == client.paused
    intake.hand_out(1)
    intake.pause_and_resume()

    assert set() == client.paused


@pytest.mark.parametrize(
    ("written", "least", "most"),
    [(b"99999999999999", 5, 5), (b"0", 0, 0), (b"soon", 0, 0), (b"\xff", 0, 0)],
)
def test_nobody_waits_longer_than_the_delay(written, least, most):
    """
    Whatever the clock of the writer says, and whatever it has written.
    """
    assert least <= due_in([("cqrs-due", written)], 5) <= most


def test_of_what_is_too_large_the_beginning_is_kept_and_the_body_is_whole():
    """
    Small headers stay, large notes are cut between characters, large attributes are left out.
    """
    letter = IncomingMessage(
        "t", b"x" * 5000, "text/plain", "k", {"id": "1", "huge": "h" * 9000}, {"reason": "why", "error": "é" * 9000}
    )
    kept = kept_messages([letter], "g.dead", after=None, limit=8000)[0]
    back = incoming_message("g.dead", kept.body, b"k", kept.headers, kept=True)

    assert letter.body == back.body
    assert {"id": "1"} == back.attributes
    assert "why" == back.notes["reason"]
    assert {"é"} == set(back.notes["error"])
    assert 500 < len(back.notes["error"])
    assert 8000 >= len(kept.body) + sum(len(name) + len(value) for name, value in kept.headers)


def test_what_strangers_note_on_a_record_counts_for_nothing():
    """
    Only a group's own places tell which topic a message had, and how often it was tried.
    """
    headers = [("cqrs-topic", b"other"), ("cqrs-attempts", b"99"), ("CE_id", b"1")]
    message = incoming_message("t", b"", None, headers)

    assert ("t", {}, {"id": "1"}) == (message.topic, message.notes, message.attributes)


def test_places_are_called_after_their_group():
    """
    One for each delay, one for what comes at once, one for good.
    """
    places = GroupTopics(Group("billing", ("orders",), delays=(0.5, 60)))

    assert ("billing.retry.0", "billing.retry.0.5", "billing.retry.60", "billing.dead") == places.own
    assert "billing.retry.0" == places.place(0)
    assert "billing.dead" == places.place(None)
    # One partition: dead letters are read in their order.
    assert {"orders": 3, "billing.retry.0": 3, "billing.dead": 1}.items() <= places.wanted(3).items()
    with pytest.raises(ConfigurationError, match="no spaces"):
        GroupTopics(Group("no spaces", ("orders",)))


def test_a_partition_that_came_later_is_read_from_its_beginning():
    """
    So everything in it waits; in a topic that the group has never been in, nothing does.
    """
    places = GroupTopics(Group("g", ("known", "new")))
    backlog = places.backlog(
        {
            ("known", 0): PartitionOffsets(0, 10, 4),
            ("known", 1): PartitionOffsets(3, 10),
            ("new", 0): PartitionOffsets(0, 10),
            ("g.retry.0", 0): PartitionOffsets(2, 5),
        },
        [PartitionOffsets(0, 5, 3)],
    )

    assert {"known[0]": 6, "known[1]": 7, "new[0]": 0} == backlog.waiting
    assert (3, 2) == (backlog.delayed, backlog.dead)


@pytest.mark.parametrize("topic", ["", "a b", ".", "..", "x" * 250, "ü"])
def test_what_no_broker_takes_for_a_topic_is_refused(topic):
    """
    Before anything is asked or made.
    """
    with pytest.raises(ConfigurationError, match="cannot be a topic"):
        GroupTopics(attrs.evolve(GROUP, topics=("t", topic)))


def test_a_topic_may_be_called_what_brokers_take():
    """
    As long and as dotted as they let it be.
    """
    GroupTopics(attrs.evolve(GROUP, topics=("x" * 249, "...", ".a", "a.b_c-D9")))


# What another client would have to give


@pytest.mark.parametrize(
    ("kind", "methods"),
    [
        (RecordGroups, {"publish", "_admin", "_receiving", "_limit", "_patience"}),
        (BaseKafkaSubscription, {"close", "_fetch", "_check_connection"}),
    ],
)
def test_what_a_client_does_not_give_is_missed_when_it_is_made(kind, methods):
    """
    Each of them, and not when it is called for the first time.
    """
    given = {name: lambda self: None for name in methods} | {"__init__": lambda self: None}
    type("Whole", (kind,), given)()

    for name in methods:
        part = type("Part", (kind,), {each: given[each] for each in given if each != name})
        with pytest.raises(TypeError, match=name):
            part()
