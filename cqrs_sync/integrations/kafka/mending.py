"""What kafka-python 3.0.12 gets wrong about consumers that are polled in short moments."""

# What is mended here is below its public surface.
# ruff: noqa: SLF001

from __future__ import annotations

from typing import Any

from kafka.coordinator.base import MemberState


def free_parked_records(consumer: Any) -> None:
    """
    Let it give out what it had fetched of a partition that was paused and resumed; before each `poll`.

    It does so when no other batch is in its hands, and takes one that is used up for one
    that is not: it would neither give these records out nor fetch the partition again.
    """
    fetcher = getattr(consumer, "_fetcher", None)
    if fetcher and getattr(fetcher, "_paused_partition_records", None) and not fetcher._next_partition_records:
        fetcher._next_partition_records = None


def keep_finished_joins(consumer: Any) -> None:
    """
    Let it take its place in the group although nobody was in `poll` at that moment; once for a consumer.

    Where joining has succeeded between two calls, the next one would begin anew, and who
    only ever polls in short moments would never be there.
    """
    coordinator = getattr(consumer, "_coordinator", None)
    attempt = getattr(coordinator, "_do_join_and_sync_async", None)
    if coordinator is None or attempt is None:
        return
    unseen: list[Any] = []

    async def join() -> Any:
        # When it is seen the state is STABLE; where the place in the group is lost meanwhile, UNJOINED.
        if unseen and coordinator.state == MemberState.REBALANCING:
            return unseen.pop()
        unseen.clear()
        assignment = await attempt()
        unseen.append(assignment)
        return assignment

    coordinator._do_join_and_sync_async = join
