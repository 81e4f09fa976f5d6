"""
Kill writers and relays at random instants, and relays between publishing and settling.

What is published is what was committed; duplicates are those of batches that were under
way, with the same ids; each key keeps its order.
"""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

from tests.storms.outbox.environment import Environment, Figures, broker_of, kill, killed_itself, pause, somewhere
from tests.waiting import eventually

WRITERS = 8
#: Seconds that what a dead process had claimed is left alone.
LEASE = 3.0


def storm(database: str, broker: str, directory: Path, *, orders: int, kills: int) -> Figures:
    """
    Place `orders` orders while writers, relays, and relays that have published are killed, `kills` times each.

    There are two relays, and all of them are started again.
    """
    with Environment(database, broker_of(broker), directory) as environment:
        begun = time.monotonic()
        tempest = _Kills(environment, orders // WRITERS, kills)
        tempest.rage()
        eventually(lambda: environment.waiting() == 0, timeout=120)
        seconds = time.monotonic() - begun
        tempest.calm()
        figures = environment.figures()
        figures.extra = {**tempest.hits, "seconds": round(seconds, 1)}
        return figures


class _Kills:
    def __init__(self, environment: Environment, count: int, kills: int) -> None:
        self._place = environment
        self._count = count
        self._kills = kills
        # As long as it takes to kill that often: a relay is back after about two seconds.
        self._pace = 3.0 * kills / count
        self._writers = [self._writer(number) for number in range(WRITERS)]
        self._relays = [_Relay(environment), _Relay(environment)]
        self.hits = {"writers_killed": 0, "relays_killed": 0, "relays_killed_before_settling": 0}

    def rage(self) -> None:
        """Kill until every order is placed, and everybody was killed often enough."""
        turn = 0
        while not self._written():
            pause(somewhere(0.1, 0.4))
            turn += 1
            self._revive()
            if self.hits["writers_killed"] < self._kills:
                self.hits["writers_killed"] += kill(self._writers[turn % WRITERS])
            relay = self._relays[turn % 2]
            if self.hits["relays_killed"] < self._kills and not relay.armed and relay.age() > 1.5:
                self.hits["relays_killed"] += kill(relay.process)
        self._revive()

    def calm(self) -> None:
        """Let the relays end as they do on a deploy."""
        for relay in self._relays:
            relay.process.terminate()
        for relay in self._relays:
            relay.process.wait(30)

    def _revive(self) -> None:
        for number, writer in enumerate(self._writers):
            if writer.poll() not in (None, 0):
                self._writers[number] = self._writer(number)
        for environment, relay in enumerate(self._relays):
            if relay.process.poll() is not None:
                self.hits["relays_killed_before_settling"] += relay.armed and killed_itself(relay.process)
                self._relays[environment] = _Relay(self._place, armed=not relay.armed and not self._written())

    def _written(self) -> bool:
        return all(writer.poll() == 0 for writer in self._writers)

    def _writer(self, number: int) -> subprocess.Popen[bytes]:
        arguments = ("--name", f"w{number}", "--count", str(self._count), "--pace", str(self._pace))
        # Every other one also delivers what it writes.
        return self._place.start("writer", *arguments, *(["--no-fast-path"] if number % 2 else []))


class _Relay:
    """A relay that is killed, or, armed, kills itself when it has published and not settled."""

    def __init__(self, environment: Environment, *, armed: bool = False) -> None:
        self.armed = armed
        self._begun = time.monotonic()
        fault = f"settle:{random.SystemRandom().randint(1, 4)}" if armed else ""
        self.process = environment.start("relay", "--lease", str(LEASE), fault=fault)

    def age(self) -> float:
        return time.monotonic() - self._begun
