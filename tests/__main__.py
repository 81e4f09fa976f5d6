"""
Check everything: `python -m tests`.

Each check runs, whatever the others said; the tests come last, three at a time, since much of what servers
are tested for is waiting. Arguments go to pytest, and with any the other checks are left out, and tests
run one at a time: `python -m tests -k saga`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent

#: What the prose linter reads; `tests.source` has words that it does not know.
PROSE = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs"]

CHECKS = [
    ("format", ["ruff", "format", "--check", "."]),
    ("lint", ["ruff", "check", "."]),
    ("types", ["mypy"]),
    ("layers", ["lint-imports", "--no-logo"]),
    ("spelling", ["codespell"]),
    ("prose", ["proselint", "--config", ".proselintrc.json", "check", *PROSE]),
    ("site", ["mkdocs", "build", "--strict", "--config-file", ".mkdocs.yml"]),
    ("tests", ["pytest", "--numprocesses", "3", "--dist", "worksteal"]),
]


def main(arguments: Sequence[str]) -> int:
    """Return the exit status: 0 when every check passed."""
    checks = [("tests", ["pytest", *arguments])] if arguments else CHECKS
    results = [(name, *_run(command)) for name, command in checks]
    print()
    for name, passed, seconds in results:
        print(f"{'ok    ' if passed else 'FAILED'}  {name:<8}{seconds:7.1f} s")
    return 0 if all(passed for _, passed, _ in results) else 1


def _run(command: Sequence[str]) -> tuple[bool, float]:
    print(f"\n$ {shlex.join(command)}", flush=True)
    started = time.monotonic()
    # The theme would print what it thinks of MkDocs 2.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "true"}
    status = subprocess.run([_tool(command[0]), *command[1:]], cwd=ROOT, check=False, env=environment).returncode
    return status == 0, time.monotonic() - started


def _tool(name: str) -> str:
    """Find the tool that belongs to this interpreter, whether or not its environment is active."""
    tool = shutil.which(name, path=sysconfig.get_path("scripts"))
    if tool is None:
        sys.exit(f"{name} is not installed beside {sys.executable}: run `pip install -e '.[dev]'`")
    return tool


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
