"""
How near receiving comes to a loop over pika itself.

Messages are small: eight attributes and a body of 200 bytes. Contenders take turns in one process, each
with a full queue; a figure is the median of the rounds' ratios.

    python -m tests.benchmarks.rabbitmq_receive [messages] [rounds]
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import pika

from cqrs_sync.broker import Group
from cqrs_sync.integrations.rabbitmq import RabbitMQBroker
from tests.benchmarks.rabbitmq_publish import sample_message
from tests.servers.rabbitmq import forget

_URL = os.environ.get("CQRS_TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/")
_PREFETCH = 200


def run(messages: int, rounds: int) -> dict[str, list[float]]:
    """Measure; return the rates of each contender, round by round, in messages a second."""
    exchange = f"bench-{uuid.uuid4().hex[:8]}"
    group = Group("group", ("meetings",), prefetch=_PREFETCH)
    rates: dict[str, list[float]] = {}
    with contextlib.closing(RabbitMQBroker(_URL, exchange=exchange, publish_timeout=120)) as broker:
        broker.apply_topology(group)
        contenders: dict[str, Callable[[int], float]] = {
            "ours": lambda count: _ours(broker, group, count),
            "pika, blocking": lambda count: _blocking(f"{exchange}.group", count),
            "pika, select": lambda count: _select(f"{exchange}.group", count),
        }
        try:
            for _ in range(rounds):
                for name, contender in contenders.items():
                    broker.publish([sample_message() for _ in range(messages)])
                    rates.setdefault(name, []).append(contender(messages))
        finally:
            forget(_URL, exchange, group)
    return rates


def _ours(broker: RabbitMQBroker, group: Group, count: int) -> float:
    with broker.subscribe(group) as subscription:
        started = time.perf_counter()
        left = count
        while left:
            delivery = subscription.receive(30)
            assert delivery is not None
            delivery.ack()
            left -= 1
        return count / (time.perf_counter() - started)


def _blocking(queue: str, count: int) -> float:
    connection = pika.BlockingConnection(pika.URLParameters(_URL))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=_PREFETCH)
    started = time.perf_counter()
    left = count
    for method, _, _ in channel.consume(queue):
        channel.basic_ack(method.delivery_tag)
        left -= 1
        if not left:
            break
    took = time.perf_counter() - started
    connection.close()
    return count / took


def _select(queue: str, count: int) -> float:
    started = ended = 0.0
    left = count

    def consume(channel: Any) -> None:
        nonlocal started
        started = time.perf_counter()
        channel.basic_qos(prefetch_count=_PREFETCH)
        channel.basic_consume(queue, take)

    def take(channel: Any, method: Any, _: Any, __: bytes) -> None:
        nonlocal left, ended
        channel.basic_ack(method.delivery_tag)
        left -= 1
        if not left:
            ended = time.perf_counter()
            connection.close()

    connection = pika.SelectConnection(
        pika.URLParameters(_URL),
        on_open_callback=lambda opened: opened.channel(on_open_callback=consume),
        on_close_callback=lambda closed, _: closed.ioloop.stop(),
    )
    connection.ioloop.start()
    return count / (ended - started)


def main() -> None:
    """Print the rates and ratios."""
    messages, rounds = (int(sys.argv[n]) if len(sys.argv) > n else n_default for n, n_default in ((1, 50_000), (2, 3)))
    rates = run(messages, rounds)
    best = [max(pair) for pair in zip(rates["pika, blocking"], rates["pika, select"], strict=True)]
    for name, figures in rates.items():
        ratio = statistics.median(figure / limit for figure, limit in zip(figures, best, strict=True))
        shown = ", ".join(f"{figure:,.0f}" for figure in figures)
        print(f"{name:16} {shown:40} {ratio:5.2f} of the better loop")


if __name__ == "__main__":
    main()
