"""
Storms over the outbox: kills, stops, outages, long transactions, on real servers.

    python -m tests.storms.outbox          # in full: about 12 minutes
    python -m tests.storms.outbox kills    # only those whose name begins like this

Each ends with its figures. The tests run a short form of each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tests.storms.outbox import kills, storms
from tests.storms.outbox.environment import Figures
from tests.storms.running import run

Storm = Callable[[Path], Figures]

STORMS: dict[str, Storm] = {
    **{
        f"kills-{database}-{broker}": lambda directory, database=database, broker=broker: kills.storm(  # type: ignore[misc]
            database, broker, directory, orders=10_000, kills=20
        )
        for database, broker in (("postgresql", "rabbitmq"), ("mariadb", "rabbitmq"), ("postgresql", "kafka"))
    },
    **{
        f"calm-{relays}-{database}": lambda directory, relays=relays, database=database: storms.calm(  # type: ignore[misc]
            database, "rabbitmq", directory, orders=10_000, relays=relays
        )
        for relays in (2, 4)
        for database in ("postgresql", "mariadb")
    },
    **{
        f"{fault}-{database}": lambda directory, fault=fault, database=database: storms.stopped(  # type: ignore[misc]
            database, directory, orders=1000, fault=fault
        )
        for fault in ("stop-settle", "stop-claim")
        for database in ("postgresql", "mariadb")
    },
    "skewed-clocks": lambda directory: storms.calm(
        "postgresql", "rabbitmq", directory, orders=10_000, relays=4, skew=300
    ),
    "deploys": lambda directory: storms.deploys("postgresql", directory, orders=2000, times=20),
    "cut-off-postgresql": lambda directory: storms.cut_off("postgresql", directory, orders=4000, times=30),
    "late-commit-postgresql": lambda directory: storms.late_commit("postgresql", directory, orders=5000, seconds=60),
    "late-commit-mariadb": lambda directory: storms.late_commit("mariadb", directory, orders=5000, seconds=60),
    "durable-postgresql": lambda directory: storms.durable("postgresql", directory, orders=20),
    "durable-mariadb": lambda directory: storms.durable("mariadb", directory, orders=20),
    "outage": lambda directory: storms.outage("postgresql", directory, orders=5000, seconds=60),
}


if __name__ == "__main__":
    sys.exit(run(STORMS, __doc__ or ""))
