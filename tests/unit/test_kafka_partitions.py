"""The buffer and the topics of a Kafka consumer, without a Kafka."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqrs_sync.broker import Group, IncomingMessage
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.kafka.broker import BaseKafkaBroker
from cqrs_sync.kafka.client import PartitionOffsets, ProducerClient, ProducerConnector, RecordBatch, TopicAdmin
from cqrs_sync.kafka.cloudevents import deferred_messages, incoming_message, seconds_until_due
from cqrs_sync.kafka.partitions import FetchBuffer, OffsetTracker
from cqrs_sync.kafka.subscription import BaseKafkaSubscription
from cqrs_sync.kafka.topology import GroupTopics


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

    def message_of(self, record, *, deferred):
        return incoming_message("t", b"%d" % record.offset, None, record.headers, deferred=deferred)

    def pause(self, places):
        self.paused |= set(places)

    def resume(self, places):
        self.paused -= set(places)

    def commit(self, finished):
        self.commits.append(dict(finished))


A, B, LATER = ("t", 0), ("t", 1), ("g.retry.60", 0)
GROUP = Group("g", ("t",), delays=(60.0,), prefetch=1)


@pytest.fixture
def client():
    return Client()


@pytest.fixture
def buffer(client):
    buffer = FetchBuffer(client)
    partition = GroupTopics(GROUP).plan().partition
    buffer.assign([partition("t", 0), partition("t", 1), partition("g.retry.60", 0)])
    return buffer


def drain(buffer):
    return buffer.poll(10_000)


@given(st.permutations(range(12)), st.integers(0, 12))
def test_the_offset_to_commit_is_that_of_the_first_unfinished_message(order, count):
    """
    In whatever order messages are finished, nothing unfinished is skipped and nothing finished is held up.
    """
    tracker = OffsetTracker()
    for offset in range(100, 112):
        tracker.deliver(offset)
    finished: set[int] = set()
    committed = 100

    for offset in order[:count]:
        finished.add(100 + offset)
        committed = tracker.finish(100 + offset) or committed

    assert next(offset for offset in range(100, 113) if offset not in finished) == committed


def test_nothing_is_handed_out_too_far_from_the_place_that_the_broker_keeps(buffer, client):
    """
    What is finished and not confirmed does not count: another member would begin before it.
    """
    buffer.add(A, [Record(n) for n in range(1500)])
    buffer.add(B, [Record(7)])
    first, *others = drain(buffer)
    for each in others:
        each.ack()
    buffer.pause_and_resume()

    assert 1001 == 1 + len(others)
    assert {A} == client.paused
    assert [] == [commit for commit in client.commits if A in commit]
    first.ack()
    assert 1000 == client.commits[-1][A]
    assert [] == drain(buffer)
    buffer.confirm_commit(A, 1000)
    assert list(range(1000, 1500)) == [each.offset for each in drain(buffer)]
    buffer.pause_and_resume()
    assert set() == client.paused


def test_a_gap_in_the_offsets_stops_nothing(buffer):
    """
    Where everything is finished and confirmed, the next record may be anywhere.
    """
    buffer.add(A, [Record(0), Record(5000)])
    (first,) = buffer.poll(2)
    first.ack()
    buffer.confirm_commit(A, 1)
    buffer.add(A, [Record(5001)])

    assert [5000, 5001] == [each.offset for each in drain(buffer)]


def test_what_is_given_back_comes_in_its_order(buffer):
    """
    The oldest comes first, whatever the order of giving back, and says that it was delivered before.
    """
    buffer.add(A, [Record(n) for n in range(4)])
    for each in drain(buffer):
        each.nack()
    again = drain(buffer)

    assert [0, 1, 2, 3] == [each.offset for each in again]
    assert {2} == {each.redeliveries for each in again}


def test_what_is_lost_is_not_handed_out_and_lapses(buffer, client):
    """
    Neither what waits here nor what is in flight can be settled afterwards.
    """
    buffer.add(A, [Record(n) for n in range(3)])
    first, second, third = drain(buffer)
    third.nack()
    first.ack()
    finished = buffer.revoke([A])
    count = len(client.commits)
    assert second.is_stale
    second.ack()

    assert {A: 1} == finished
    assert {} == buffer.uncommitted
    assert [] == drain(buffer)
    assert count == len(client.commits)


def test_records_that_are_not_due_hold_up_their_own_place_only(buffer, client):
    """
    A place is paused while it waits, others are not.
    """
    late = deferred_messages([IncomingMessage("t", b"")], "g.retry.60", after=60, limit=10_000)[0]
    buffer.add(LATER, [Record(0, tuple(late.headers)), Record(1)])
    buffer.add(A, [Record(0)])
    buffer.pause_and_resume()

    assert ["t[0]@0"] == [each.origin for each in drain(buffer)]
    assert {LATER} == client.paused
    assert 59 < buffer.idle_timeout(100) <= 60


def test_nothing_more_is_fetched_while_enough_waits(buffer, client):
    """
    Five hundred records are enough; all partitions go on when they are fewer.
    """
    buffer.add(A, [Record(n) for n in range(500)])
    buffer.pause_and_resume()
    assert {A, B, LATER} == client.paused
    buffer.poll(1)
    buffer.pause_and_resume()

    assert set() == client.paused


@pytest.mark.parametrize(
    ("written", "least", "most"),
    [(b"99999999999999", 5, 5), (b"0", 0, 0), (b"soon", 0, 0), (b"\xff", 0, 0)],
)
def test_no_record_waits_longer_than_the_delay(written, least, most):
    """
    Whatever the clock of the writer says, and whatever it has written.
    """
    assert least <= seconds_until_due([("cqrs-due", written)], 5) <= most


def test_of_what_is_too_large_the_beginning_is_kept_and_the_body_is_whole():
    """
    Small headers stay, large notes are cut between characters, large attributes are left out.
    """
    letter = IncomingMessage(
        "t", b"x" * 5000, "text/plain", "k", {"id": "1", "huge": "h" * 9000}, {"reason": "why", "error": "é" * 9000}
    )
    kept = deferred_messages([letter], "g.dead", after=None, limit=8000)[0]
    back = incoming_message("g.dead", kept.body, b"k", kept.headers, deferred=True)

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
    assert "billing.retry.0" == places.retry_topic(0)
    assert "billing.dead" == places.dead
    # One partition: dead letters are read in their order.
    assert {"orders": 3, "billing.retry.0": 3, "billing.dead": 1}.items() <= places.partition_counts(3).items()
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


@pytest.mark.parametrize("topic", ["a b", ".", "..", "x" * 250, "ü"])
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


_CONSUMER = {
    *("offset_of", "headers_of", "message_of", "pause", "resume", "commit"),
    *("find_partitions", "committed_offsets", "end_offsets", "commit_before_joining"),
}
_BATCH = {"send", "wait", "answers"}
_PRODUCER = {
    *("new_batch", "find_topics", "action_after", "delivery_error"),
    *("finish", "abandon", "close"),
}


@pytest.mark.parametrize(
    ("kind", "methods"),
    [
        (BaseKafkaBroker, {"_read_options", "_producers", "_admin", "_subscribe"}),
        (BaseKafkaSubscription, {"close", "_fetch", "_check_connection", *_CONSUMER}),
        (ProducerClient, _PRODUCER),
        (ProducerConnector, {"connect"}),
        (RecordBatch, _BATCH),
        (TopicAdmin, {"partition_counts", "create_topics", "offsets"}),
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
