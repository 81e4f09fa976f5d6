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
from collections.abc import Sequence

from confluent_kafka import Producer

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.integrations.confluent import ConfluentKafkaBroker
from cqrs_sync.integrations.kafka import KafkaBroker
from tests.benchmarks.kafka_publish import Publish, batch_of, measures, medians, print_table
from tests.servers.kafka import Tansu

#: Of the bare producer, and in times KafkaBroker.
BAR, GAIN = 0.6, 3.0
#: Name, threads, messages in a call, turns of each contender in a round.
LOADS = (
    ("one message", 1, 1, 100),
    ("five in a request", 1, 5, 80),
    ("batches of 500", 1, 500, 10),
    ("16 threads, one message each", 16, 1, 8),
)
_RELAY = "batches of 500"


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
    batch = batch_of(size)
    broker, other = ConfluentKafkaBroker(servers), KafkaBroker(servers)
    if ours_first:
        broker.publish(batch)
    bare = _bare(servers)
    contenders = [bare, broker.publish, *([other.publish] if with_other else [])]
    try:
        for publish in contenders * 3:
            publish(batch)
        took = medians(measures(threads, batch), contenders, turns)
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


if __name__ == "__main__":
    print_table("ours against a bare Producer", run)
