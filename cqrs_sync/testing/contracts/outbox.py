"""
The promises of an outbox as a test class.

```python
class TestMyOutbox(OutboxContract):
    @pytest.fixture
    def outbox(self):
        return MyOutbox(...)             # empty, and used by no other test

    @pytest.fixture
    def atomic(self):
        return my_database.transaction   # a context manager; inside another one it is a savepoint
```

Give the fixtures `lenient_outbox` and `cut_connections` as well, if the backend can have them.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import pytest

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import LONGEST_ERROR, EventTooLarge, NotInTransaction
from cqrs_sync.outbox import LONGEST, ClaimedDelivery, DeadLetterSelection, Outbox, OutboxEntry, Outcome, OutcomeKind
from cqrs_sync.testing.contracts.broker import message
from cqrs_sync.testing.contracts.transactions import Atomic, rolled_back
from cqrs_sync.testing.waiting import BOUND, eventually, in_forked_child, in_threads

#: Seconds of a lease that no test outlives, of one that is over at once, and of one in which something gets done.
LONG, SHORT, MOMENT = 600.0, 0.03, 1.5


@attrs.frozen
class OutboxFeatures:
    """What an outbox can do."""

    #: Several transactions may write at a time and commit in any order. SQLite allows one.
    has_concurrent_writers: bool = True
    #: A block inside a block may fail alone.
    has_savepoints: bool = True
    #: Other processes see its messages.
    is_shared: bool = True
    #: Larger bodies are refused.
    max_bytes: int = 1_048_576
    #: At most this many bytes are claimed at a time.
    max_claimed_bytes: int = 16 * 1024 * 1024


def published(
    body: str = "", *, key: str | None = None, topic: str = "orders", handlers: Sequence[str] = ()
) -> OutboxEntry:
    """Make an entry for the broker, and for these handlers as well."""
    return OutboxEntry(message(topic, body.encode(), key=key), publish=True, handlers=tuple(handlers))


def handled(body: str = "", *, key: str | None = None, handlers: Sequence[str] = ("bill",)) -> OutboxEntry:
    """Make an entry for these handlers."""
    return OutboxEntry(message("", body.encode(), key=key), handlers=tuple(handlers))


def keep(outbox: Outbox, atomic: Atomic, *entries: OutboxEntry) -> None:
    """Add these in one transaction."""
    with atomic():
        outbox.add(entries)


def kept(outbox: Outbox, atomic: Atomic, *entries: OutboxEntry) -> list[ClaimedDelivery]:
    """Add these for the broker, and claim them."""
    keep(outbox, atomic, *entries)
    return list(outbox.claim(100, LONG))


def bodies(claimed: Iterable[ClaimedDelivery]) -> list[str]:
    """Return the bodies of what was claimed."""
    return [each.message.body.decode() for each in claimed]


def claim(outbox: Outbox, limit: int = 100, *, lease: float = LONG) -> list[str]:
    """Claim for the broker, and return the bodies."""
    return bodies(outbox.claim(limit, lease))


def done(claimed: Iterable[ClaimedDelivery]) -> list[Outcome]:
    """Make the outcomes of what went well."""
    return [Outcome(each, OutcomeKind.DONE) for each in claimed]


def delivered(outbox: Outbox, limit: int) -> list[ClaimedDelivery]:
    """Claim for the broker and settle, `limit` at a time, until nothing is left."""
    found: list[ClaimedDelivery] = []
    while claimed := outbox.claim(limit, LONG):
        outbox.settle(done(claimed))
        found.extend(claimed)
    return found


def again(claimed: ClaimedDelivery, *, after: float = 0.0, counted: bool = True) -> Outcome:
    """Make the outcome of a delivery to try again."""
    return Outcome(claimed, OutcomeKind.RETRY, after=after, counted=counted, reason="slow", error="TimeoutError: slow")


def dead(claimed: ClaimedDelivery, *, blocks: bool = True, reason: str = "refused") -> Outcome:
    """Make the outcome of a delivery to give up."""
    return Outcome(claimed, OutcomeKind.DEAD, blocks=blocks, reason=reason, error=f"MessageRejected: {reason}")


@contextmanager
def open_elsewhere(outbox: Outbox, atomic: Atomic, *entries: OutboxEntry) -> Iterator[Callable[[], None]]:
    """Add these in a transaction of another thread; what is yielded commits it."""
    added, may_commit = threading.Event(), threading.Event()

    def run() -> None:
        with atomic():
            outbox.add(entries)
            added.set()
            may_commit.wait(BOUND)
        outbox.release_connection()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert added.wait(BOUND)

    def commit() -> None:
        may_commit.set()
        thread.join(BOUND)
        assert not thread.is_alive()

    try:
        yield commit
    finally:
        commit()


_TEXTS = {
    "plain": "order 1",
    "of-accents": "Zoë — naïve",
    "of-emoji": "👩‍🚀🇿🇼",
    "of-control-characters": "\x01\t\r\n\x1f\x7f\u2028",
    "of-sql": "'; DROP TABLE cqrs_message; -- %s %% ? :x {}",
    "of-255-characters": "🙂" * LONGEST,
    "empty": "",
}
_BODIES = {
    "every-byte": bytes(range(256)),
    "empty": b"",
    "large": b"x" * 100_000,
    "json": '{"name":"Zoë 🙂"}'.encode(),
}


def _in_another_thread(outbox: Outbox, action: Callable[[], Any]) -> Any:
    answers: list[Any] = []

    def run() -> None:
        answers.append(action())
        outbox.release_connection()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    return answers[0] if answers else None


def _works(action: Callable[[], object]) -> bool:
    try:
        action()
    except Exception:  # noqa: BLE001 -- whatever a broken connection raises where it is noticed
        return False
    return True


_ALL = DeadLetterSelection()


class OutboxContract:
    """What every Outbox promises."""

    features: OutboxFeatures = OutboxFeatures()

    @pytest.fixture
    def lenient_outbox(self) -> Outbox | None:
        """An outbox on the same database with `OnNoTransaction.OPEN`; None where there is none."""
        return None

    @pytest.fixture
    def cut_connections(self) -> Callable[[], object] | None:
        """A function that has the server close all connections of this process; None where there are none."""
        return None

    # Adding, in the caller's transaction

    def test_what_was_added_is_there_after_the_commit(self, outbox: Outbox, atomic: Atomic) -> None:
        """All of it can be claimed after the commit, and nothing before."""
        with atomic():
            outbox.add([published("1"), published("2")])
            if self.features.has_concurrent_writers:
                assert [] == _in_another_thread(outbox, lambda: claim(outbox))
            outbox.add([published("3")])

        assert ["1", "2", "3"] == claim(outbox)

    def test_what_was_rolled_back_is_never_there(self, outbox: Outbox, atomic: Atomic) -> None:
        """What did not happen is not published."""
        with rolled_back(atomic):
            outbox.add([published("never"), handled("never")])
        keep(outbox, atomic, published("committed"))

        assert ["committed"] == claim(outbox)
        assert [] == list(outbox.claim(100, 60, handlers=["bill"]))

    def test_a_rolled_back_savepoint_takes_its_own_along(self, outbox: Outbox, atomic: Atomic) -> None:
        """And nothing else."""
        if not self.features.has_savepoints:
            return
        with atomic():
            outbox.add([published("before")])
            with rolled_back(atomic):
                outbox.add([published("never")])
            with atomic():
                outbox.add([published("inside")])
            outbox.add([published("after")])

        assert ["before", "inside", "after"] == claim(outbox)

    def test_outside_of_a_transaction_nothing_is_kept(self, outbox: Outbox) -> None:
        """`add` raises NotInTransaction, with the names of the messages."""
        with pytest.raises(NotInTransaction, match=r"contract\.happened"):
            outbox.add([published("1")])

        assert [] == claim(outbox)

    def test_what_is_added_alone_has_a_transaction_of_its_own(self, outbox: Outbox) -> None:
        """It can be claimed when the call returns."""
        outbox.add([published("1"), published("2")], own_transaction=True)

        assert ["1", "2"] == claim(outbox)
        assert not outbox.transactions.active()

    def test_an_outbox_that_opens_transactions_needs_none(self, lenient_outbox: Outbox | None, atomic: Atomic) -> None:
        """It joins a transaction that is open."""
        if lenient_outbox is None:
            return
        lenient_outbox.add([published("1")])
        with rolled_back(atomic):
            lenient_outbox.add([published("never")])

        assert ["1"] == claim(lenient_outbox)

    def test_each_target_has_a_delivery(self, outbox: Outbox, atomic: Atomic) -> None:
        """The broker has one delivery and each durable handler has one, all with the same message."""
        entry = published("1", handlers=["bill", "pack"])
        keep(outbox, atomic, entry, handled("2", handlers=["pack"]))

        assert ["1"] == claim(outbox)
        deliveries = [*outbox.claim(100, 60, handlers=["bill"]), *outbox.claim(100, 60, handlers=["pack"])]
        assert [("bill", "1"), ("pack", "1"), ("pack", "2")] == [
            (each.handler, each.message.body.decode()) for each in deliveries
        ]
        assert entry.message == deliveries[1].message

    @pytest.mark.parametrize("text", _TEXTS.values(), ids=_TEXTS)
    def test_texts_come_back_as_they_were(self, outbox: Outbox, atomic: Atomic, text: str) -> None:
        """Key, type, topic, content type and headers may hold any text."""
        before = OutgoingMessage(
            id=message("").id, topic=text, type=text, body=b"{}", content_type=text, key=text,
            attributes={"subject": text, "nul": "a\0b", text or "empty": "1"},
        )  # fmt: skip

        assert [before] == [each.message for each in kept(outbox, atomic, OutboxEntry(before, publish=True))]

    @pytest.mark.parametrize("body", _BODIES.values(), ids=_BODIES)
    def test_bodies_come_back_as_they_were(self, outbox: Outbox, atomic: Atomic, body: bytes) -> None:
        """Each byte of a body comes back, as `bytes`."""
        claimed = kept(outbox, atomic, OutboxEntry(message("orders", body), publish=True))

        assert [body] == [each.message.body for each in claimed]
        assert bytes is type(claimed[0].message.body)

    def test_ids_that_differ_in_case_are_two(self, outbox: Outbox, atomic: Atomic) -> None:
        """The outbox never takes a message for another."""
        entries = [
            OutboxEntry(attrs.evolve(message("orders", identity.encode()), id=identity), publish=True)
            for identity in ("abc", "ABC", "äbc")
        ]

        assert ["abc", "ABC", "äbc"] == [each.message.id for each in kept(outbox, atomic, *entries)]

    @pytest.mark.parametrize("field", ["id", "topic", "type", "key", "content_type"])
    @pytest.mark.parametrize("bad", ["too-long", "nul"])
    def test_what_does_not_fit_is_refused_before_anything_is_written(
        self, outbox: Outbox, atomic: Atomic, field: str, bad: str
    ) -> None:
        """The transaction can be used as before."""
        text = "x" * (LONGEST + 1) if bad == "too-long" else "x\0y"
        changed: Any = {field: text}
        wrong = attrs.evolve(message("orders"), **changed)
        with atomic():
            with pytest.raises(EventTooLarge):
                outbox.add([published("first"), OutboxEntry(wrong, publish=True)])
            outbox.add([published("second")])

        assert ["second"] == claim(outbox)

    def test_what_is_too_large_is_refused_before_anything_is_written(self, outbox: Outbox, atomic: Atomic) -> None:
        """A body of exactly the largest size is kept."""
        largest = b"x" * self.features.max_bytes
        with atomic():
            with pytest.raises(EventTooLarge, match=r"contract\.happened"):
                outbox.add([published("first"), OutboxEntry(message("orders", largest + b"x"), publish=True)])
            outbox.add([OutboxEntry(message("orders", largest), publish=True)])

        assert [largest] == [each.message.body for each in outbox.claim(100, 60)]

    def test_any_number_is_kept_at_once(self, outbox: Outbox, atomic: Atomic) -> None:
        """One call keeps any number of messages, in their order."""
        names = [str(number) for number in range(1000)]
        keep(outbox, atomic, *map(published, names))

        assert names == claim(outbox, 2000)

    def test_any_number_of_bytes_is_kept_at_once(self, outbox: Outbox, atomic: Atomic) -> None:
        """One call keeps more bytes than a database takes in one statement."""
        large = "x" * self.features.max_bytes
        keep(outbox, atomic, *(published(large) for _ in range(20)))
        found: list[ClaimedDelivery] = []

        while claimed := outbox.claim(100, 60):
            found.extend(claimed)
        assert 20 == len(found)

    def test_a_commit_elsewhere_is_not_waited_for(self, outbox: Outbox, atomic: Atomic) -> None:
        """An open transaction holds up neither those that add nor those that claim."""
        if not self.features.has_concurrent_writers:
            return
        with open_elsewhere(outbox, atomic, published("late", key="k")) as commit:
            keep(outbox, atomic, published("soon", key="k"), published("other"))
            assert ["soon", "other"] == claim(outbox)
            commit()

        assert ["late"] == claim(outbox)

    # Threads and processes

    def test_any_thread_may_add(self, outbox: Outbox, atomic: Atomic) -> None:
        """Each thread adds in its own transaction."""

        def add(thread: int) -> None:
            for number in range(10):
                keep(outbox, atomic, published(f"{thread}/{number}"))
            outbox.release_connection()

        in_threads(*(lambda thread=thread: add(thread) for thread in range(8)), timeout=60)

        assert sorted(f"{thread}/{number}" for thread in range(8) for number in range(10)) == sorted(claim(outbox))

    def test_a_forked_child_uses_it(self, outbox: Outbox, atomic: Atomic) -> None:
        """The child makes connections of its own, and the parent keeps its own."""
        keep(outbox, atomic, published("of the parent"), published("for the child"))
        first = outbox.claim(1, 60)

        def child() -> None:
            second = outbox.claim(10, 60)
            assert ["for the child"] == bodies(second)
            assert 1 == outbox.settle(done(second))
            keep(outbox, atomic, published("of the child"))

        assert 0 == in_forked_child(child, timeout=20)

        assert 1 == outbox.settle(done(first))
        expected = ["of the child"] if self.features.is_shared else ["for the child"]
        assert expected == claim(outbox)

    def test_a_forked_child_and_its_parent_use_it_at_once(self, outbox: Outbox, atomic: Atomic) -> None:
        """Neither uses a connection of the other."""

        def work(name: str) -> None:
            for number in range(25):
                keep(outbox, atomic, published(f"{name}/{number}"))
                outbox.settle(done(outbox.claim(1, LONG)))

        work("before")
        child = multiprocessing.get_context("fork").Process(target=work, args=("child",))
        child.start()
        try:
            work("parent")
            child.join(20)
        finally:
            child.kill()
            child.join()

        assert 0 == child.exitcode
        # What both tried to claim at the same time may be left.
        assert len(delivered(outbox, 100)) < 50
        assert 0 == outbox.backlog().waiting

    def test_a_child_forked_inside_a_transaction_leaves_it_alone(self, outbox: Outbox, atomic: Atomic) -> None:
        """The transaction belongs to the parent, and commits."""
        with atomic():
            outbox.add([published("before")])
            assert 0 == in_forked_child(lambda: None, timeout=20)
            outbox.add([published("after")])

        assert ["before", "after"] == claim(outbox)

    def test_connections_that_the_server_has_closed_are_replaced(
        self, outbox: Outbox, atomic: Atomic, cut_connections: Callable[[], object] | None
    ) -> None:
        """At most one call fails for each closed connection."""
        if cut_connections is None:
            return
        keep(outbox, atomic, published("1"))
        first = outbox.claim(1, 60)
        cut_connections()

        eventually(lambda: _works(lambda: keep(outbox, atomic, published("2"))))
        cut_connections()
        assert eventually(lambda: _works(lambda: outbox.settle(done(first))))
        assert ["2"] == claim(outbox)

    # Claiming

    def test_the_oldest_are_claimed_first(self, outbox: Outbox, atomic: Atomic) -> None:
        """`claim` returns as many as were asked for, the oldest first, each once."""
        for number in range(7):
            keep(outbox, atomic, published(str(number)))

        assert [["0", "1", "2"], ["3", "4", "5"], ["6"], []] == [claim(outbox, 3) for _ in range(4)]

    def test_what_is_claimed_says_what_it_is(self, outbox: Outbox, atomic: Atomic) -> None:
        """Numbers grow, attempts are counted, and the deliveries of one claim share a token, which no log shows."""
        entries = [published("1", topic="orders"), published("2", topic="bills")]
        claimed = kept(outbox, atomic, *entries)
        other = kept(outbox, atomic, published("3"))

        assert [entry.message for entry in entries] == [each.message for each in claimed]
        assert [("orders", None, 1), ("bills", None, 1)] == [(it.target, it.handler, it.attempts) for it in claimed]
        assert claimed[0].number < claimed[1].number < other[0].number
        assert (1, 2) == (len({each.token for each in claimed}), len({each.token for each in [*claimed, *other]}))
        assert claimed[0].token not in repr(claimed[0])

    def test_a_claim_is_bounded_in_bytes(self, outbox: Outbox, atomic: Atomic) -> None:
        """The next claim returns what was left out."""
        large, bound = "x" * self.features.max_bytes, self.features.max_claimed_bytes
        count = bound // self.features.max_bytes + 4
        for _ in range(count):
            keep(outbox, atomic, published(large))
        sizes = [len(outbox.claim(100, LONG)) for _ in range(2)]

        assert count == sum(sizes)
        assert 0 < sizes[0] * len(large) <= bound

    def test_a_delivery_is_claimed_by_one_at_a_time(self, outbox: Outbox, atomic: Atomic) -> None:
        """Eight threads race: none claims what another one has, and nothing is left in the end."""
        entries = [published(str(number), key=None if number % 2 else str(number)) for number in range(160)]
        keep(outbox, atomic, *entries)
        claimed: list[ClaimedDelivery] = []

        def race() -> None:
            # Nothing can be claimed for a moment while another thread locks it or gives it back.
            while len(claimed) < len(entries):
                claimed.extend(outbox.claim(7, LONG))
            outbox.release_connection()

        in_threads(*[race] * 8, timeout=60)

        assert Counter(str(number) for number in range(160)) == Counter(bodies(claimed))
        assert {1} == {each.attempts for each in claimed}
        assert len(entries) == outbox.settle(done(claimed))

    def test_handlers_and_the_broker_claim_their_own(self, outbox: Outbox, atomic: Atomic) -> None:
        """A handler's deliveries are claimed by its name; those of other handlers wait."""
        keep(outbox, atomic, published("1"), handled("2", handlers=["bill"]), handled("3", handlers=["pack"]))

        assert ["1"] == claim(outbox)
        assert [] == list(outbox.claim(10, LONG, handlers=[]))
        assert [] == list(outbox.claim(10, LONG, handlers=["unknown"]))
        assert ["3"] == bodies(outbox.claim(10, LONG, handlers=["unknown", "pack"]))
        assert ["2"] == bodies(outbox.claim(10, LONG, handlers=("bill", "pack")))

    def test_a_handler_may_be_called_like_a_topic(self, outbox: Outbox, atomic: Atomic) -> None:
        """A handler and a topic of one name are two targets, also for order."""
        keep(outbox, atomic, published("1", topic="same", key="k", handlers=["same"]))

        assert ["1"] == bodies(outbox.claim(10, LONG, handlers=["same"]))
        assert ["1"] == claim(outbox)

    def test_targets_may_be_left_alone(self, outbox: Outbox, atomic: Atomic) -> None:
        """`claim` leaves out the topics, or handlers, of `exclude`."""
        keep(
            outbox, atomic, published("1", topic="a"), published("2", topic="b"), published("3", topic="c"),
            handled("4", handlers=["d"]), handled("5", handlers=["e"]),
        )  # fmt: skip

        assert ["2"] == bodies(outbox.claim(10, LONG, exclude={"a", "c"}))
        assert ["5"] == bodies(outbox.claim(10, LONG, handlers=["d", "e"], exclude=["d"]))
        assert ["1", "3"] == claim(outbox)

    # Leases

    def test_what_is_not_settled_in_time_is_claimed_by_others(self, outbox: Outbox, atomic: Atomic) -> None:
        """The earlier attempt counts, and the earlier claim can neither settle nor renew."""
        keep(outbox, atomic, published("1"))
        (late,) = outbox.claim(10, SHORT)
        (now,) = eventually(lambda: outbox.claim(10, LONG))

        assert (late.number, 2) == (now.number, now.attempts)
        assert late.token != now.token
        assert [0, 0, 0] == [outbox.settle([outcome]) for outcome in (*done([late]), again(late), dead(late))]
        assert 0 == outbox.renew([late.token], LONG)
        assert 0 == outbox.backlog().dead
        assert 1 == outbox.settle(done([now]))

    def test_the_attempt_is_counted_when_it_is_claimed(self, outbox: Outbox, atomic: Atomic) -> None:
        """A process that dies with a claim has used an attempt."""
        keep(outbox, atomic, published("1"))

        attempts = [eventually(lambda: outbox.claim(10, SHORT))[0].attempts for _ in range(4)]

        assert [1, 2, 3, 4] == attempts

    def test_a_lease_that_is_over_is_valid_until_the_next_claim(self, outbox: Outbox, atomic: Atomic) -> None:
        """A claim whose lease is over may settle as long as there is no later one."""
        keep(outbox, atomic, published("1"))
        claimed = outbox.claim(10, 0.0)
        eventually(lambda: outbox.next_due([]) == 0)

        assert 1 == outbox.settle(done(claimed))
        assert [] == claim(outbox)

    def test_a_claim_is_renewed(self, outbox: Outbox, atomic: Atomic) -> None:
        """`renew` extends the lease from now on, and leaves other claims alone."""
        keep(outbox, atomic, published("1"), published("2"), published("3"))
        two, one = outbox.claim(2, MOMENT), outbox.claim(1, MOMENT)

        assert 0 == outbox.renew([], LONG)
        assert 0 == outbox.renew(["unknown"], LONG)
        assert 2 == outbox.renew([two[0].token, "unknown"], LONG)
        assert ["3"] == eventually(lambda: claim(outbox))
        assert 0 == outbox.renew([one[0].token], LONG)
        assert 2 == outbox.settle(done(two))

    # When something is due

    def test_nothing_is_due_where_nothing_waits(self, outbox: Outbox, atomic: Atomic) -> None:
        """`next_due` returns None, also where all is delivered or only other handlers have something."""
        assert outbox.next_due(["bill"]) is None
        outbox.settle(done(kept(outbox, atomic, published("1"))))
        keep(outbox, atomic, handled("2", handlers=["pack"]))

        assert [None, None] == [outbox.next_due(["bill"]), outbox.next_due([])]

    def test_what_may_be_claimed_is_due_now(self, outbox: Outbox, atomic: Atomic) -> None:
        """`next_due` looks at the broker and at the handlers that it is given."""
        keep(outbox, atomic, handled("1", handlers=["bill"]))
        assert [0, None] == [outbox.next_due(["bill", "pack"]), outbox.next_due(["pack"])]
        keep(outbox, atomic, published("2"))

        assert 0 == outbox.next_due(["pack"])

    def test_what_is_claimed_is_due_at_the_end_of_its_lease(self, outbox: Outbox, atomic: Atomic) -> None:
        """The first lease that ends counts; a retry is due at its own time."""
        keep(outbox, atomic, published("1"), published("2"))
        (first,) = outbox.claim(1, 500.0)
        outbox.claim(1, 1000.0)
        due = outbox.next_due([])
        assert due is not None
        assert 400 < due < 501
        outbox.settle([again(first, after=100.0)])
        due = outbox.next_due([])

        assert due is not None
        assert 90 < due < 101

    def test_nothing_is_due_that_waits_for_what_is_dead(self, outbox: Outbox, atomic: Atomic) -> None:
        """A blocked delivery is not due, even where it was tried before."""
        first, second = kept(outbox, atomic, published("1", key="k"), published("2", key="k"))
        outbox.settle([dead(first), again(second)])
        keep(outbox, atomic, published("3", key="k"))

        assert [None, []] == [outbox.next_due([]), claim(outbox)]

    # Order of one key and target

    def test_a_run_of_a_key_is_claimed_at_once_for_the_broker(self, outbox: Outbox, atomic: Atomic) -> None:
        """In order."""
        keep(outbox, atomic, *(published(str(number), key="k") for number in range(10)))

        assert [str(number) for number in range(10)] == claim(outbox)

    def test_a_handler_gets_one_of_a_key_at_a_time(self, outbox: Outbox, atomic: Atomic) -> None:
        """The next one can be claimed when that is done; handlers do not wait for each other."""
        names = ["bill", "pack"]
        keep(outbox, atomic, *(handled(str(number), key="k", handlers=names) for number in range(3)))
        claimed = outbox.claim(10, LONG, handlers=names)
        assert [("bill", "0"), ("pack", "0")] == [(each.handler, each.message.body.decode()) for each in claimed]
        assert [] == list(outbox.claim(10, LONG, handlers=names))
        outbox.settle(done(claimed[1:]))
        (after,) = outbox.claim(10, LONG, handlers=names)

        assert ("pack", "1") == (after.handler, after.message.body.decode())

    def test_nothing_passes_an_earlier_one_that_is_claimed(self, outbox: Outbox, atomic: Atomic) -> None:
        """Other keys, other topics and messages without a key pass it."""
        keep(outbox, atomic, published("1", key="k"))
        first = outbox.claim(10, LONG)
        keep(
            outbox, atomic, published("2", key="k"), published("3", key="other"), published("4"),
            published("5", key="k", topic="bills"),
        )  # fmt: skip

        assert ["3", "4", "5"] == claim(outbox)
        outbox.settle(done(first))
        assert ["2"] == claim(outbox)

    def test_nothing_passes_an_earlier_one_whose_lease_is_over(self, outbox: Outbox, atomic: Atomic) -> None:
        """Both are claimed together."""
        keep(outbox, atomic, published("1", key="k"), published("2", key="k"))
        outbox.claim(1, SHORT)

        assert ["1", "2"] == eventually(lambda: claim(outbox))

    def test_nothing_passes_an_earlier_one_that_is_tried_again_later(self, outbox: Outbox, atomic: Atomic) -> None:
        """Deliveries of the same claim wait as well; other keys do not."""
        first, second, other = kept(
            outbox, atomic, published("1", key="k"), published("2", key="k"), published("3", key="other")
        )
        outbox.settle([again(first, after=MOMENT), again(second, counted=False), again(other, counted=False)])
        assert ["3"] == claim(outbox)

        assert ["1", "2"] == eventually(lambda: claim(outbox))

    def test_a_blocked_key_leaves_room_for_others(self, outbox: Outbox, atomic: Atomic) -> None:
        """Any number may wait behind a blocked key: a claim of one returns the first that may be claimed."""
        first = kept(outbox, atomic, *(published(str(number), key="k") for number in range(50)))
        outbox.settle([again(first[0], after=LONG), *(again(each, counted=False) for each in first[1:])])
        keep(outbox, atomic, published("free", key="other"))

        assert [["free"], []] == [claim(outbox, 1), claim(outbox, 1)]

    def test_what_has_no_key_waits_for_nothing(self, outbox: Outbox, atomic: Atomic) -> None:
        """Messages without a key never wait; the empty string is a key."""
        first, second, empty, *_ = kept(
            outbox, atomic, published("1"), published("2"), published("3", key=""), published("4", key="")
        )
        outbox.settle([dead(first), again(second, after=LONG), dead(empty)])
        keep(outbox, atomic, published("5"), published("6", key=""))

        assert ["5"] == claim(outbox)

    def test_keys_that_differ_in_case_are_two(self, outbox: Outbox, atomic: Atomic) -> None:
        """So are keys that differ in an accent, or in a space at the end."""
        keep(outbox, atomic, published("1", key="k"))
        outbox.claim(1, LONG)
        keep(outbox, atomic, *(published(key, key=key) for key in ("K", "ḱ", "k ", "k\t")))

        assert ["K", "ḱ", "k ", "k\t"] == claim(outbox)

    def test_order_is_kept_whichever_thread_claims(self, outbox: Outbox, atomic: Atomic) -> None:
        """Eight threads deliver, and give back some: each key arrives in the order in which it was added."""
        expected = {f"key {number}": [str(order) for order in range(25)] for number in range(8)}
        for order in range(25):
            keep(outbox, atomic, *(published(str(order), key=key) for key in expected))
        seen: dict[str, list[str]] = {key: [] for key in expected}
        count = threading.Semaphore(200)

        def deliver(thread: int) -> None:
            rounds = 0
            while sum(map(len, seen.values())) < 200:
                rounds += 1
                claimed = outbox.claim(thread + 1, LONG)
                # Every third time as if the broker were away.
                back = rounds % 3 == 0
                for each in () if back else claimed:
                    assert count.acquire(blocking=False)
                    seen[each.message.key or ""].append(each.message.body.decode())
                outcomes = [again(each, counted=bool(thread % 2)) for each in claimed] if back else done(claimed)
                assert len(claimed) == outbox.settle(outcomes)
            outbox.release_connection()

        in_threads(*(lambda thread=thread: deliver(thread) for thread in range(8)), timeout=60)

        assert expected == seen

    # Late commits

    def test_what_commits_late_is_claimed_late(self, outbox: Outbox, atomic: Atomic) -> None:
        """It is never skipped, although later messages were delivered already."""
        if not self.features.has_concurrent_writers:
            return
        with open_elsewhere(outbox, atomic, published("1", key="k"), published("2")) as commit:
            outbox.settle(done(kept(outbox, atomic, published("3", key="k"), published("4"))))
            assert [] == claim(outbox)
            commit()

        assert ["1", "2"] == claim(outbox)

    def test_what_commits_late_is_not_stuck_behind_what_was_tried(self, outbox: Outbox, atomic: Atomic) -> None:
        """Both are claimed in order, however few are claimed at a time."""
        if not self.features.has_concurrent_writers:
            return
        with open_elsewhere(outbox, atomic, published("late", key="k")) as commit:
            tried = kept(outbox, atomic, published("1", key="k"), published("2", key="k"))
            outbox.settle([again(each) for each in tried])
            commit()

        assert ["late", "1", "2"] == bodies(delivered(outbox, 1))

    def test_what_commits_late_is_claimed_while_a_later_one_is_on_its_way(self, outbox: Outbox, atomic: Atomic) -> None:
        """It does not wait for the later one, whose claim stays valid."""
        if not self.features.has_concurrent_writers:
            return
        with open_elsewhere(outbox, atomic, published("late", key="k")) as commit:
            soon = kept(outbox, atomic, published("soon", key="k"))
            commit()

        assert ["late"] == claim(outbox)
        assert 1 == outbox.settle(done(soon))

    def test_what_commits_late_is_run_by_its_handler(self, outbox: Outbox, atomic: Atomic) -> None:
        """It runs before a later one of its key that is tried again."""
        if not self.features.has_concurrent_writers:
            return
        with open_elsewhere(outbox, atomic, handled("late", key="k")) as commit:
            keep(outbox, atomic, handled("soon", key="k"))
            outbox.settle([again(each) for each in outbox.claim(10, LONG, handlers=["bill"])])
            commit()

        late = eventually(lambda: outbox.claim(1, LONG, handlers=["bill"]))
        assert ["late"] == bodies(late)
        outbox.settle(done(late))
        assert ["soon"] == bodies(outbox.claim(1, LONG, handlers=["bill"]))

    # Settling

    def test_what_is_done_is_gone(self, outbox: Outbox, atomic: Atomic) -> None:
        """Settling it again changes nothing."""
        claimed = kept(outbox, atomic, published("1"), published("2"))

        assert [0, 1, 1, 0] == [outbox.settle(done(some)) for some in ([], claimed[:1], claimed, claimed)]
        assert outbox.next_due([]) is None

    def test_what_is_to_be_tried_again_is_claimed_again(self, outbox: Outbox, atomic: Atomic) -> None:
        """A retry can be claimed when its time has come; the attempt counts."""
        soon, later = kept(outbox, atomic, published("soon"), published("later"))
        outbox.settle([again(soon, after=SHORT), again(later, after=LONG)])
        (found,) = eventually(lambda: outbox.claim(10, LONG))

        assert (soon.number, 2) == (found.number, found.attempts)

    def test_an_attempt_that_does_not_count_costs_none(self, outbox: Outbox, atomic: Atomic) -> None:
        """The attempt is taken back, whether the retry is due at once or later."""
        (first,) = kept(outbox, atomic, published("1"))
        outbox.settle([again(first, counted=False)])
        (second,) = outbox.claim(1, LONG)
        outbox.settle([again(second, after=SHORT, counted=False)])
        (third,) = eventually(lambda: outbox.claim(1, LONG))
        outbox.settle([again(third)])
        (fourth,) = outbox.claim(1, LONG)
        outbox.settle([again(fourth, counted=False)])

        assert [1, 1, 1, 2, 2] == [each.attempts for each in (first, second, third, fourth, *outbox.claim(1, LONG))]

    def test_a_claim_that_was_given_back_is_over(self, outbox: Outbox, atomic: Atomic) -> None:
        """A claim that was given back can neither settle nor renew."""
        (claimed,) = kept(outbox, atomic, published("1"))
        outbox.settle([again(claimed)])

        assert [0, 0] == [outbox.settle(done([claimed])), outbox.renew([claimed.token], LONG)]
        assert ["1"] == claim(outbox)

    def test_outcomes_of_all_kinds_are_settled_at_once(self, outbox: Outbox, atomic: Atomic) -> None:
        """Outcomes of several claims are settled in one call, also of those that have lapsed."""
        keep(outbox, atomic, *(published(str(number)) for number in range(6)))
        first, second, third, fourth, fifth, sixth = [each for _ in range(3) for each in outbox.claim(2, LONG)]
        outbox.settle(done([fourth]))
        outcomes = [*done([first, sixth]), again(second), dead(third), *done([fourth]), again(fifth, counted=False)]

        assert 5 == outbox.settle(outcomes)
        assert [("1", 2), ("4", 1)] == [(it.message.body.decode(), it.attempts) for it in outbox.claim(10, LONG)]

    def test_what_is_dead_holds_up_what_has_its_key(self, outbox: Outbox, atomic: Atomic) -> None:
        """Its key waits until the dead one is replayed or discarded; other keys do not wait."""
        first, second = kept(outbox, atomic, published("1", key="k"), published("2", key="other"))
        outbox.settle([dead(first), dead(second, blocks=False)])
        keep(outbox, atomic, published("3", key="k"), published("4", key="other"), published("5"))

        assert ["4", "5"] == claim(outbox)
        assert outbox.next_due([]) is not None

    def test_a_dead_delivery_has_no_claim(self, outbox: Outbox, atomic: Atomic) -> None:
        """The earlier claim can settle neither a dead delivery nor a replayed one."""
        (claimed,) = kept(outbox, atomic, published("1"))
        outbox.settle([dead(claimed)])
        assert [0, 0] == [outbox.settle(done([claimed])), outbox.renew([claimed.token], LONG)]
        outbox.replay(_ALL)

        assert 0 == outbox.settle(done([claimed]))
        assert ["1"] == claim(outbox)

    # Operators

    def test_the_backlog_counts_what_is_not_delivered(self, outbox: Outbox, atomic: Atomic) -> None:
        """The backlog counts by target and state, and by reason of death, the most frequent first."""
        empty = outbox.backlog()
        assert ((), (), None, 0, 0) == (empty.targets, empty.dead_by_reason, empty.oldest, empty.waiting, empty.dead)
        keep(outbox, atomic, *(published(str(number), topic="a") for number in range(6)), handled("7"))
        one, two, three, four, _ = outbox.claim(5, LONG)
        outbox.settle([dead(one, reason="b"), dead(two, reason="c"), dead(three, reason="c"), *done([four])])
        backlog = outbox.backlog()

        assert [("handler", "bill", 1, 0, 0), ("topic", "a", 1, 1, 3)] == [
            (each.kind, each.target, each.pending, each.tried, each.dead) for each in backlog.targets
        ]
        assert (("c", 2), ("b", 1)) == backlog.dead_by_reason
        assert (3, 3) == (backlog.waiting, backlog.dead)
        assert backlog.oldest is not None
        assert 0 <= backlog.oldest < 60

    def test_the_oldest_is_one_that_waits(self, outbox: Outbox, atomic: Atomic) -> None:
        """Its age grows; dead deliveries do not count."""
        claimed = kept(outbox, atomic, published("1"))
        assert eventually(lambda: (outbox.backlog().oldest or 0) > SHORT)
        outbox.settle([dead(claimed[0])])

        assert outbox.backlog().oldest is None

    def test_what_is_dead_tells_why(self, outbox: Outbox, atomic: Atomic) -> None:
        """A dead delivery has its message, its target, its attempts, and the error as it was."""
        error = ValueError("no such order: 'x' \0 🙂\nsecond line " + "y" * LONGEST_ERROR)
        keep(outbox, atomic, published("1", key="k"), handled("2"))
        claimed = [*outbox.claim(1, LONG), *outbox.claim(1, LONG, handlers=["bill"])]
        outcomes = [Outcome.failed(each, error, after=None, blocks=each.handler is None) for each in claimed]
        outbox.settle(outcomes)
        found = outbox.dead_letters(_ALL)

        assert [each.message for each in claimed] == [each.message for each in found]
        assert [(None, "orders", 1, True), ("bill", "bill", 1, False)] == [
            (each.handler, each.target, each.attempts, each.blocks) for each in found
        ]
        assert [(it.reason, it.error) for it in outcomes] == [(it.reason, it.error) for it in found]
        assert all(0 <= each.age < 60 for each in found)

    def test_dead_deliveries_are_selected(self, outbox: Outbox, atomic: Atomic) -> None:
        """Dead deliveries are selected by number, reason and target, the oldest first, at most `limit`."""
        claimed = kept(outbox, atomic, *(published(str(number), topic="ab"[number % 2]) for number in range(5)))
        numbers = [each.number for each in claimed]
        outbox.settle([dead(each, reason="cd"[each is claimed[0]]) for each in claimed[:4]])

        def found(selection: DeadLetterSelection, limit: int = 100) -> list[int]:
            return [numbers.index(each.number) for each in outbox.dead_letters(selection, limit=limit)]

        assert [[0, 1, 2, 3], [0, 1]] == [found(_ALL), found(_ALL, 2)]
        assert [[0], [1, 2, 3]] == [found(DeadLetterSelection(reason="d")), found(DeadLetterSelection(reason="c"))]
        assert [[0, 2], [2]] == [
            found(DeadLetterSelection(target="a")),
            found(DeadLetterSelection(target="a", reason="c")),
        ]
        assert [[3], []] == [
            found(DeadLetterSelection(numbers=(numbers[3], numbers[4]))),
            found(DeadLetterSelection(numbers=())),
        ]

    def test_what_is_replayed_keeps_its_place(self, outbox: Outbox, atomic: Atomic) -> None:
        """It comes before what has waited for it, with its attempts forgotten."""
        first, second, other = kept(
            outbox, atomic, published("1", key="k"), published("2", key="k"), published("3", key="other")
        )
        outbox.settle([dead(first), again(second), dead(other)])
        keep(outbox, atomic, published("4", key="k"))
        assert [0, 1] == [
            outbox.replay(selection)
            for selection in (DeadLetterSelection(reason="?"), DeadLetterSelection((first.number,)))
        ]

        assert [("1", 1), ("2", 2), ("4", 1)] == [
            (each.message.body.decode(), each.attempts) for each in delivered(outbox, 10)
        ]
        assert [other.number] == [each.number for each in outbox.dead_letters(_ALL)]

    def test_what_is_discarded_is_waited_for_no_more(self, outbox: Outbox, atomic: Atomic) -> None:
        """It is deleted, and its key can be claimed."""
        (first,) = kept(outbox, atomic, published("1", key="k"))
        outbox.settle([dead(first)])
        keep(outbox, atomic, published("2", key="k"))

        assert [1, 0] == [outbox.discard(_ALL), outbox.discard(_ALL)]
        assert [] == list(outbox.dead_letters(_ALL))
        assert ["2"] == claim(outbox)

    def test_dead_deliveries_are_dealt_with_in_chunks(self, outbox: Outbox, atomic: Atomic) -> None:
        """`replay` and `discard` take the oldest first."""
        outbox.settle([dead(each) for each in kept(outbox, atomic, *(published(str(number)) for number in range(5)))])

        assert [2, 2] == [outbox.discard(_ALL, limit=2), outbox.replay(_ALL, limit=2)]
        assert [["4"], ["2", "3"]] == [
            [each.message.body.decode() for each in outbox.dead_letters(_ALL)],
            claim(outbox),
        ]

    def test_only_what_is_delivered_and_old_is_purged(self, outbox: Outbox, atomic: Atomic) -> None:
        """`purge` never deletes what waits, is claimed, or is dead; it deletes at most `limit`."""
        keep(outbox, atomic, *(published(str(number)) for number in range(7)), published("both", handlers=["bill"]))
        delivered = outbox.claim(3, LONG)
        outbox.settle(done(delivered))
        claimed = outbox.claim(2, LONG)
        outbox.settle([dead(claimed[0]), again(claimed[1])])
        assert eventually(lambda: (outbox.backlog().oldest or 0) > SHORT)

        assert [0, 2, 1, 0] == [outbox.purge(3600), *(outbox.purge(0, limit=2) for _ in range(3))]
        assert ["4", "5", "6", "both"] == claim(outbox)
        assert 1 == len(outbox.dead_letters(_ALL))
        assert 1 == len(outbox.claim(10, LONG, handlers=["bill"]))
