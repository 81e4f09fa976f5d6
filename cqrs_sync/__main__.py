"""`python -m cqrs_sync`."""

from __future__ import annotations

from cqrs_sync.cli import main

main(prog_name="python -m cqrs_sync")
