"""What a message costs with orjson and without: `python -m tests.benchmarks.serialize` prints the table of the page."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from decimal import Decimal

import attrs

import cqrs_sync as cqrs


@attrs.frozen
class MeetingJoined(cqrs.NotificationEvent, topic="meetings", name="meeting.joined", key="meeting_id"):
    meeting_id: str = "weekly"
    user_id: str = "ada"


@attrs.frozen
class Line:
    sku: str
    quantity: int
    price: Decimal = Decimal("9.99")


@attrs.frozen
class OrderPlaced(cqrs.NotificationEvent, topic="orders", name="order.placed", key="order_id"):
    order_id: uuid.UUID
    customer: str = "Ada Lovelace"
    placed_at: dt.datetime = dt.datetime(2026, 11, 30, 12, 30, tzinfo=dt.UTC)
    total: Decimal = Decimal("102.50")
    note: str | None = None
    lines: list[Line] = attrs.field(factory=lambda: [Line(f"sku-{n}", n) for n in range(10)])


def _microseconds(call: Callable[[], object], times: int = 500, rounds: int = 60) -> float:
    """Return the processor time of a call in its best round."""
    best = float("inf")
    for _ in range(rounds):
        started = time.process_time()
        for _ in range(times):
            call()
        best = min(best, time.process_time() - started)
    return best / times * 1e6


def measure(how: str) -> None:
    serializer = cqrs.JsonSerializer(source="shop")
    for event in (MeetingJoined(), OrderPlaced(uuid.uuid4())):
        sent = serializer.dump(event)
        message = cqrs.IncomingMessage(sent.topic, sent.body, sent.content_type, sent.key, sent.attributes)
        types = {sent.type: type(event)}
        dump = _microseconds(lambda event=event: serializer.dump(event))
        load = _microseconds(lambda message=message, types=types: serializer.load(message, types))
        print(f"| {len(sent.body)} bytes, {how} | {dump:.0f} µs | {load:.1f} µs |", flush=True)


if __name__ == "__main__":
    print("| event | write | read |\n|---|---:|---:|", flush=True)
    for how, before in (("with orjson", ""), ("without", "sys.modules['orjson'] = None; ")):
        program = f"import sys; {before}from tests.benchmarks.serialize import measure; measure({how!r})"
        subprocess.run([sys.executable, "-c", program], check=True)
