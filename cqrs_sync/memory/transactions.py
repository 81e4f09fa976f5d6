"""Transactions without a database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs


@attrs.define
class _Block:
    """The callbacks of a transaction, or of a savepoint in one."""

    writes: list[Callable[[], object]] = attrs.field(factory=list)
    callbacks: list[Callable[[], object]] = attrs.field(factory=list)
    undo: list[Callable[[], object]] = attrs.field(factory=list)


class _OpenBlocks(threading.local):
    """The open blocks of the calling thread, the innermost last."""

    def __init__(self) -> None:
        self.blocks: list[_Block] = []


class MemoryTransactions:
    """
    Transactions without a database, for tests: nested like Django's `atomic`.

    A block inside a block is a savepoint. If it fails, its callbacks are dropped; all others run when the outermost
    block commits. Each thread has its own transactions, as it has its own database connection.
    """

    def __init__(self) -> None:
        self._local = _OpenBlocks()

    def active(self) -> bool:
        """Tell whether this thread is inside a block."""
        return bool(self._local.blocks)

    def on_commit(self, callback: Callable[[], object], /) -> None:
        """Call `callback` after the outermost block has committed; outside of a block, at once."""
        blocks = self._local.blocks
        if blocks:
            blocks[-1].callbacks.append(callback)
        else:
            callback()

    def at_commit(self, write: Callable[[], object], /) -> None:
        """Call `write` when the outermost block commits, before its callbacks; outside of a block, at once."""
        blocks = self._local.blocks
        if blocks:
            blocks[-1].writes.append(write)
        else:
            write()

    def at_rollback(self, undo: Callable[[], object], /) -> None:
        """Call `undo` when this block or one around it is rolled back; outside of a block, never."""
        blocks = self._local.blocks
        if blocks:
            blocks[-1].undo.append(undo)

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """Open a transaction, or a savepoint inside one."""
        blocks, block = self._local.blocks, _Block()
        blocks.append(block)
        try:
            yield
        except BaseException:
            blocks.pop()
            for undo in reversed(block.undo):
                undo()
            raise
        blocks.pop()
        if blocks:
            blocks[-1].undo.extend(block.undo)
            blocks[-1].writes.extend(block.writes)
            blocks[-1].callbacks.extend(block.callbacks)
            return
        for call in [*block.writes, *block.callbacks]:
            call()
