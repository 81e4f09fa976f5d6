"""What operators ask of an outbox, as plain values that become JSON or text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from cqrs_sync.outbox import Backlog, DeadDelivery, Outbox, Selection

#: Deliveries or messages that are changed in one transaction.
CHUNK = 500
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def seconds(text: str) -> float:
    """Read a duration: `90`, `90s`, `15m`, `12h`, `7d`, `2w`. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no duration: write 90s, 15m, 12h or 7d")
    return float(found[1]) * _UNITS[found[2]]


def status_of(backlog: Backlog) -> dict[str, Any]:
    """Return what waits and what is dead."""
    return {
        "waiting": backlog.waiting,
        "dead": backlog.dead,
        "lag": None if backlog.oldest is None else round(backlog.oldest, 3),
        "targets": [
            {
                "kind": target.kind,
                "target": target.target,
                "pending": target.pending,
                "tried": target.tried,
                "dead": target.dead,
            }
            for target in backlog.targets
        ],
        "dead_by_reason": [{"reason": reason, "count": count} for reason, count in backlog.dead_by_reason],
    }


def dead_of(delivery: DeadDelivery, *, body: bool = False) -> dict[str, Any]:
    """Return what is known of a dead delivery; its body only where that is asked for."""
    message = delivery.message
    facts: dict[str, Any] = {
        "number": delivery.number,
        "kind": "topic" if delivery.handler is None else "handler",
        "target": delivery.target,
        "attempts": delivery.attempts,
        "age": round(delivery.age, 3),
        "reason": delivery.reason,
        "error": delivery.error,
        "blocks": delivery.blocks,
        "id": message.id,
        "type": message.type,
        "key": message.key,
        "bytes": len(message.body),
    }
    if body:
        facts["attributes"] = dict(message.attributes)
        facts["body"] = message.body.decode("utf-8", "backslashreplace")
    return facts


def in_chunks(change: Callable[[Selection, int], int], selection: Selection, most: int | None = None) -> Iterator[int]:
    """Replay or discard, chunk by chunk; yields how many each time."""
    left = most
    while left is None or left > 0:
        limit = CHUNK if left is None else min(CHUNK, left)
        changed = change(selection, limit)
        if changed == 0:
            return
        yield changed
        if left is not None:
            left -= changed


def purged(outbox: Outbox, older_than: float) -> Iterator[int]:
    """Purge delivered messages, chunk by chunk; yields how many each time."""
    while changed := outbox.purge(older_than, limit=2 * CHUNK):
        yield changed
