"""What operators ask of an outbox, as plain values that become JSON or text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from cqrs_sync.outbox import Backlog, DeadDelivery, Outbox, Selection

#: Deliveries or messages that are changed in one transaction.
CHUNK = 500
#: Dead deliveries that are fetched to be counted, where counting alone does not do: they come with their bodies.
_FETCHED = 2000
#: Seconds in a hundred years, for which no clock of an operating system waits much longer.
_LONGEST = 3_155_760_000
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def seconds(text: str) -> float:
    """Read a duration: `90`, `1.5`, `90s`, `15m`, `12h`, `7d`, `2w`. Raises ValueError."""
    if milliseconds := re.fullmatch(r"([0-9]{1,12}) ?ms", text.strip()):
        raise ValueError(f"{text!r} is no duration: write seconds, which is {int(milliseconds[1]) / 1000:.12g}")
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhdw]?)", text.strip())
    duration = None if found is None else float(found[1]) * _UNITS[found[2]]
    if duration is None or duration > _LONGEST:
        raise ValueError(f"{text!r} is no duration: write 90s, 15m, 12h or 7d, parts of a second as 0.5")
    return duration


def status_of(backlog: Backlog) -> dict[str, Any]:
    """Return what waits and what is dead; the oldest message that waits is told by this machine's clock."""
    oldest = None if backlog.oldest is None else datetime.now(UTC) - timedelta(seconds=backlog.oldest)
    return {
        "waiting": backlog.waiting,
        "dead": backlog.dead,
        "lag": None if backlog.oldest is None else round(backlog.oldest, 3),
        "oldest": None if oldest is None else oldest.isoformat(timespec="seconds"),
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


def count_of(outbox: Outbox, selection: Selection) -> int:
    """Return how many dead deliveries are meant; where a reason *and* a target are given, perhaps as many as 2000."""
    if selection.numbers is not None:
        return len(outbox.dead(selection, limit=len(selection.numbers)))
    backlog = outbox.backlog()
    of_target = sum(each.dead for each in backlog.targets if selection.target in {None, each.target})
    of_reason = dict(backlog.dead_by_reason).get(selection.reason or "", 0)
    if selection.reason is None:
        return of_target
    if selection.target is None or of_target == backlog.dead:
        return of_reason
    return len(outbox.dead(selection, limit=_FETCHED))


def in_chunks(change: Callable[[Selection, int], int], selection: Selection, most: int) -> Iterator[int]:
    """Replay or discard `most` of them, chunk by chunk; yields how many each time. Some may be dead again meanwhile."""
    while most > 0 and (changed := change(selection, min(CHUNK, most))):
        yield changed
        most -= changed
