"""Run the examples as their readers do: as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.source import ROOT

EXAMPLES = ROOT / "docs" / "examples"


def environment(*directories: Path, **variables: str) -> dict[str, str]:
    """The environment of a process that finds this library, and modules in these directories."""
    paths = os.pathsep.join(map(str, (ROOT, *directories)))
    return {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", **variables}


def run(arguments: list[str], cwd: Path, env: dict[str, str]) -> str:
    """Run Python with these arguments, and return what it says; it has to end well, within a minute."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


class Server:
    """A process that serves until it is told to stop."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text()

    def says(self, words: str) -> bool:
        """Whether it has said this; fails where it has ended."""
        assert self.process.poll() is None, self.log()
        return words in self.log()


@contextmanager
def serving(arguments: list[str], cwd: Path, env: dict[str, str], log: Path) -> Iterator[Server]:
    """Run Python with these arguments; asked to stop at the end of the block, it has to end well."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    server = Server(process, log)
    try:
        yield server
        process.terminate()
        assert process.wait(30) == 0, server.log()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
