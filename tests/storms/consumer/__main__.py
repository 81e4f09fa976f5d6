"""
Storms over consumers: copies, deploys, kills, lost paths, bad messages, outages, on real servers.

    python -m tests.storms.consumer          # in full: about half an hour
    python -m tests.storms.consumer kills    # only those whose name begins like this

Each ends with its figures. The tests run a short form of most.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.storms.consumer import storms
from tests.storms.consumer.environment import Figures
from tests.storms.running import run

Storm = Callable[[Path], Figures]


def _on(storm: Callable[..., Figures], *where: str, **options: object) -> Storm:
    return lambda directory: partial(storm, *where)(directory, **options)


STORMS: dict[str, Storm] = {
    "thrice-postgresql-rabbitmq": _on(storms.thrice, "postgresql", "rabbitmq", messages=10_000),
    "thrice-mariadb-rabbitmq": _on(storms.thrice, "mariadb", "rabbitmq", messages=10_000),
    "thrice-postgresql-kafka": _on(storms.thrice, "postgresql", "kafka", messages=10_000),
    "thrice-postgresql-confluent": _on(storms.thrice, "postgresql", "confluent", messages=10_000),
    "deploys-postgresql-rabbitmq": _on(storms.deploys, "postgresql", "rabbitmq", times=200),
    "deploys-postgresql-kafka": _on(storms.deploys, "postgresql", "kafka", times=50),
    "joins-postgresql-rabbitmq": _on(storms.joins, "postgresql", "rabbitmq", times=10),
    "joins-postgresql-kafka": _on(storms.joins, "postgresql", "kafka", times=10),
    "joins-postgresql-confluent": _on(storms.joins, "postgresql", "confluent", times=10),
    "kills-postgresql-rabbitmq": _on(storms.kills, "postgresql", "rabbitmq", times=20),
    "kills-mariadb-rabbitmq": _on(storms.kills, "mariadb", "rabbitmq", times=20),
    "kills-postgresql-kafka": _on(storms.kills, "postgresql", "kafka", times=20),
    "kills-postgresql-confluent": _on(storms.kills, "postgresql", "confluent", times=20),
    "dropped-rabbitmq": _on(storms.lost_connections, "postgresql", times=50, fault="drop"),
    "frozen-rabbitmq": _on(storms.lost_connections, "postgresql", times=3, fault="freeze"),
    "restarts-rabbitmq": _on(storms.restarts, "postgresql", times=10),
    # It looks once a minute: after 90 seconds it may not have seen it.
    "long-rabbitmq": _on(storms.long_handler, "postgresql", "rabbitmq", seconds=200.0, limit=60.0),
    "long-kafka": _on(storms.long_handler, "postgresql", "kafka", seconds=90.0, limit=30.0),
    "hostile-rabbitmq": _on(storms.hostile, "postgresql", "rabbitmq", count=10_000),
    "hostile-kafka": _on(storms.hostile, "postgresql", "kafka", count=10_000),
    "deadly-rabbitmq": _on(storms.deadly, "postgresql", "rabbitmq"),
    "deadly-kafka": _on(storms.deadly, "postgresql", "kafka"),
    "outage-rabbitmq": _on(storms.outage, "postgresql", "rabbitmq", messages=10_000, seconds=300.0),
    "one-partition": _on(storms.one_partition, "postgresql", messages=10_000),
}


if __name__ == "__main__":
    sys.exit(run(STORMS, __doc__ or ""))
