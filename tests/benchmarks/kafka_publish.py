"""
What our Kafka broker costs beside a bare `KafkaProducer` that does the same sends and checks.

    python -m tests.benchmarks.kafka_publish [rounds]

Both get the same messages, make the same headers of them, and wait for every future.
They take turns on one Tansu that is started for it; more than 1 is faster than bare.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from kafka import KafkaProducer

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.integrations.kafka import KafkaBroker
from cqrs_sync.testing.contracts.broker import message
from tests.servers.kafka import Tansu

BAR = 0.95
_CALLS_IN_A_CROWD = 10
#: Name, threads, messages in a call, turns of each contender in a round.
LOADS = (
    ("one message", 1, 1, 100),
    ("five in a request", 1, 5, 80),
    ("batches of 500", 1, 500, 8),
    ("16 threads, one message each", 16, 1, 8),
    ("16 threads, five in a request", 16, 5, 6),
)

Publish = Callable[[Sequence[OutgoingMessage]], None]


def run(rounds: int) -> list[tuple[str, float, float]]:
    """Return the name of each load, ours against bare in messages per second, and the bar."""
    ratios: dict[str, list[float]] = {name: [] for name, *_ in LOADS}
    with Tansu() as server:
        for number in range(rounds):
            # Connections are not equal: two bare producers differ by up to a tenth, the one made later being slower.
            for name, *load in LOADS if number % 2 else reversed(LOADS):
                ratios[name].append(_round(server.servers, load, ours_first=bool(number % 2)))
    return [(f"kafka, {name}", statistics.median(ratios[name]), BAR) for name, *_ in LOADS]


def _round(servers: str, load: Sequence[int], *, ours_first: bool) -> float:
    threads, size, turns = load
    batch = batch_of(size)
    broker = KafkaBroker(servers)
    if ours_first:
        broker.publish(batch)
    producer = KafkaProducer(bootstrap_servers=servers, acks="all", metrics_enabled=False)
    bare = _bare(producer)
    try:
        for publish in (bare, broker.publish) * 3:
            publish(batch)
        took = medians(measures(threads, batch), [bare, broker.publish], turns)
        return took[0] / took[1]
    finally:
        broker.close()
        producer.close()


def _bare(producer: KafkaProducer) -> Publish:
    def publish(messages: Sequence[OutgoingMessage]) -> None:
        futures = []
        for sent in messages:
            headers = [(f"ce_{name}", value.encode()) for name, value in sent.attributes.items()]
            headers.append(("content-type", sent.content_type.encode()))
            key = None if sent.key is None else sent.key.encode()
            futures.append(producer.send(sent.topic, sent.body, key, headers))
        for future in futures:
            future.get(timeout=5)

    return publish


def measures(threads: int, batch: Sequence[OutgoingMessage]) -> Callable[[Publish], float]:
    """Return what measures a contender: one call, or many threads that call at once."""
    return partial(_call, batch) if threads == 1 else partial(_crowd, threads, batch)


def batch_of(size: int) -> list[OutgoingMessage]:
    """Return so many messages of 200 bytes."""
    return [message("benchmark", b'{"n": "%0190d"}' % n, key=str(n)) for n in range(size)]


def medians(measure: Callable[[Publish], float], contenders: Sequence[Publish], turns: int) -> list[float]:
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


def print_table(title: str, run: Callable[[int], list[tuple[str, float, float]]]) -> None:
    """Measure in as many rounds as the command line says, and print the figures."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    print(f"{title:<48}{'ratio':>7}{'bar':>7}")
    for name, ratio, bar in run(rounds):
        print(f"{name:<48}{ratio:>7.3f}{bar:>7.2f}{'' if ratio >= bar else '  missed'}")


if __name__ == "__main__":
    print_table("ours against a bare KafkaProducer", run)
