"""
Check everything: `python -m tests`.

Each check runs, whatever the others said; the tests come last, in two parts side by side, since much of
what brokers are tested for is waiting. Arguments go to pytest, and with any the other checks are left
out: `python -m tests -k saga`.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent

CHECKS = [
    ("format", ["ruff", "format", "--check", "."]),
    ("lint", ["ruff", "check", "."]),
    ("types", ["mypy"]),
    ("layers", ["lint-imports", "--no-logo"]),
]
TESTS = ("tests", ["pytest"])
#: Tests that mostly wait for servers: they run beside all others.
WAITING = ["tests/brokers"]


def main(arguments: Sequence[str]) -> int:
    """Return the exit status: 0 when every check passed."""
    name, command = TESTS
    if arguments:
        results = [(name, *_run([*command, *arguments]))]
    else:
        results = [(check, *_run(command)) for check, command in CHECKS]
        results += _run_in_two_parts(name, command)
    print()
    for name, passed, seconds in results:
        print(f"{'ok    ' if passed else 'FAILED'}  {name:<8}{seconds:7.1f} s")
    return 0 if all(passed for _, passed, _ in results) else 1


def _run_in_two_parts(name: str, command: Sequence[str]) -> list[tuple[str, bool, float]]:
    """Run the tests that wait beside the others; what they say is shown when they are done."""
    with tempfile.TemporaryFile("w+") as said:
        started = time.monotonic()
        waiting = subprocess.Popen(
            [_tool(command[0]), *command[1:], *WAITING], cwd=ROOT, stdout=said, stderr=subprocess.STDOUT
        )
        others = _run([*command, *(f"--ignore={path}" for path in WAITING)])
        passed = waiting.wait() == 0
        took = time.monotonic() - started
        print(f"\n$ {shlex.join([*command, *WAITING])}", flush=True)
        said.seek(0)
        shutil.copyfileobj(said, sys.stdout)
    return [(name, *others), ("waiting", passed, took)]


def _run(command: Sequence[str]) -> tuple[bool, float]:
    print(f"\n$ {shlex.join(command)}", flush=True)
    started = time.monotonic()
    status = subprocess.run([_tool(command[0]), *command[1:]], cwd=ROOT, check=False).returncode
    return status == 0, time.monotonic() - started


def _tool(name: str) -> str:
    """Find the tool that belongs to this interpreter, whether or not its environment is active."""
    tool = shutil.which(name, path=sysconfig.get_path("scripts"))
    if tool is None:
        sys.exit(f"{name} is not installed beside {sys.executable}: run `pip install -e '.[dev]'`")
    return tool


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
