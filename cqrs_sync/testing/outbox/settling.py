"""What the outbox promises about settling, and to those who operate it."""

from __future__ import annotations

from cqrs_sync.errors import LONGEST_ERROR
from cqrs_sync.outbox import Outbox, Outcome, Selection
from cqrs_sync.testing.outbox.entries import (
    LONG,
    SHORT,
    Atomic,
    OutboxFixtures,
    again,
    claim,
    dead,
    delivered,
    done,
    handled,
    keep,
    kept,
    published,
)
from cqrs_sync.testing.waiting import eventually

_ALL = Selection()


class SettlingContract(OutboxFixtures):
    """What becomes of what was claimed."""

    def test_what_is_done_is_gone(self, outbox: Outbox, atomic: Atomic) -> None:
        """Settling it again changes nothing."""
        claimed = kept(outbox, atomic, published("1"), published("2"))

        assert [0, 1, 1, 0] == [outbox.settle(done(some)) for some in ([], claimed[:1], claimed, claimed)]
        assert outbox.next_due([]) is None

    def test_what_is_to_be_tried_again_is_claimed_again(self, outbox: Outbox, atomic: Atomic) -> None:
        """When its time has come, not before; the attempt counts."""
        soon, later = kept(outbox, atomic, published("soon"), published("later"))
        outbox.settle([again(soon, after=SHORT), again(later, after=LONG)])
        (found,) = eventually(lambda: outbox.claim(10, LONG))

        assert (soon.number, 2) == (found.number, found.attempts)

    def test_an_attempt_that_does_not_count_costs_none(self, outbox: Outbox, atomic: Atomic) -> None:
        """At once, or later, the first time or any other."""
        (first,) = kept(outbox, atomic, published("1"))
        outbox.settle([again(first, counted=False)])
        (second,) = outbox.claim(1, LONG)
        outbox.settle([again(second, after=SHORT, counted=False)])
        (third,) = eventually(lambda: outbox.claim(1, LONG))
        outbox.settle([again(third)])
        (fourth,) = outbox.claim(1, LONG)
        outbox.settle([again(fourth, counted=False)])

        assert [1, 1, 1, 2, 2] == [each.attempts for each in (first, second, third, fourth, *outbox.claim(1, LONG))]

    def test_a_claim_that_was_given_back_is_held_no_more(self, outbox: Outbox, atomic: Atomic) -> None:
        """Neither settling nor renewing it does anything."""
        (claimed,) = kept(outbox, atomic, published("1"))
        outbox.settle([again(claimed)])

        assert [0, 0] == [outbox.settle(done([claimed])), outbox.renew([claimed.token], LONG)]
        assert ["1"] == claim(outbox)

    def test_outcomes_of_all_kinds_are_settled_at_once(self, outbox: Outbox, atomic: Atomic) -> None:
        """Of several claims, those that are held no more among them."""
        keep(outbox, atomic, *(published(str(number)) for number in range(6)))
        first, second, third, fourth, fifth, sixth = [each for _ in range(3) for each in outbox.claim(2, LONG)]
        outbox.settle(done([fourth]))
        outcomes = [*done([first, sixth]), again(second), dead(third), *done([fourth]), again(fifth, counted=False)]

        assert 5 == outbox.settle(outcomes)
        assert [("1", 2), ("4", 1)] == [(it.message.body.decode(), it.attempts) for it in outbox.claim(10, LONG)]

    def test_what_is_dead_holds_up_what_has_its_key(self, outbox: Outbox, atomic: Atomic) -> None:
        """Until somebody has dealt with it; others go on."""
        first, second = kept(outbox, atomic, published("1", key="k"), published("2", key="other"))
        outbox.settle([dead(first), dead(second, blocks=False)])
        keep(outbox, atomic, published("3", key="k"), published("4", key="other"), published("5"))

        assert ["4", "5"] == claim(outbox)
        assert outbox.next_due([]) is not None

    def test_what_is_dead_is_held_by_nobody(self, outbox: Outbox, atomic: Atomic) -> None:
        """Who settles it once more changes nothing, nor does who settles it when it was replayed."""
        (claimed,) = kept(outbox, atomic, published("1"))
        outbox.settle([dead(claimed)])
        assert [0, 0] == [outbox.settle(done([claimed])), outbox.renew([claimed.token], LONG)]
        outbox.replay(_ALL)

        assert 0 == outbox.settle(done([claimed]))
        assert ["1"] == claim(outbox)

    # For those who operate it

    def test_the_backlog_counts_what_is_not_delivered(self, outbox: Outbox, atomic: Atomic) -> None:
        """By target and state, with the reasons of what is dead, the most frequent first."""
        empty = outbox.backlog()
        assert ((), (), None, 0, 0) == (empty.targets, empty.dead_by_reason, empty.oldest, empty.waiting, empty.dead)
        keep(outbox, atomic, *(published(str(number), topic="a") for number in range(6)), handled("7"))
        one, two, three, four, _ = outbox.claim(5, LONG)
        outbox.settle([dead(one, reason="b"), dead(two, reason="c"), dead(three, reason="c"), *done([four])])
        backlog = outbox.backlog()

        assert [("handler", "bill", 1, 0, 0), ("topic", "a", 1, 1, 3)] == [
            (each.kind, each.target, each.pending, each.tried, each.dead) for each in backlog.targets
        ]
        assert (("c", 2), ("b", 1)) == backlog.dead_by_reason
        assert (3, 3) == (backlog.waiting, backlog.dead)
        assert backlog.oldest is not None
        assert 0 <= backlog.oldest < 60

    def test_the_oldest_is_one_that_waits(self, outbox: Outbox, atomic: Atomic) -> None:
        """Its age grows; what is dead has none."""
        claimed = kept(outbox, atomic, published("1"))
        assert eventually(lambda: (outbox.backlog().oldest or 0) > SHORT)
        outbox.settle([dead(claimed[0])])

        assert outbox.backlog().oldest is None

    def test_what_is_dead_tells_why(self, outbox: Outbox, atomic: Atomic) -> None:
        """What it was, for whom, how often it was tried, and the error as it was."""
        error = ValueError("no such order: 'x' \0 🙂\nsecond line " + "y" * LONGEST_ERROR)
        keep(outbox, atomic, published("1", key="k"), handled("2"))
        claimed = [*outbox.claim(1, LONG), *outbox.claim(1, LONG, handlers=["bill"])]
        outcomes = [Outcome.failed(each, error, after=None, blocks=each.handler is None) for each in claimed]
        outbox.settle(outcomes)
        found = outbox.dead(_ALL)

        assert [each.message for each in claimed] == [each.message for each in found]
        assert [(None, "orders", 1, True), ("bill", "bill", 1, False)] == [
            (each.handler, each.target, each.attempts, each.blocks) for each in found
        ]
        assert [(it.reason, it.error) for it in outcomes] == [(it.reason, it.error) for it in found]
        assert all(0 <= each.age < 60 for each in found)

    def test_dead_deliveries_are_selected(self, outbox: Outbox, atomic: Atomic) -> None:
        """By number, reason and target, oldest first, as many as are asked for; what is not dead never is."""
        claimed = kept(outbox, atomic, *(published(str(number), topic="ab"[number % 2]) for number in range(5)))
        numbers = [each.number for each in claimed]
        outbox.settle([dead(each, reason="cd"[each is claimed[0]]) for each in claimed[:4]])

        def found(selection: Selection, limit: int = 100) -> list[int]:
            return [numbers.index(each.number) for each in outbox.dead(selection, limit=limit)]

        assert [[0, 1, 2, 3], [0, 1]] == [found(_ALL), found(_ALL, 2)]
        assert [[0], [1, 2, 3]] == [found(Selection(reason="d")), found(Selection(reason="c"))]
        assert [[0, 2], [2]] == [found(Selection(target="a")), found(Selection(target="a", reason="c"))]
        assert [[3], []] == [found(Selection(numbers=(numbers[3], numbers[4]))), found(Selection(numbers=()))]

    def test_what_is_replayed_keeps_its_place(self, outbox: Outbox, atomic: Atomic) -> None:
        """Before what has waited for it, with its attempts forgotten."""
        first, second, other = kept(
            outbox, atomic, published("1", key="k"), published("2", key="k"), published("3", key="other")
        )
        outbox.settle([dead(first), again(second), dead(other)])
        keep(outbox, atomic, published("4", key="k"))
        assert [0, 1] == [outbox.replay(selection) for selection in (Selection(reason="?"), Selection((first.number,)))]

        assert [("1", 1), ("2", 2), ("4", 1)] == [
            (each.message.body.decode(), each.attempts) for each in delivered(outbox, 10)
        ]
        assert [other.number] == [each.number for each in outbox.dead(_ALL)]

    def test_what_is_discarded_is_waited_for_no_more(self, outbox: Outbox, atomic: Atomic) -> None:
        """It is gone for good."""
        (first,) = kept(outbox, atomic, published("1", key="k"))
        outbox.settle([dead(first)])
        keep(outbox, atomic, published("2", key="k"))

        assert [1, 0] == [outbox.discard(_ALL), outbox.discard(_ALL)]
        assert [] == list(outbox.dead(_ALL))
        assert ["2"] == claim(outbox)

    def test_dead_deliveries_are_dealt_with_in_chunks(self, outbox: Outbox, atomic: Atomic) -> None:
        """The oldest first."""
        outbox.settle([dead(each) for each in kept(outbox, atomic, *(published(str(number)) for number in range(5)))])

        assert [2, 2] == [outbox.discard(_ALL, limit=2), outbox.replay(_ALL, limit=2)]
        assert [["4"], ["2", "3"]] == [[each.message.body.decode() for each in outbox.dead(_ALL)], claim(outbox)]

    def test_only_what_is_delivered_and_old_is_purged(self, outbox: Outbox, atomic: Atomic) -> None:
        """In chunks; never what waits, is claimed, or is dead."""
        keep(outbox, atomic, *(published(str(number)) for number in range(7)), published("both", handlers=["bill"]))
        delivered = outbox.claim(3, LONG)
        outbox.settle(done(delivered))
        claimed = outbox.claim(2, LONG)
        outbox.settle([dead(claimed[0]), again(claimed[1])])
        assert eventually(lambda: (outbox.backlog().oldest or 0) > SHORT)

        assert [0, 2, 1, 0] == [outbox.purge(3600), *(outbox.purge(0, limit=2) for _ in range(3))]
        assert ["4", "5", "6", "both"] == claim(outbox)
        assert 1 == len(outbox.dead(_ALL))
        assert 1 == len(outbox.claim(10, LONG, handlers=["bill"]))
