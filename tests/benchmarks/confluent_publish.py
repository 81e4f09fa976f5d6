"""
What our broker over librdkafka costs beside a bare `Producer`, and what it gains over KafkaBroker.

    python -m tests.benchmarks.confluent_publish [rounds]

The bare producer gets the same messages, makes the same headers of them, looks at each
report and waits for all with `flush`. All take turns on one Tansu that is started for
it; more than 1 is faster than the other one.
"""

from __future__ import annotations

import logging
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from confluent_kafka import Producer

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
from cqrs_sync.integrations.kafka import KafkaBroker
from cqrs_sync.testing.contracts.broker import message
from tests.servers.kafka import Tansu

#: Of the bare producer, and in times KafkaBroker.
BAR, GAIN = 0.6, 3.0
_CALLS_IN_A_CROWD = 10
#: Name, threads, messages in a call, turns of each contender in a round.
LOADS = (
    ("one message", 1, 1, 100),
    ("five in a request", 1, 5, 80),
    ("batches of 500", 1, 500, 10),
    ("16 threads, one message each", 16, 1, 8),
)
_RELAY = "batches of 500"

Publish = Callable[[Sequence[OutgoingMessage]], None]


def run(rounds: int) -> list[tuple[str, float, float]]:
    """Return the name of each comparison, the ratio of messages per second, and the bar."""
    against_bare: dict[str, list[float]] = {name: [] for name, *_ in LOADS}
    against_kafka: list[float] = []
    with Tansu() as server:
        for number in range(rounds):
            # Connections are not equal: the one made later is slower by up to a tenth.
            for name, *load in LOADS if number % 2 else reversed(LOADS):
                bare, other = _round(server.servers, load, with_other=name == _RELAY, ours_first=bool(number % 2))
                against_bare[name].append(bare)
                if other is not None:
                    against_kafka.append(other)
    figures = [(f"librdkafka, {name}", statistics.median(against_bare[name]), BAR) for name, *_ in LOADS]
    return [*figures, (f"librdkafka, {_RELAY}, of KafkaBroker", statistics.median(against_kafka), GAIN)]


def _round(servers: str, load: Sequence[int], *, with_other: bool, ours_first: bool) -> tuple[float, float | None]:
    threads, size, turns = load
    batch = [message("benchmark", b'{"n": "%0190d"}' % n, key=str(n)) for n in range(size)]
    broker, other = ConfluentKafkaBroker(servers), KafkaBroker(servers)
    if ours_first:
        broker.publish(batch)
    bare = _bare(servers)
    contenders = [bare, broker.publish, *([other.publish] if with_other else [])]
    try:
        for publish in contenders * 3:
            publish(batch)
        measure = partial(_call, batch) if threads == 1 else partial(_crowd, threads, batch)
        took = _medians(measure, contenders, turns)
        return took[0] / took[1], took[2] / took[1] if with_other else None
    finally:
        broker.close()
        other.close()


def _bare(servers: str) -> Publish:
    options = {"bootstrap.servers": servers, "acks": "all", "enable.idempotence": True, "linger.ms": 0}
    options["partitioner"] = "murmur2_random"
    producer = Producer(options, logger=logging.getLogger("bare"))

    def publish(messages: Sequence[OutgoingMessage]) -> None:
        errors = []

        def report(error: object, _: object) -> None:
            if error is not None:
                errors.append(error)

        for sent in messages:
            headers = [(f"ce_{name}", value.encode()) for name, value in sent.attributes.items()]
            headers.append(("content-type", sent.content_type.encode()))
            key = None if sent.key is None else sent.key.encode()
            producer.produce(sent.topic, sent.body, key, headers=headers, on_delivery=report)
        assert (0, []) == (producer.flush(5), errors)

    return publish


def _medians(measure: Callable[[Publish], float], contenders: Sequence[Publish], turns: int) -> list[float]:
    """Let all take turns, now in this order, now in the other; medians, because one turn in many meets other work."""
    took: list[list[float]] = [[] for _ in contenders]
    for number in range(turns):
        for place in range(len(contenders)) if number % 2 else reversed(range(len(contenders))):
            took[place].append(measure(contenders[place]))
    return [statistics.median(one) for one in took]


def _call(batch: Sequence[OutgoingMessage], publish: Publish) -> float:
    started = time.perf_counter()
    publish(batch)
    return time.perf_counter() - started


def _crowd(count: int, batch: Sequence[OutgoingMessage], publish: Publish) -> float:
    def repeat() -> None:
        for _ in range(_CALLS_IN_A_CROWD):
            publish(batch)

    workers = [threading.Thread(target=repeat) for _ in range(count)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - started


def main() -> None:
    """Print a table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    print(f"{'ours against a bare Producer':<48}{'ratio':>7}{'bar':>7}")
    for name, ratio, bar in run(rounds):
        print(f"{name:<48}{ratio:>7.3f}{bar:>7.2f}{'' if ratio >= bar else '  missed'}")


if __name__ == "__main__":
    main()
