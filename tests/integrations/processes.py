"""Run examples and workers as their users do: as processes of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.source import ROOT
from tests.waiting import eventually

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


class WorkerProcess:
    """A worker as a process, with its log and its standard output."""

    def __init__(self, arguments: list[str], directory: Path, env: dict[str, str]) -> None:
        self.log_file = directory / "log"
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cqrs_sync", *arguments],
                cwd=directory, env=env, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip

    def log(self) -> str:
        """What it has logged so far."""
        return self.log_file.read_text()

    def logged(self, pattern: str) -> re.Match[str]:
        """What it has logged, once it has."""
        return eventually(lambda: re.search(pattern, self.log()))

    def line(self) -> str:
        """The next line of its standard output."""
        return self.process.stdout.readline().rstrip()

    def rest(self) -> list[str]:
        """All further lines of its standard output; returns when it has ended."""
        return self.process.stdout.read().splitlines()

    def send(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def status(self, timeout: float = 40) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(timeout)

    def kill(self) -> None:
        """End it in any case."""
        self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture
def start_worker(tmp_path):
    """Start workers, `start_worker(*arguments, **environment)`; they are killed at the end of the test."""
    running: list[WorkerProcess] = []

    def start(*arguments: str, **variables: str) -> WorkerProcess:
        running.append(WorkerProcess(list(arguments), tmp_path, environment(**variables)))
        return running[-1]

    yield start
    for each in running:
        each.kill()


@pytest.fixture
def gate(tmp_path):
    """A file: handlers of the applications do not end as long as it is there."""
    path = tmp_path / "gate"
    path.touch()
    return path
