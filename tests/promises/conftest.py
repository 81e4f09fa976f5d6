"""Every promise is kept whatever handlers run on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cqrs_sync.threads.pool import Executor, SameThread, ThreadPool

SIZES = {"same-thread": None, "pool-of-1": 1, "pool-of-2": 2, "pool-of-16": 16}


@pytest.fixture(params=SIZES.values(), ids=SIZES.keys())
def threads(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """Where event handlers run: in the caller's thread, then on pools of 1, 2 and 16."""
    if request.param is None:
        yield SameThread()
        return
    with ThreadPool(request.param) as pool:
        yield pool
