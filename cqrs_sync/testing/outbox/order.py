"""What the outbox promises about order: per key and target, and nowhere else."""

from __future__ import annotations

import threading

from cqrs_sync.outbox import Outbox
from cqrs_sync.testing.outbox.entries import (
    LONG,
    MOMENT,
    SHORT,
    Atomic,
    OutboxFixtures,
    again,
    bodies,
    claim,
    dead,
    delivered,
    done,
    handled,
    keep,
    kept,
    open_elsewhere,
    published,
)
from cqrs_sync.testing.threads import in_threads
from cqrs_sync.testing.waiting import eventually


class OrderContract(OutboxFixtures):
    """What has the same key and target is delivered in order; nothing else waits for anything."""

    def test_a_run_of_a_key_is_claimed_at_once_for_the_broker(self, outbox: Outbox, atomic: Atomic) -> None:
        """In order."""
        keep(outbox, atomic, *(published(str(number), key="k") for number in range(10)))

        assert [str(number) for number in range(10)] == claim(outbox)

    def test_a_handler_gets_one_of_a_key_at_a_time(self, outbox: Outbox, atomic: Atomic) -> None:
        """The next one when that is done; each handler for itself."""
        names = ["bill", "pack"]
        keep(outbox, atomic, *(handled(str(number), key="k", handlers=names) for number in range(3)))
        claimed = outbox.claim(10, LONG, handlers=names)
        assert [("bill", "0"), ("pack", "0")] == [(each.handler, each.message.body.decode()) for each in claimed]
        assert [] == list(outbox.claim(10, LONG, handlers=names))
        outbox.settle(done(claimed[1:]))
        (after,) = outbox.claim(10, LONG, handlers=names)

        assert ("pack", "1") == (after.handler, after.message.body.decode())

    def test_nothing_passes_an_earlier_one_that_is_claimed(self, outbox: Outbox, atomic: Atomic) -> None:
        """Other keys, other topics and what has no key do."""
        keep(outbox, atomic, published("1", key="k"))
        first = outbox.claim(10, LONG)
        keep(
            outbox, atomic, published("2", key="k"), published("3", key="other"), published("4"),
            published("5", key="k", topic="bills"),
        )  # fmt: skip

        assert ["3", "4", "5"] == claim(outbox)
        outbox.settle(done(first))
        assert ["2"] == claim(outbox)

    def test_nothing_passes_an_earlier_one_whose_lease_is_over(self, outbox: Outbox, atomic: Atomic) -> None:
        """They are claimed together."""
        keep(outbox, atomic, published("1", key="k"), published("2", key="k"))
        outbox.claim(1, SHORT)

        assert ["1", "2"] == eventually(lambda: claim(outbox))

    def test_nothing_passes_an_earlier_one_that_is_tried_again_later(self, outbox: Outbox, atomic: Atomic) -> None:
        """Also what was claimed together with it; keys beside it go on."""
        first, second, other = kept(
            outbox, atomic, published("1", key="k"), published("2", key="k"), published("3", key="other")
        )
        outbox.settle([again(first, after=MOMENT), again(second, counted=False), again(other, counted=False)])
        assert ["3"] == claim(outbox)

        assert ["1", "2"] == eventually(lambda: claim(outbox))

    def test_a_blocked_key_leaves_room_for_others(self, outbox: Outbox, atomic: Atomic) -> None:
        """Any number may wait there: who asks for one gets the first that may go."""
        first = kept(outbox, atomic, *(published(str(number), key="k") for number in range(50)))
        outbox.settle([again(first[0], after=LONG), *(again(each, counted=False) for each in first[1:])])
        keep(outbox, atomic, published("free", key="other"))

        assert [["free"], []] == [claim(outbox, 1), claim(outbox, 1)]

    def test_what_has_no_key_waits_for_nothing(self, outbox: Outbox, atomic: Atomic) -> None:
        """Whatever becomes of others that have none; an empty key is a key."""
        first, second, empty, *_ = kept(
            outbox, atomic, published("1"), published("2"), published("3", key=""), published("4", key="")
        )
        outbox.settle([dead(first), again(second, after=LONG), dead(empty)])
        keep(outbox, atomic, published("5"), published("6", key=""))

        assert ["5"] == claim(outbox)

    def test_keys_that_differ_in_case_are_two(self, outbox: Outbox, atomic: Atomic) -> None:
        """So are those that differ in an accent, or in a space at the end."""
        keep(outbox, atomic, published("1", key="k"))
        outbox.claim(1, LONG)
        keep(outbox, atomic, *(published(key, key=key) for key in ("K", "ḱ", "k ", "k\t")))

        assert ["K", "ḱ", "k ", "k\t"] == claim(outbox)

    def test_order_is_kept_whoever_claims(self, outbox: Outbox, atomic: Atomic) -> None:
        """Eight threads deliver, and give back some of it: each key comes in the order it was added."""
        expected = {f"key {number}": [str(order) for order in range(25)] for number in range(8)}
        for order in range(25):
            keep(outbox, atomic, *(published(str(order), key=key) for key in expected))
        seen: dict[str, list[str]] = {key: [] for key in expected}
        count = threading.Semaphore(200)

        def deliver(thread: int) -> None:
            rounds = 0
            while sum(map(len, seen.values())) < 200:
                rounds += 1
                claimed = outbox.claim(thread + 1, LONG)
                # Every third time as if the broker was away.
                back = rounds % 3 == 0
                for each in () if back else claimed:
                    assert count.acquire(blocking=False)
                    seen[each.message.key or ""].append(each.message.body.decode())
                outcomes = [again(each, counted=bool(thread % 2)) for each in claimed] if back else done(claimed)
                assert len(claimed) == outbox.settle(outcomes)
            outbox.release_connection()

        in_threads(*(lambda thread=thread: deliver(thread) for thread in range(8)), timeout=60)

        assert expected == seen

    # Commits that come late

    def test_what_commits_late_is_claimed_late(self, outbox: Outbox, atomic: Atomic) -> None:
        """Never skipped, though what came after it is gone already."""
        if not self.features.has_concurrent_writers:
            return
        with open_elsewhere(outbox, atomic, published("1", key="k"), published("2")) as commit:
            outbox.settle(done(kept(outbox, atomic, published("3", key="k"), published("4"))))
            assert [] == claim(outbox)
            commit()

        assert ["1", "2"] == claim(outbox)

    def test_what_commits_late_is_not_stuck_behind_what_was_tried(self, outbox: Outbox, atomic: Atomic) -> None:
        """Nor is what was tried stuck behind it: they come in order, however few are claimed at a time."""
        if not self.features.has_concurrent_writers:
            return
        with open_elsewhere(outbox, atomic, published("late", key="k")) as commit:
            tried = kept(outbox, atomic, published("1", key="k"), published("2", key="k"))
            outbox.settle([again(each) for each in tried])
            commit()

        assert ["late", "1", "2"] == bodies(delivered(outbox, 1))

    def test_what_commits_late_is_claimed_while_a_later_one_is_on_its_way(self, outbox: Outbox, atomic: Atomic) -> None:
        """It has waited long enough; what was claimed before stays with who claimed it."""
        if not self.features.has_concurrent_writers:
            return
        with open_elsewhere(outbox, atomic, published("late", key="k")) as commit:
            soon = kept(outbox, atomic, published("soon", key="k"))
            commit()

        assert ["late"] == claim(outbox)
        assert 1 == outbox.settle(done(soon))

    def test_what_commits_late_is_run_by_its_handler(self, outbox: Outbox, atomic: Atomic) -> None:
        """First, where a later one of its key is to be run again."""
        if not self.features.has_concurrent_writers:
            return
        with open_elsewhere(outbox, atomic, handled("late", key="k")) as commit:
            keep(outbox, atomic, handled("soon", key="k"))
            outbox.settle([again(each) for each in outbox.claim(10, LONG, handlers=["bill"])])
            commit()

        late = eventually(lambda: outbox.claim(1, LONG, handlers=["bill"]))
        assert ["late"] == bodies(late)
        outbox.settle(done(late))
        assert ["soon"] == bodies(outbox.claim(1, LONG, handlers=["bill"]))
