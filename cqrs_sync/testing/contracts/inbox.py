"""
The promises of an inbox as a test class.

```python
class TestMyInbox(InboxContract):
    @pytest.fixture
    def inbox(self):
        return MyInbox(...)              # empty, and used by no other test

    @pytest.fixture
    def atomic(self):
        return my_database.transaction   # a context manager; inside another one it is a savepoint
```

With a database, give the fixtures `write`, `written` and `careless` of `WritingFixtures` as well.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress

import attrs
import pytest

from cqrs_sync.errors import CqrsError, NotInTransaction
from cqrs_sync.inbox import ATTEMPTS, Inbox
from cqrs_sync.serializer import LONGEST
from cqrs_sync.testing.contracts.transactions import Atomic, Rollback, WritingFixtures, rolled_back
from cqrs_sync.testing.waiting import BOUND, in_forked_child, in_threads


@attrs.frozen
class InboxFeatures:
    """What an inbox can do."""

    #: Several transactions may write at a time. SQLite allows one.
    has_concurrent_writers: bool = True
    #: A block inside a block may fail alone.
    has_savepoints: bool = True
    #: `once` opens the transaction that a handler would use.
    opens: bool = True
    #: Other processes see its receipts.
    is_shared: bool = True


def is_first(inbox: Inbox, atomic: Atomic, key: str, handler: str = "") -> bool:
    """Use the key in a transaction that commits, and tell whether that was the first time."""
    with atomic(), inbox.once(key, handler) as receipt:
        return receipt.is_first


def is_first_elsewhere(inbox: Inbox, atomic: Atomic, key: str, handler: str = "") -> bool:
    """Do the same in another thread."""

    def run() -> bool:
        answer = is_first(inbox, atomic, key, handler)
        inbox.release_connection()
        return answer

    return in_threads(run)[0]


class Holder:
    """Another thread that is first, and stays in its transaction until `end`."""

    def __init__(self, inbox: Inbox, atomic: Atomic, key: str, result: bytes | None = None) -> None:
        self.ended: threading.Event = threading.Event()
        self._has_it, self._may_end = threading.Event(), threading.Event()
        self._commits = True
        self._thread = threading.Thread(target=self._run, args=(inbox, atomic, key, result), daemon=True)
        self._thread.start()
        assert self._has_it.wait(BOUND)

    def end(self, *, commits: bool) -> None:
        """Commit or roll back, and return when that is done."""
        self._commits = commits
        self._may_end.set()
        self._thread.join(BOUND)
        assert not self._thread.is_alive()

    def _run(self, inbox: Inbox, atomic: Atomic, key: str, result: bytes | None) -> None:
        try:
            with atomic(), inbox.once(key) as receipt:
                assert receipt.is_first
                if result is not None:
                    receipt.keep_result(result)
                self._has_it.set()
                self._may_end.wait(BOUND)
                # Before the commit: a waiting thread may see it before this one runs again.
                self.ended.set()
                if not self._commits:
                    raise Rollback  # noqa: TRY301 -- it ends the transaction
        except Rollback:
            pass
        finally:
            inbox.release_connection()


_KEYS = {
    "plain": "order-1",
    "of-accents": "Zoë — naïve",
    "of-emoji": "👩‍🚀🇿🇼",
    "of-control-characters": "\x01\t\r\n\x1f\x7f\u2028",
    "of-sql": "'; DROP TABLE cqrs_inbox; -- %s %% ? :x {}",
    "of-255-characters": "🙂" * LONGEST,
}
_LONG = "x" * (LONGEST + 1)
_RESULTS = {"every-byte": bytes(range(256)), "empty": b"", "large": b"x" * 1_000_000, "json": '"Zoë 🙂"'.encode()}
_ALIKE = ["abc", "ABC", "äbc", "abc ", "abc  ", " abc", "abc\t", "abç", "abc\x01"]
#: Threads that race, and for how many keys.
_THREADS, _RACES = 4, 100


class _Other:
    """Asks for the same key in a thread of its own; notes the answer, and whether the holder had ended by then."""

    def __init__(self, inbox: Inbox, atomic: Atomic, key: str, holder: Holder) -> None:
        self._told: list[tuple[bool, bytes | None, bool]] = []
        asks = threading.Event()

        def run() -> None:
            with atomic():
                asks.set()
                with inbox.once(key) as receipt:
                    self._told.append((receipt.is_first, receipt.result, holder.ended.is_set()))
            inbox.release_connection()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        # With SQLite it cannot even open its transaction.
        asks.wait(0.2)
        self._thread.join(0.1)

    def answer(self) -> tuple[bool, bytes | None, bool]:
        self._thread.join(BOUND)
        assert self._told, "the other thread has no answer"
        return self._told[0]


class InboxContract(WritingFixtures):
    """What every Inbox promises."""

    features: InboxFeatures = InboxFeatures()

    # One caller after the other

    @pytest.mark.parametrize("key", _KEYS.values(), ids=_KEYS)
    def test_the_second_caller_is_told(self, inbox: Inbox, atomic: Atomic, key: str) -> None:
        """The second caller is told so, in the same thread and in another."""
        assert is_first(inbox, atomic, key)
        assert not is_first(inbox, atomic, key)
        assert not is_first_elsewhere(inbox, atomic, key)

    def test_each_handler_has_its_own(self, inbox: Inbox, atomic: Atomic) -> None:
        """Each handler of a message has a receipt of its own."""
        assert is_first(inbox, atomic, "1", "bill")
        assert is_first(inbox, atomic, "1", "pack")
        assert is_first(inbox, atomic, "1")
        assert not is_first(inbox, atomic, "1", "bill")
        assert is_first(inbox, atomic, "2", "bill")

    def test_keys_that_look_alike_are_different(self, inbox: Inbox, atomic: Atomic) -> None:
        """Keys that differ in case, in accents or in spaces at the end are different keys."""
        assert [True] * len(_ALIKE) == [is_first(inbox, atomic, key) for key in _ALIKE]
        assert [True] * len(_ALIKE) == [is_first(inbox, atomic, "key", handler) for handler in _ALIKE]
        assert [False] * len(_ALIKE) == [is_first(inbox, atomic, key) for key in _ALIKE]

    def test_it_is_asked_twice_in_one_transaction(self, inbox: Inbox, atomic: Atomic) -> None:
        """The second time it is not first."""
        with atomic():
            with inbox.once("1") as receipt:
                assert receipt.is_first
            with inbox.once("1") as again:
                assert not again.is_first

        assert not is_first(inbox, atomic, "1")

    def test_what_was_rolled_back_was_not_done(self, inbox: Inbox, atomic: Atomic) -> None:
        """After a rollback the next caller is first."""
        with rolled_back(atomic), inbox.once("1") as receipt:
            receipt.keep_result(b"never")

        with atomic(), inbox.once("1") as receipt:
            assert (True, None) == (receipt.is_first, receipt.result)

    def test_a_rolled_back_savepoint_takes_its_receipts_along(self, inbox: Inbox, atomic: Atomic) -> None:
        """A rolled back savepoint removes its own receipts and no others."""
        if not self.features.has_savepoints:
            return
        with atomic():
            with inbox.once("before"):
                pass
            with rolled_back(atomic), inbox.once("never"):
                pass
            with inbox.once("after"):
                pass

        assert [False, True, False] == [is_first(inbox, atomic, key) for key in ("before", "never", "after")]

    def test_a_block_that_fails_has_done_nothing(self, inbox: Inbox, atomic: Atomic) -> None:
        """A caller that catches the error and tries again in the same transaction is first."""
        with atomic():
            with pytest.raises(Rollback), inbox.once("1"):
                raise Rollback
            with inbox.once("1") as receipt:
                assert receipt.is_first

        assert not is_first(inbox, atomic, "1")

    def test_a_block_in_a_block_that_fails_takes_only_its_own_back(self, inbox: Inbox, atomic: Atomic) -> None:
        """The receipt of the outer block stays."""
        with atomic(), inbox.once("outer"), pytest.raises(Rollback), inbox.once("inner"):
            raise Rollback

        assert [False, True] == [is_first(inbox, atomic, key) for key in ("outer", "inner")]

    def test_a_duplicate_leaves_the_transaction_as_good_as_it_was(
        self,
        inbox: Inbox,
        atomic: Atomic,
        write: Callable[[str], object],
        written: Callable[[], list[str]] | None,
    ) -> None:
        """What was written before and after a duplicate commits."""
        assert is_first(inbox, atomic, "1")
        with atomic():
            write("before")
            with inbox.once("1") as receipt:
                assert not receipt.is_first
            write("after")
            with inbox.once("2") as other:
                assert other.is_first

        assert not is_first(inbox, atomic, "2")
        assert written is None or written() == ["before", "after"]

    def test_without_a_transaction_it_opens_one(
        self,
        inbox: Inbox,
        atomic: Atomic,
        write: Callable[[str], object],
        written: Callable[[], list[str]] | None,
    ) -> None:
        """It opens the transaction that code in the block uses, or raises NotInTransaction."""
        if not self.features.opens:
            with pytest.raises(NotInTransaction, match="open one"), inbox.once("1"):
                pass
            return
        with pytest.raises(Rollback), inbox.once("1") as receipt:  # noqa: PT012 -- the block is what fails
            assert receipt.is_first
            assert inbox.transactions.active()
            write("never")
            raise Rollback
        assert not inbox.transactions.active()
        with inbox.once("1") as receipt:
            assert receipt.is_first
            write("committed")

        assert not is_first(inbox, atomic, "1")
        assert written is None or written() == ["committed"]

    @pytest.mark.parametrize("inside", [False, True], ids=["its-own", "of-the-caller"])
    def test_what_ends_well_is_there_with_its_receipt(
        self,
        inbox: Inbox,
        atomic: Atomic,
        write: Callable[[str], object],
        written: Callable[[], list[str]] | None,
        careless: Mapping[str, Callable[[], object]],
        *,
        inside: bool,
    ) -> None:
        """Whatever the block does to the transaction: what did not commit has failed, and may be done again."""
        if not (inside or self.features.opens):
            return
        ended: dict[str, bool] = {}
        for name, act in {"nothing": lambda: None, **careless}.items():
            ended[name] = False
            with suppress(CqrsError), atomic() if inside else nullcontext():
                with inbox.once(name) as receipt:
                    assert receipt.is_first
                    write(name)
                    act()
                ended[name] = True
            assert not inbox.transactions.active()

        assert ended["nothing"]
        assert written is None or written() == [name for name in ended if ended[name]]
        assert ended == {name: not is_first(inbox, atomic, name) for name in ended}

    @pytest.mark.parametrize("result", _RESULTS.values(), ids=_RESULTS)
    def test_a_result_is_kept_for_later_callers(self, inbox: Inbox, atomic: Atomic, result: bytes) -> None:
        """Each byte of a result comes back, as `bytes`."""
        with atomic(), inbox.once("1", "order") as receipt:
            assert receipt.result is None
            receipt.keep_result(result)
        with atomic(), inbox.once("1", "order") as again:
            assert (False, result, bytes) == (again.is_first, again.result, type(again.result))

    def test_only_the_first_caller_keeps_a_result(self, inbox: Inbox, atomic: Atomic) -> None:
        """A later caller must not change what was answered."""
        assert is_first(inbox, atomic, "1")
        with atomic(), inbox.once("1") as again:
            assert again.result is None
            with pytest.raises(ValueError, match="first"):
                again.keep_result(b"another")

    @pytest.mark.parametrize(
        ("key", "handler"),
        [("", ""), (_LONG, ""), ("x\0y", ""), ("x\ud800", ""), ("1", _LONG), ("1", "x\0"), ("1", ATTEMPTS)],
        ids=["empty", "long", "nul", "half-a-pair", "long-name", "nul-in-name", "name-of-attempts"],
    )
    def test_what_no_row_can_hold_is_refused_before_anything_is_written(
        self, inbox: Inbox, atomic: Atomic, key: str, handler: str
    ) -> None:
        """The transaction can be used as before."""
        with atomic():
            with pytest.raises(ValueError, match=r"handler|key"), inbox.once(key, handler):
                pass
            with inbox.once("good") as receipt:
                assert receipt.is_first

        assert not is_first(inbox, atomic, "good")

    # Threads and processes

    def test_of_many_at_once_one_is_first(
        self, inbox: Inbox, atomic: Atomic, write: Callable[[str], object], written: Callable[[], list[str]] | None
    ) -> None:
        """Each of 100 keys is done once by four threads, and has committed when the other threads are told."""
        done: Counter[str] = Counter()
        told_early: list[str] = []
        committed: set[str] = set()
        lock = threading.Lock()

        def work() -> None:
            for number in range(_RACES):
                key = str(number)
                with atomic(), inbox.once(key) as receipt:
                    first = receipt.is_first
                    if first:
                        write(key)
                        with lock:
                            done[key] += 1
                            # Before the commit: a thread that sees the commit sees this.
                            committed.add(key)
                    elif key not in committed:
                        told_early.append(key)
            inbox.release_connection()

        in_threads(*[work] * _THREADS, timeout=60)

        assert {1} == set(done.values())
        assert _RACES == len(done)
        assert [] == told_early
        assert written is None or sorted(written()) == sorted(done)

    def test_the_others_wait_until_the_first_has_committed(self, inbox: Inbox, atomic: Atomic) -> None:
        """The other callers get the result of the first."""
        holder = Holder(inbox, atomic, "1", b"answer")
        other = _Other(inbox, atomic, "1", holder)
        holder.end(commits=True)

        assert (False, b"answer", True) == other.answer()

    def test_one_of_the_others_is_first_where_the_first_has_rolled_back(self, inbox: Inbox, atomic: Atomic) -> None:
        """What was rolled back was not done."""
        holder = Holder(inbox, atomic, "1", b"never")
        other = _Other(inbox, atomic, "1", holder)
        holder.end(commits=False)

        assert (True, None, True) == other.answer()
        assert not is_first(inbox, atomic, "1")

    def test_other_keys_do_not_wait(self, inbox: Inbox, atomic: Atomic) -> None:
        """Other keys do not wait, nor do other handlers of the same key."""
        if not self.features.has_concurrent_writers:
            return
        holder = Holder(inbox, atomic, "1")
        assert is_first(inbox, atomic, "2")
        assert is_first(inbox, atomic, "1", "another")
        assert not holder.ended.is_set()
        holder.end(commits=True)

    def test_a_forked_child_uses_it(self, inbox: Inbox, atomic: Atomic) -> None:
        """The child makes connections of its own, and the parent keeps its own."""
        assert is_first(inbox, atomic, "of the parent")

        def child() -> None:
            assert not is_first(inbox, atomic, "of the parent")
            assert is_first(inbox, atomic, "of the child")
            assert 1 == inbox.count_attempt("of the child")

        assert 0 == in_forked_child(child, timeout=20)

        assert not is_first(inbox, atomic, "of the parent")
        assert self.features.is_shared is not is_first(inbox, atomic, "of the child")

    def test_a_released_connection_is_made_again(self, inbox: Inbox, atomic: Atomic) -> None:
        """A connection that was released is made again, any number of times."""
        inbox.release_connection()
        assert is_first(inbox, atomic, "1")
        inbox.release_connection()
        inbox.release_connection()
        assert not is_first(inbox, atomic, "1")

    # Attempts, and age

    def test_attempts_are_counted(self, inbox: Inbox, atomic: Atomic) -> None:
        """Attempts are counted for each key, whether or not it is done."""
        assert [1, 2, 3] == [inbox.count_attempt("1") for _ in range(3)]
        assert 1 == inbox.count_attempt("2")
        assert is_first(inbox, atomic, "1")
        assert [3, 3, 1, 0] == [inbox.counted_attempts(key) for key in ("1", "1", "2", "never attempted")]
        assert 4 == inbox.count_attempt("1")
        assert not is_first(inbox, atomic, "1")

    def test_an_attempt_is_counted_when_the_call_returns(self, inbox: Inbox) -> None:
        """A process that dies right after that has counted it."""
        assert 0 == in_forked_child(lambda: inbox.count_attempt("1"), timeout=20)

        assert (2 if self.features.is_shared else 1) == inbox.count_attempt("1")

    def test_attempts_at_once_are_all_counted(self, inbox: Inbox) -> None:
        """Attempts of any number of threads are counted."""
        counts: list[int] = []

        def work() -> None:
            counts.extend(inbox.count_attempt("1") for _ in range(25))
            inbox.release_connection()

        in_threads(*[work] * 4, timeout=60)

        assert list(range(1, 101)) == sorted(counts)

    def test_attempts_are_taken_back(self, inbox: Inbox) -> None:
        """`uncount_attempt` takes back one attempt, and never goes below zero."""
        assert [1, 2, 3] == [inbox.count_attempt("1") for _ in range(3)]
        assert 1 == inbox.count_attempt("2")

        inbox.uncount_attempt("1")
        inbox.uncount_attempt("never attempted")
        assert [2, 1, 0] == [inbox.counted_attempts(key) for key in ("1", "2", "never attempted")]
        for _ in range(3):
            inbox.uncount_attempt("1")
        assert [0, 1] == [inbox.counted_attempts("1"), inbox.count_attempt("1")]

    def test_attempts_are_forgotten(self, inbox: Inbox, atomic: Atomic) -> None:
        """`reset_attempts` keeps the receipts."""
        assert is_first(inbox, atomic, "1")
        assert [1, 2] == [inbox.count_attempt("1"), inbox.count_attempt("1")]
        assert 1 == inbox.count_attempt("2")

        inbox.reset_attempts("1")
        inbox.reset_attempts("never attempted")

        assert [1, 2] == [inbox.count_attempt("1"), inbox.count_attempt("2")]
        assert not is_first(inbox, atomic, "1")

    def test_what_is_old_is_purged(self, inbox: Inbox, atomic: Atomic) -> None:
        """Younger receipts and attempts stay."""
        assert is_first(inbox, atomic, "1")
        assert 1 == inbox.count_attempt("1")

        assert 0 == inbox.purge(3600)
        assert not is_first(inbox, atomic, "1")
        # Nothing is too young for a negative age.
        assert 2 == inbox.purge(-3600)
        assert is_first(inbox, atomic, "1")
        assert 1 == inbox.count_attempt("1")

    def test_as_much_is_purged_at_once_as_was_said(self, inbox: Inbox, atomic: Atomic) -> None:
        """`purge` deletes at most `limit` rows in one call."""
        for number in range(25):
            assert is_first(inbox, atomic, str(number))

        assert [10, 10, 5, 0] == [inbox.purge(-3600, limit=10) for _ in range(4)]
