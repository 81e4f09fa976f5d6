"""Run storms by the beginnings of their names, and show the figures of each as it ends."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol


class Figures(Protocol):
    """What became of a storm; `str` shows it."""

    @property
    def wrong(self) -> int:
        """How much is not as it must be."""


def run(storms: Mapping[str, Callable[[Path], Figures]], description: str) -> int:
    """Return the exit status: 0 when some were run, and nothing was wrong in any."""
    parser = argparse.ArgumentParser(description=description.strip().partition("\n")[0])
    parser.add_argument("name", nargs="?", default="", help="how the names of those to be run begin")
    options = parser.parse_args()
    chosen = {name: storm for name, storm in storms.items() if name.startswith(options.name)}
    wrong = 0
    for name, storm in chosen.items():
        with tempfile.TemporaryDirectory() as directory:
            begun = time.monotonic()
            figures = storm(Path(directory))
            wrong += figures.wrong
            sys.stdout.write(f"{name:<30}{figures}, {time.monotonic() - begun:.0f} s in all\n")
            sys.stdout.flush()
    return int(bool(wrong) or not chosen)
