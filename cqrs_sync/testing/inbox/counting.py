"""What the inbox promises about attempts, and about forgetting."""

from __future__ import annotations

from cqrs_sync.inbox import Inbox
from cqrs_sync.testing.contracts import in_forked_child
from cqrs_sync.testing.inbox.receipts import Atomic, InboxFixtures, is_first
from cqrs_sync.testing.threads import in_threads


class CountingContract(InboxFixtures):
    """Attempts and age."""

    def test_attempts_are_counted(self, inbox: Inbox, atomic: Atomic) -> None:
        """Those of each key, whether or not it is done."""
        assert [1, 2, 3] == [inbox.attempt("1") for _ in range(3)]
        assert 1 == inbox.attempt("2")
        assert is_first(inbox, atomic, "1")
        assert [3, 3, 1, 0] == [inbox.attempts_at(key) for key in ("1", "1", "2", "never attempted")]
        assert 4 == inbox.attempt("1")
        assert not is_first(inbox, atomic, "1")

    def test_an_attempt_is_counted_when_the_call_returns(self, inbox: Inbox) -> None:
        """A process that dies right after that has counted it."""
        assert 0 == in_forked_child(lambda: inbox.attempt("1"), timeout=20)

        assert (2 if self.features.is_shared else 1) == inbox.attempt("1")

    def test_attempts_at_once_are_all_counted(self, inbox: Inbox) -> None:
        """By any number of threads."""
        counts: list[int] = []

        def work() -> None:
            counts.extend(inbox.attempt("1") for _ in range(25))
            inbox.release_connection()

        in_threads(*[work] * 4, timeout=60)

        assert list(range(1, 101)) == sorted(counts)

    def test_attempts_are_taken_back(self, inbox: Inbox) -> None:
        """One by one, and never below nothing."""
        assert [1, 2, 3] == [inbox.attempt("1") for _ in range(3)]
        assert 1 == inbox.attempt("2")

        inbox.take_back_attempt("1")
        inbox.take_back_attempt("never attempted")
        assert [2, 1, 0] == [inbox.attempts_at(key) for key in ("1", "2", "never attempted")]
        for _ in range(3):
            inbox.take_back_attempt("1")
        assert [0, 1] == [inbox.attempts_at("1"), inbox.attempt("1")]

    def test_attempts_are_forgotten(self, inbox: Inbox, atomic: Atomic) -> None:
        """What was done is not."""
        assert is_first(inbox, atomic, "1")
        assert [1, 2] == [inbox.attempt("1"), inbox.attempt("1")]
        assert 1 == inbox.attempt("2")

        inbox.forget_attempts("1")
        inbox.forget_attempts("never attempted")

        assert [1, 2] == [inbox.attempt("1"), inbox.attempt("2")]
        assert not is_first(inbox, atomic, "1")

    def test_what_is_old_is_purged(self, inbox: Inbox, atomic: Atomic) -> None:
        """What is younger stays."""
        assert is_first(inbox, atomic, "1")
        assert 1 == inbox.attempt("1")

        assert 0 == inbox.purge(3600)
        assert not is_first(inbox, atomic, "1")
        # A negative age is one that nothing is too young for.
        assert 2 == inbox.purge(-3600)
        assert is_first(inbox, atomic, "1")
        assert 1 == inbox.attempt("1")

    def test_as_much_is_purged_at_once_as_was_said(self, inbox: Inbox, atomic: Atomic) -> None:
        """So nobody waits long for it."""
        for number in range(25):
            assert is_first(inbox, atomic, str(number))

        assert [10, 10, 5, 0] == [inbox.purge(-3600, limit=10) for _ in range(4)]
