"""
What `import cqrs_sync` costs beside importing what it stands on.

    python -m tests.benchmarks.imports [rounds]
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile

from tests.benchmarks.figures import Figure, ratio, rounds_of, table


def run(rounds: int = 15) -> list[Figure]:
    """Start an interpreter for each import, in turns; processor time, so that a busy machine matters less."""
    with tempfile.TemporaryDirectory() as compiled:
        # An installed package has its bytecode; a source tree may have none, and no leave to write it.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
        contenders = {
            "ours": lambda: _processor_time("import cqrs_sync", environment),
            "theirs": lambda: _processor_time("import attrs, cattrs, punq", environment),
        }
        rounds_of(contenders, 1)
        measured = rounds_of(contenders, rounds)
    return [Figure("import cqrs_sync, of import attrs, cattrs, punq", ratio(measured, "ours", "theirs"), 1.4)]


def _processor_time(program: str, environment: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


if __name__ == "__main__":
    print(table(run(int(sys.argv[1]) if len(sys.argv) > 1 else 15)))
