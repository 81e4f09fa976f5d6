"""What the outbox promises about connections: any thread, any process, and servers that close them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

from cqrs_sync.outbox import Outbox
from cqrs_sync.testing.contracts import in_forked_child
from cqrs_sync.testing.outbox.entries import (
    LONG,
    Atomic,
    OutboxFixtures,
    bodies,
    claim,
    delivered,
    done,
    keep,
    published,
)
from cqrs_sync.testing.threads import in_threads
from cqrs_sync.testing.waiting import eventually


class ConnectionsContract(OutboxFixtures):
    """Any number of threads and processes use it."""

    def test_any_thread_may_add(self, outbox: Outbox, atomic: Atomic) -> None:
        """Each in its own transaction."""

        def add(thread: int) -> None:
            for number in range(10):
                keep(outbox, atomic, published(f"{thread}/{number}"))
            outbox.release_connection()

        in_threads(*(lambda thread=thread: add(thread) for thread in range(8)), timeout=60)

        assert sorted(f"{thread}/{number}" for thread in range(8) for number in range(10)) == sorted(claim(outbox))

    def test_a_forked_child_uses_it(self, outbox: Outbox, atomic: Atomic) -> None:
        """It makes connections of its own, and the parent keeps its own."""
        keep(outbox, atomic, published("of the parent"), published("for the child"))
        first = outbox.claim(1, 60)

        def child() -> None:
            second = outbox.claim(10, 60)
            assert ["for the child"] == bodies(second)
            assert 1 == outbox.settle(done(second))
            keep(outbox, atomic, published("of the child"))

        assert 0 == in_forked_child(child, timeout=20)

        assert 1 == outbox.settle(done(first))
        expected = ["of the child"] if self.features.is_shared else ["for the child"]
        assert expected == claim(outbox)

    def test_a_forked_child_and_its_parent_use_it_at_once(self, outbox: Outbox, atomic: Atomic) -> None:
        """Neither speaks on a connection of the other."""

        def work(name: str) -> None:
            for number in range(25):
                keep(outbox, atomic, published(f"{name}/{number}"))
                outbox.settle(done(outbox.claim(1, LONG)))

        work("before")
        child = multiprocessing.get_context("fork").Process(target=work, args=("child",))
        child.start()
        try:
            work("parent")
            child.join(20)
        finally:
            child.kill()
            child.join()

        assert 0 == child.exitcode
        # What both wanted at a time may be left.
        assert len(delivered(outbox, 100)) < 50
        assert 0 == outbox.backlog().waiting

    def test_a_child_forked_inside_a_transaction_leaves_it_alone(self, outbox: Outbox, atomic: Atomic) -> None:
        """It is the parent's, and commits as if nothing had been."""
        with atomic():
            outbox.add([published("before")])
            assert 0 == in_forked_child(lambda: None, timeout=20)
            outbox.add([published("after")])

        assert ["before", "after"] == claim(outbox)

    def test_connections_that_the_server_has_closed_are_replaced(
        self, outbox: Outbox, atomic: Atomic, cut_connections: Callable[[], object] | None
    ) -> None:
        """At most one call fails for each."""
        if cut_connections is None:
            return
        keep(outbox, atomic, published("1"))
        first = outbox.claim(1, 60)
        cut_connections()

        eventually(lambda: _works(lambda: keep(outbox, atomic, published("2"))))
        cut_connections()
        assert eventually(lambda: _works(lambda: outbox.settle(done(first))))
        assert ["2"] == claim(outbox)


def _works(action: Callable[[], object]) -> bool:
    try:
        action()
    except Exception:  # noqa: BLE001 -- whatever a broken connection raises where it is noticed
        return False
    return True
