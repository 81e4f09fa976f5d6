"""What the inbox promises to several callers at a time: one is first, and the others wait for it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from cqrs_sync.inbox import Inbox
from cqrs_sync.testing.contracts import in_forked_child
from cqrs_sync.testing.inbox.receipts import Atomic, Holder, InboxFixtures, is_first
from cqrs_sync.testing.threads import BOUND, in_threads

_THREADS, _KEYS = 4, 100


class WaitingContract(InboxFixtures):
    """Threads and processes."""

    def test_of_many_at_once_one_is_first(
        self, inbox: Inbox, atomic: Atomic, write: Callable[[str], object], written: Callable[[], list[str]] | None
    ) -> None:
        """Each of 100 keys is done once by four threads, and by the time the others are told, it is committed."""
        done: Counter[str] = Counter()
        told_early: list[str] = []
        committed: set[str] = set()
        lock = threading.Lock()

        def work() -> None:
            for number in range(_KEYS):
                key = str(number)
                with atomic(), inbox.once(key) as receipt:
                    first = receipt.first
                    if first:
                        write(key)
                        with lock:
                            done[key] += 1
                            # Before the commit: whoever sees the end of this transaction sees this.
                            committed.add(key)
                    elif key not in committed:
                        told_early.append(key)
            inbox.release_connection()

        in_threads(*[work] * _THREADS, timeout=60)

        assert {1} == set(done.values())
        assert _KEYS == len(done)
        assert [] == told_early
        assert written is None or sorted(written()) == sorted(done)

    def test_the_others_wait_until_the_first_has_committed(self, inbox: Inbox, atomic: Atomic) -> None:
        """And are given its result."""
        holder = Holder(inbox, atomic, "1", b"answer")
        other = _Other(inbox, atomic, "1", holder)
        holder.end(commits=True)

        assert (False, b"answer", True) == other.answer()

    def test_one_of_the_others_is_first_where_the_first_has_rolled_back(self, inbox: Inbox, atomic: Atomic) -> None:
        """It was not done, so somebody has to."""
        holder = Holder(inbox, atomic, "1", b"never")
        other = _Other(inbox, atomic, "1", holder)
        holder.end(commits=False)

        assert (True, None, True) == other.answer()
        assert not is_first(inbox, atomic, "1")

    def test_nobody_waits_for_another_key(self, inbox: Inbox, atomic: Atomic) -> None:
        """Nor for another handler of the same one."""
        if not self.features.has_concurrent_writers:
            return
        holder = Holder(inbox, atomic, "1")
        assert is_first(inbox, atomic, "2")
        assert is_first(inbox, atomic, "1", "another")
        assert not holder.ended.is_set()
        holder.end(commits=True)

    def test_a_forked_child_uses_it(self, inbox: Inbox, atomic: Atomic) -> None:
        """It makes connections of its own, and the parent keeps its own."""
        assert is_first(inbox, atomic, "of the parent")

        def child() -> None:
            assert not is_first(inbox, atomic, "of the parent")
            assert is_first(inbox, atomic, "of the child")
            assert 1 == inbox.attempt("of the child")

        assert 0 == in_forked_child(child, timeout=20)

        assert not is_first(inbox, atomic, "of the parent")
        assert self.features.is_shared is not is_first(inbox, atomic, "of the child")

    def test_what_was_let_go_of_is_made_anew(self, inbox: Inbox, atomic: Atomic) -> None:
        """As often as one likes."""
        inbox.release_connection()
        assert is_first(inbox, atomic, "1")
        inbox.release_connection()
        inbox.release_connection()
        assert not is_first(inbox, atomic, "1")


class _Other:
    """Asks for the same in a thread of its own; tells what it was told, and whether the holder had ended by then."""

    def __init__(self, inbox: Inbox, atomic: Atomic, key: str, holder: Holder) -> None:
        self._told: list[tuple[bool, bytes | None, bool]] = []
        asks = threading.Event()

        def run() -> None:
            with atomic():
                asks.set()
                with inbox.once(key) as receipt:
                    self._told.append((receipt.first, receipt.result, holder.ended.is_set()))
            inbox.release_connection()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        # With SQLite it cannot even begin.
        asks.wait(0.2)
        self._thread.join(0.1)

    def answer(self) -> tuple[bool, bytes | None, bool]:
        self._thread.join(BOUND)
        assert self._told, "the other thread has no answer"
        return self._told[0]
