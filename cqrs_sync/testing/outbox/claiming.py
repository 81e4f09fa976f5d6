"""What the outbox promises about claiming: oldest first, one caller at a time, for a while."""

from __future__ import annotations

from collections import Counter

from cqrs_sync.outbox import Claimed, Outbox
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
    done,
    handled,
    keep,
    kept,
    published,
)
from cqrs_sync.testing.threads import in_threads
from cqrs_sync.testing.waiting import eventually


class ClaimingContract(OutboxFixtures):
    """Who claims what, and for how long."""

    def test_the_oldest_are_claimed_first(self, outbox: Outbox, atomic: Atomic) -> None:
        """As many as were asked for, each once."""
        for number in range(7):
            keep(outbox, atomic, published(str(number)))

        assert [["0", "1", "2"], ["3", "4", "5"], ["6"], []] == [claim(outbox, 3) for _ in range(4)]

    def test_what_is_claimed_says_what_it_is(self, outbox: Outbox, atomic: Atomic) -> None:
        """Its number grows, its attempt is counted, and those of one claim have one token, which no log shows."""
        entries = [published("1", topic="orders"), published("2", topic="bills")]
        claimed = kept(outbox, atomic, *entries)
        other = kept(outbox, atomic, published("3"))

        assert [entry.message for entry in entries] == [each.message for each in claimed]
        assert [("orders", None, 1), ("bills", None, 1)] == [(it.target, it.handler, it.attempts) for it in claimed]
        assert claimed[0].number < claimed[1].number < other[0].number
        assert (1, 2) == (len({each.token for each in claimed}), len({each.token for each in [*claimed, *other]}))
        assert claimed[0].token not in repr(claimed[0])

    def test_a_claim_is_bounded_in_bytes(self, outbox: Outbox, atomic: Atomic) -> None:
        """What is left out is claimed next."""
        large, bound = "x" * self.features.max_bytes, self.features.max_claimed_bytes
        count = bound // self.features.max_bytes + 4
        for _ in range(count):
            keep(outbox, atomic, published(large))
        sizes = [len(outbox.claim(100, LONG)) for _ in range(2)]

        assert count == sum(sizes)
        assert 0 < sizes[0] * len(large) <= bound

    def test_a_delivery_is_claimed_by_one_at_a_time(self, outbox: Outbox, atomic: Atomic) -> None:
        """Eight threads race, none claims what another one has, and nothing is left in the end."""
        entries = [published(str(number), key=None if number % 2 else str(number)) for number in range(160)]
        keep(outbox, atomic, *entries)
        claimed: list[Claimed] = []

        def race() -> None:
            # Locked by another thread, or by one that gives it back: nothing is there for a moment.
            while len(claimed) < len(entries):
                claimed.extend(outbox.claim(7, LONG))
            outbox.release_connection()

        in_threads(*[race] * 8, timeout=60)

        assert Counter(str(number) for number in range(160)) == Counter(bodies(claimed))
        assert {1} == {each.attempts for each in claimed}
        assert len(entries) == outbox.settle(done(claimed))

    def test_handlers_and_the_broker_claim_their_own(self, outbox: Outbox, atomic: Atomic) -> None:
        """Each handler by its name; what is for one that nobody asks for waits."""
        keep(outbox, atomic, published("1"), handled("2", handlers=["bill"]), handled("3", handlers=["pack"]))

        assert ["1"] == claim(outbox)
        assert [] == list(outbox.claim(10, LONG, handlers=[]))
        assert [] == list(outbox.claim(10, LONG, handlers=["unknown"]))
        assert ["3"] == bodies(outbox.claim(10, LONG, handlers=["unknown", "pack"]))
        assert ["2"] == bodies(outbox.claim(10, LONG, handlers=("bill", "pack")))

    def test_a_handler_may_be_called_like_a_topic(self, outbox: Outbox, atomic: Atomic) -> None:
        """They are two, also where order is kept."""
        keep(outbox, atomic, published("1", topic="same", key="k", handlers=["same"]))

        assert ["1"] == bodies(outbox.claim(10, LONG, handlers=["same"]))
        assert ["1"] == claim(outbox)

    def test_targets_may_be_left_alone(self, outbox: Outbox, atomic: Atomic) -> None:
        """Topics, or handlers."""
        keep(
            outbox, atomic, published("1", topic="a"), published("2", topic="b"), published("3", topic="c"),
            handled("4", handlers=["d"]), handled("5", handlers=["e"]),
        )  # fmt: skip

        assert ["2"] == bodies(outbox.claim(10, LONG, besides={"a", "c"}))
        assert ["5"] == bodies(outbox.claim(10, LONG, handlers=["d", "e"], besides=["d"]))
        assert ["1", "3"] == claim(outbox)

    # Leases

    def test_what_is_not_settled_in_time_is_claimed_by_others(self, outbox: Outbox, atomic: Atomic) -> None:
        """The attempt before counts, and who comes too late changes nothing."""
        keep(outbox, atomic, published("1"))
        (late,) = outbox.claim(10, SHORT)
        (now,) = eventually(lambda: outbox.claim(10, LONG))

        assert (late.number, 2) == (now.number, now.attempts)
        assert late.token != now.token
        assert [0, 0, 0] == [outbox.settle([outcome]) for outcome in (*done([late]), again(late), dead(late))]
        assert 0 == outbox.renew([late.token], LONG)
        assert 0 == outbox.backlog().dead
        assert 1 == outbox.settle(done([now]))

    def test_the_attempt_is_counted_when_it_is_claimed(self, outbox: Outbox, atomic: Atomic) -> None:
        """Who dies with it has had it."""
        keep(outbox, atomic, published("1"))

        attempts = [eventually(lambda: outbox.claim(10, SHORT))[0].attempts for _ in range(4)]

        assert [1, 2, 3, 4] == attempts

    def test_what_is_over_is_still_held_until_others_claim_it(self, outbox: Outbox, atomic: Atomic) -> None:
        """Nobody else has had it: settling it is right."""
        keep(outbox, atomic, published("1"))
        claimed = outbox.claim(10, 0.0)
        eventually(lambda: outbox.next_due([]) == 0)

        assert 1 == outbox.settle(done(claimed))
        assert [] == claim(outbox)

    def test_a_claim_is_renewed(self, outbox: Outbox, atomic: Atomic) -> None:
        """For as long as is asked, from now on; others of the same outbox are left alone."""
        keep(outbox, atomic, published("1"), published("2"), published("3"))
        two, one = outbox.claim(2, MOMENT), outbox.claim(1, MOMENT)

        assert 0 == outbox.renew([], LONG)
        assert 0 == outbox.renew(["of-nobody"], LONG)
        assert 2 == outbox.renew([two[0].token, "of-nobody"], LONG)
        assert ["3"] == eventually(lambda: claim(outbox))
        assert 0 == outbox.renew([one[0].token], LONG)
        assert 2 == outbox.settle(done(two))

    # When

    def test_nothing_is_due_where_nothing_waits(self, outbox: Outbox, atomic: Atomic) -> None:
        """None, also where all is delivered, or for handlers that nobody asks for."""
        assert outbox.next_due(["bill"]) is None
        outbox.settle(done(kept(outbox, atomic, published("1"))))
        keep(outbox, atomic, handled("2", handlers=["pack"]))

        assert [None, None] == [outbox.next_due(["bill"]), outbox.next_due([])]

    def test_what_may_be_claimed_is_due_now(self, outbox: Outbox, atomic: Atomic) -> None:
        """For the broker, and for the handlers that are asked for."""
        keep(outbox, atomic, handled("1", handlers=["bill"]))
        assert [0, None] == [outbox.next_due(["bill", "pack"]), outbox.next_due(["pack"])]
        keep(outbox, atomic, published("2"))

        assert 0 == outbox.next_due(["pack"])

    def test_what_is_claimed_is_due_at_the_end_of_its_lease(self, outbox: Outbox, atomic: Atomic) -> None:
        """The first of them; what is to be tried again, when it is."""
        keep(outbox, atomic, published("1"), published("2"))
        (first,) = outbox.claim(1, 500.0)
        outbox.claim(1, 1000.0)
        due = outbox.next_due([])
        assert due is not None
        assert 400 < due < 501
        outbox.settle([again(first, after=100.0)])
        due = outbox.next_due([])

        assert due is not None
        assert 90 < due < 101

    def test_nothing_is_due_that_waits_for_what_is_dead(self, outbox: Outbox, atomic: Atomic) -> None:
        """Nobody looks for it again and again; nor where it has been tried before."""
        first, second = kept(outbox, atomic, published("1", key="k"), published("2", key="k"))
        outbox.settle([dead(first), again(second)])
        keep(outbox, atomic, published("3", key="k"))

        assert [None, []] == [outbox.next_due([]), claim(outbox)]
