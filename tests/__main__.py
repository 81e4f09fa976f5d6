"""
Check everything: `python -m tests`.

Each check runs, whatever the others said; the tests come last, in two parts side by side, since much of
what servers are tested for is waiting. Arguments go to pytest, and with any the other checks are left
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
from typing import IO

ROOT = Path(__file__).parent.parent

CHECKS = [
    ("format", ["ruff", "format", "--check", "."]),
    ("lint", ["ruff", "check", "."]),
    ("types", ["mypy"]),
    ("layers", ["lint-imports", "--no-logo"]),
]
TESTS = ("tests", ["pytest"])
#: Tests that mostly wait for servers: each of these parts runs beside all others.
WAITING = {"servers": ["tests/brokers", "tests/storms"]}


def main(arguments: Sequence[str]) -> int:
    """Return the exit status: 0 when every check passed."""
    name, command = TESTS
    if arguments:
        results = [(name, *_run([*command, *arguments]))]
    else:
        results = [(check, *_run(command)) for check, command in CHECKS]
        results += _run_in_parts(name, command)
    print()
    for name, passed, seconds in results:
        print(f"{'ok    ' if passed else 'FAILED'}  {name:<8}{seconds:7.1f} s")
    return 0 if all(passed for _, passed, _ in results) else 1


def _run_in_parts(name: str, command: Sequence[str]) -> list[tuple[str, bool, float]]:
    """Run the tests that wait beside the others; what they say is shown when they are done."""
    started = time.monotonic()
    waiting = {part: _begun([*command, *paths]) for part, paths in WAITING.items()}
    others = _run([*command, *(f"--ignore={path}" for paths in WAITING.values() for path in paths)])
    results = [(name, *others)]
    for part, (process, said) in waiting.items():
        passed = process.wait() == 0
        results.append((part, passed, time.monotonic() - started))
        print(f"\n$ {shlex.join([*command, *WAITING[part]])}", flush=True)
        said.seek(0)
        shutil.copyfileobj(said, sys.stdout)
    return results


def _begun(command: Sequence[str]) -> tuple[subprocess.Popen[str], IO[str]]:
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- read when the process has ended
    process = subprocess.Popen(
        [_tool(command[0]), *command[1:]], cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, text=True
    )
    return process, said


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
