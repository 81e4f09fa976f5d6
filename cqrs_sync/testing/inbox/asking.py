"""What the inbox promises to one caller at a time: first, second, and what was answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress

import pytest

from cqrs_sync.errors import CqrsError, NotInTransaction
from cqrs_sync.inbox import ATTEMPTS, Inbox
from cqrs_sync.serializer import LONGEST
from cqrs_sync.testing.inbox.receipts import Atomic, InboxFixtures, Rollback, is_first, is_first_elsewhere, rolled_back

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


class AskingContract(InboxFixtures):
    """One caller after the other."""

    @pytest.mark.parametrize("key", _KEYS.values(), ids=_KEYS)
    def test_who_comes_second_is_told(self, inbox: Inbox, atomic: Atomic, key: str) -> None:
        """In the same thread and in another."""
        assert is_first(inbox, atomic, key)
        assert not is_first(inbox, atomic, key)
        assert not is_first_elsewhere(inbox, atomic, key)

    def test_each_handler_has_its_own(self, inbox: Inbox, atomic: Atomic) -> None:
        """Of one message, the handlers that are not done are told apart from those that are."""
        assert is_first(inbox, atomic, "1", "bill")
        assert is_first(inbox, atomic, "1", "pack")
        assert is_first(inbox, atomic, "1")
        assert not is_first(inbox, atomic, "1", "bill")
        assert is_first(inbox, atomic, "2", "bill")

    def test_keys_that_look_alike_are_different(self, inbox: Inbox, atomic: Atomic) -> None:
        """In case, in accents, in spaces at the end: a message is never taken for another."""
        assert [True] * len(_ALIKE) == [is_first(inbox, atomic, key) for key in _ALIKE]
        assert [True] * len(_ALIKE) == [is_first(inbox, atomic, "key", handler) for handler in _ALIKE]
        assert [False] * len(_ALIKE) == [is_first(inbox, atomic, key) for key in _ALIKE]

    def test_it_is_asked_twice_in_one_transaction(self, inbox: Inbox, atomic: Atomic) -> None:
        """The second time it is done."""
        with atomic():
            with inbox.once("1") as receipt:
                assert receipt.first
            with inbox.once("1") as again:
                assert not again.first

        assert not is_first(inbox, atomic, "1")

    def test_what_was_rolled_back_was_not_done(self, inbox: Inbox, atomic: Atomic) -> None:
        """Whoever comes next is first."""
        with rolled_back(atomic), inbox.once("1") as receipt:
            receipt.keep(b"never")

        with atomic(), inbox.once("1") as receipt:
            assert (True, None) == (receipt.first, receipt.result)

    def test_a_rolled_back_savepoint_takes_its_receipts_along(self, inbox: Inbox, atomic: Atomic) -> None:
        """And no others."""
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
        """Not even for a caller who catches that, and tries again in the same transaction."""
        with atomic():
            with pytest.raises(Rollback), inbox.once("1"):
                raise Rollback
            with inbox.once("1") as receipt:
                assert receipt.first

        assert not is_first(inbox, atomic, "1")

    def test_a_block_in_a_block_that_fails_takes_only_its_own_back(self, inbox: Inbox, atomic: Atomic) -> None:
        """The outer one is done."""
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
        """What comes before it and after it is committed."""
        assert is_first(inbox, atomic, "1")
        with atomic():
            write("before")
            with inbox.once("1") as receipt:
                assert not receipt.first
            write("after")
            with inbox.once("2") as other:
                assert other.first

        assert not is_first(inbox, atomic, "2")
        assert written is None or written() == ["before", "after"]

    def test_without_a_transaction_it_opens_one(
        self,
        inbox: Inbox,
        atomic: Atomic,
        write: Callable[[str], object],
        written: Callable[[], list[str]] | None,
    ) -> None:
        """That which the code in the block uses; or it says that it cannot."""
        if not self.features.opens:
            with pytest.raises(NotInTransaction, match="open one"), inbox.once("1"):
                pass
            return
        with pytest.raises(Rollback), inbox.once("1") as receipt:  # noqa: PT012 -- the block is what fails
            assert receipt.first
            assert inbox.transactions.active()
            write("never")
            raise Rollback
        assert not inbox.transactions.active()
        with inbox.once("1") as receipt:
            assert receipt.first
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
        """Whatever code in the block does to the transaction: what is not there has failed, and may be done again."""
        if not (inside or self.features.opens):
            return
        ended: dict[str, bool] = {}
        for name, act in {"nothing": lambda: None, **careless}.items():
            ended[name] = False
            with suppress(CqrsError), atomic() if inside else nullcontext():
                with inbox.once(name) as receipt:
                    assert receipt.first
                    write(name)
                    act()
                ended[name] = True
            assert not inbox.transactions.active()

        assert ended["nothing"]
        assert written is None or written() == [name for name in ended if ended[name]]
        assert ended == {name: not is_first(inbox, atomic, name) for name in ended}

    @pytest.mark.parametrize("result", _RESULTS.values(), ids=_RESULTS)
    def test_a_result_is_kept_for_those_who_come_later(self, inbox: Inbox, atomic: Atomic, result: bytes) -> None:
        """Every byte of it, as `bytes`."""
        with atomic(), inbox.once("1", "order") as receipt:
            assert receipt.result is None
            receipt.keep(result)
        with atomic(), inbox.once("1", "order") as again:
            assert (False, result, bytes) == (again.first, again.result, type(again.result))

    def test_only_who_is_first_keeps_a_result(self, inbox: Inbox, atomic: Atomic) -> None:
        """The others would change what was answered."""
        assert is_first(inbox, atomic, "1")
        with atomic(), inbox.once("1") as again:
            assert again.result is None
            with pytest.raises(ValueError, match="first"):
                again.keep(b"another")

    @pytest.mark.parametrize(
        ("key", "handler"),
        [("", ""), (_LONG, ""), ("x\0y", ""), ("x\ud800", ""), ("1", _LONG), ("1", "x\0"), ("1", ATTEMPTS)],
        ids=["empty", "long", "nul", "half-a-pair", "long-name", "nul-in-name", "name-of-attempts"],
    )
    def test_what_no_row_can_hold_is_refused_before_anything_is_written(
        self, inbox: Inbox, atomic: Atomic, key: str, handler: str
    ) -> None:
        """The transaction is as good as it was."""
        with atomic():
            with pytest.raises(ValueError, match=r"handler|key"), inbox.once(key, handler):
                pass
            with inbox.once("good") as receipt:
                assert receipt.first

        assert not is_first(inbox, atomic, "good")
