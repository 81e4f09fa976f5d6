"""
The command line: `python -m cqrs_sync`, or `cqrs-sync`.

`program` is what is called, `play` is the demo; the other commands are those of `cqrs_sync.commands`.
"""

from __future__ import annotations

from cqrs_sync.cli.program import main

__all__ = ["main"]
