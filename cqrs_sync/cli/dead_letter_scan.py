"""What operators ask of the dead letters of a group."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from cqrs_sync.broker import Delivery, Group, GroupBroker, IncomingMessage, Subscription

#: Letters that are handled together, and those that are held unsettled at a time, at most.
BATCH, _HELD = 100, 200
#: What brokers hand out unsettled to one reader, at most: RabbitMQ counts them in 16 bits.
_MOST_UNSETTLED = 65_535
#: Seconds to wait for the first letter, where brokers may have to find out who reads, and for each further one.
_FIRST, _NEXT = 20.0, 3.0
#: Seconds between two signs of life while nothing is to be done.
_SIGN = 0.5
#: Digits of a number that programs which read JSON keep exactly.
_DIGITS = 15
#: What is noted of attempts begins anew.
_CLEARED = {"attempts", "parked"}


@attrs.frozen
class Choice:
    """Which dead letters are meant: those that fulfil all of it."""

    ids: frozenset[str] | None = None
    reason: str | None = None

    def has(self, message: IncomingMessage) -> bool:
        """Tell whether it is one of them."""
        of_ids = self.ids is None or id_of(message) in self.ids
        return of_ids and self.reason in {None, message.notes.get("reason", "")}


def id_of(message: IncomingMessage) -> str:
    """Return what names a message: its id, or a hash of what it consists of, where it has none."""
    known = message.attributes.get("id")
    if known:
        return known
    return f"blake2b-{hashlib.blake2b(message.body, digest_size=8).hexdigest()}"


def letter_of(message: IncomingMessage, *, body: bool = False) -> dict[str, Any]:
    """Return what is known of a dead letter; its body only where that is asked for."""
    notes = message.notes
    facts: dict[str, Any] = {
        "id": id_of(message),
        "type": message.attributes.get("type"),
        "topic": message.topic,
        "key": message.key,
        "attempts": _number(notes.get("attempts")),
        **{name: notes.get(name) for name in ("at", "reason", "error", "handlers", "origin")},
        "replays": _number(notes.get("replays")),
        "bytes": len(message.body),
    }
    if body:
        facts["body"] = message.body.decode("utf-8", "backslashreplace")
    return facts


def _number(text: str | None) -> int | str | None:
    """Return a note as the number that it is; what somebody else has written there as it is."""
    if text is None or len(text) > _DIGITS or not (text.isascii() and text.isdigit()):
        return text
    return int(text)


def look(broker: GroupBroker, group: Group) -> Iterator[IncomingMessage]:
    """Look at the dead letters, oldest first, at 65,535 of them at most; all of them stay where they are."""
    total = min(broker.backlog(group).dead, _MOST_UNSETTLED)
    if not total:
        return
    patience = _FIRST
    with broker.dead(attrs.evolve(group, prefetch=total)) as letters:
        for _ in range(total):
            delivery = letters.receive(patience)
            if delivery is None:
                return
            yield delivery.message
            patience = _NEXT


def replayed(message: IncomingMessage) -> IncomingMessage:
    """Return a dead letter as it goes back to its group: its attempts are forgotten, its replays counted."""
    notes = {name: text for name, text in message.notes.items() if name not in _CLEARED}
    replays = _number(notes.get("replays"))
    notes["replays"] = str(replays + 1 if isinstance(replays, int) else 1)
    return attrs.evolve(message, notes=notes)


class Sifting:
    """
    Goes once through the dead letters that are there at its beginning, and settles those that are chosen.

    Brokers cannot leave holes in what is settled, so letters that are not chosen and lie between those that are go to
    the end of the dead letters. Each is copied before it is removed: where this is ended in between, by whatever, it is
    there twice, and never lost. What comes in meanwhile, and what was put back, is not looked at.
    """

    def __init__(
        self,
        broker: GroupBroker,
        group: Group,
        choice: Choice,
        handle: Callable[[Sequence[IncomingMessage]], object],
        *,
        limit: int | None = None,
        rate: float | None = None,
        is_to_end: Callable[[float], bool],
    ) -> None:
        """
        Hand chosen letters to `handle`, `limit` at most, no more than `rate` a second.

        `is_to_end` waits for so many seconds for a reason to end, and tells whether there is one.
        """
        self._broker = broker
        self._group = group
        self._choice = choice
        self._handle = handle
        self._limit = limit
        self._rate = rate
        self._is_to_end = is_to_end
        self._batch = BATCH if rate is None else max(1, min(BATCH, int(rate)))
        self.total = broker.backlog(group).dead
        #: Letters that were handled, and those that were put back.
        self.done = self.put_back = 0

    def __iter__(self) -> Iterator[int]:
        """Do it; yields how many letters were looked at. Raises KeyboardInterrupt where it is to end."""
        if not self.total:
            return
        with self._broker.dead(attrs.evolve(self._group, prefetch=_HELD)) as letters:
            yield from self._sift(letters)

    def _sift(self, letters: Subscription) -> Iterator[int]:
        held: list[Delivery] = []
        chosen: list[Delivery] = []
        for number in range(self.total):
            self._check()
            delivery = letters.receive(_NEXT if number else _FIRST)
            if delivery is None:
                break
            held.append(delivery)
            if self._choice.has(delivery.message):
                chosen.append(delivery)
            if len(chosen) >= self._most or len(held) >= BATCH:
                self._settle(held, chosen, letters)
            yield 1
            if self.done == self._limit:
                return
        if chosen:
            self._settle(held, chosen, letters)
        # What is left in hand is not chosen, and nothing behind it is settled: it stays where it is.

    @property
    def _most(self) -> int:
        """How many are handled together."""
        return self._batch if self._limit is None else min(self._batch, self._limit - self.done)

    def _settle(self, held: list[Delivery], chosen: list[Delivery], letters: Subscription) -> None:
        """Handle those that are chosen, put back those before them, and remove both; what comes after them is held."""
        end = held.index(chosen[-1]) + 1 if chosen else len(held)
        others = [delivery for delivery in held[:end] if delivery not in chosen]
        if others:
            self._broker.set_aside([delivery.message for delivery in others], self._group, after=None)
        if chosen:
            self._handle([delivery.message for delivery in chosen])
        for delivery in held[:end]:
            delivery.ack()
        self.put_back += len(others)
        self.done += len(chosen)
        pause = 0.0 if self._rate is None or self.done == self._limit else len(chosen) / self._rate
        del held[:end]
        chosen.clear()
        while pause > 0:
            step = min(pause, _SIGN)
            self._check(step)
            letters.keep_alive()
            pause -= step

    def _check(self, wait: float = 0.0) -> None:
        if self._is_to_end(wait):
            raise KeyboardInterrupt
