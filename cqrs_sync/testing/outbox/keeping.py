"""What the outbox promises about keeping: with the transaction, as it was, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import EventTooLarge, NotInTransaction
from cqrs_sync.outbox import LONGEST, Claimed, Entry, Outbox
from cqrs_sync.testing.contracts import message
from cqrs_sync.testing.outbox.entries import (
    Atomic,
    OutboxFixtures,
    claim,
    handled,
    keep,
    kept,
    open_elsewhere,
    published,
    rolled_back,
)

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


class KeepingContract(OutboxFixtures):
    """Messages are kept in the caller's transaction."""

    def test_what_was_added_is_there_after_the_commit(self, outbox: Outbox, atomic: Atomic) -> None:
        """All of it, and not before."""
        with atomic():
            outbox.add([published("1"), published("2")])
            if self.features.has_concurrent_writers:
                assert [] == _in_another_thread(outbox, lambda: claim(outbox))
            outbox.add([published("3")])

        assert ["1", "2", "3"] == claim(outbox)

    def test_what_was_rolled_back_is_never_there(self, outbox: Outbox, atomic: Atomic) -> None:
        """What did not happen is told to nobody."""
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
        """It is an error that names what was to be kept."""
        with pytest.raises(NotInTransaction, match=r"contract\.happened"):
            outbox.add([published("1")])

        assert [] == claim(outbox)

    def test_what_is_added_alone_has_a_transaction_of_its_own(self, outbox: Outbox) -> None:
        """It is there when the call returns."""
        outbox.add([published("1"), published("2")], alone=True)

        assert ["1", "2"] == claim(outbox)
        assert not outbox.transactions.active()

    def test_an_outbox_that_is_not_strict_needs_no_transaction(
        self, lenient_outbox: Outbox | None, atomic: Atomic
    ) -> None:
        """It joins one where there is one."""
        if lenient_outbox is None:
            return
        lenient_outbox.add([published("1")])
        with rolled_back(atomic):
            lenient_outbox.add([published("never")])

        assert ["1"] == claim(lenient_outbox)

    def test_each_target_has_a_delivery(self, outbox: Outbox, atomic: Atomic) -> None:
        """The broker one, each durable handler one, all with the same message."""
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
        """Key, type, topic, content type and headers, whatever is in them."""
        before = OutgoingMessage(
            id=message("").id, topic=text, type=text, body=b"{}", content_type=text, key=text,
            attributes={"subject": text, "nul": "a\0b", text or "empty": "1"},
        )  # fmt: skip

        assert [before] == [each.message for each in kept(outbox, atomic, Entry(before, publish=True))]

    @pytest.mark.parametrize("body", _BODIES.values(), ids=_BODIES)
    def test_bodies_come_back_as_they_were(self, outbox: Outbox, atomic: Atomic, body: bytes) -> None:
        """Every byte of them, as `bytes`."""
        claimed = kept(outbox, atomic, Entry(message("orders", body), publish=True))

        assert [body] == [each.message.body for each in claimed]
        assert bytes is type(claimed[0].message.body)

    def test_ids_that_differ_in_case_are_two(self, outbox: Outbox, atomic: Atomic) -> None:
        """A message is never taken for another."""
        entries = [
            Entry(attrs.evolve(message("orders", identity.encode()), id=identity), publish=True)
            for identity in ("abc", "ABC", "äbc")
        ]

        assert ["abc", "ABC", "äbc"] == [each.message.id for each in kept(outbox, atomic, *entries)]

    @pytest.mark.parametrize("field", ["id", "topic", "type", "key", "content_type"])
    @pytest.mark.parametrize("bad", ["too-long", "nul"])
    def test_what_does_not_fit_is_refused_before_anything_is_written(
        self, outbox: Outbox, atomic: Atomic, field: str, bad: str
    ) -> None:
        """The transaction is as good as it was."""
        text = "x" * (LONGEST + 1) if bad == "too-long" else "x\0y"
        changed: Any = {field: text}
        wrong = attrs.evolve(message("orders"), **changed)
        with atomic():
            with pytest.raises(EventTooLarge):
                outbox.add([published("first"), Entry(wrong, publish=True)])
            outbox.add([published("second")])

        assert ["second"] == claim(outbox)

    def test_what_is_too_large_is_refused_before_anything_is_written(self, outbox: Outbox, atomic: Atomic) -> None:
        """What is as large as it may be is kept."""
        largest = b"x" * self.features.max_bytes
        with atomic():
            with pytest.raises(EventTooLarge, match=r"contract\.happened"):
                outbox.add([published("first"), Entry(message("orders", largest + b"x"), publish=True)])
            outbox.add([Entry(message("orders", largest), publish=True)])

        assert [largest] == [each.message.body for each in outbox.claim(100, 60)]

    def test_any_number_is_kept_at_once(self, outbox: Outbox, atomic: Atomic) -> None:
        """In the order they came in."""
        names = [str(number) for number in range(1000)]
        keep(outbox, atomic, *map(published, names))

        assert names == claim(outbox, 2000)

    def test_any_number_of_bytes_is_kept_at_once(self, outbox: Outbox, atomic: Atomic) -> None:
        """Also more than a database takes in a statement."""
        large = "x" * self.features.max_bytes
        keep(outbox, atomic, *(published(large) for _ in range(20)))
        found: list[Claimed] = []

        while claimed := outbox.claim(100, 60):
            found.extend(claimed)
        assert 20 == len(found)

    def test_a_commit_elsewhere_is_not_waited_for(self, outbox: Outbox, atomic: Atomic) -> None:
        """Who has added and not committed yet holds up neither those who add nor those who claim."""
        if not self.features.has_concurrent_writers:
            return
        with open_elsewhere(outbox, atomic, published("late", key="k")) as commit:
            keep(outbox, atomic, published("soon", key="k"), published("other"))
            assert ["soon", "other"] == claim(outbox)
            commit()

        assert ["late"] == claim(outbox)


def _in_another_thread(outbox: Outbox, action: Callable[[], Any]) -> Any:
    answers: list[Any] = []

    def run() -> None:
        answers.append(action())
        outbox.release_connection()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    return answers[0] if answers else None
