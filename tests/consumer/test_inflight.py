"""What is in hand while its deliveries lapse and come again."""

import attrs
import pytest

from cqrs_sync.broker import IncomingMessage
from cqrs_sync.consumer.inflight import Lanes
from cqrs_sync.consumer.processor import in_hand


@attrs.define(eq=False)
class Delivered:
    """A delivery of a message with a number."""

    number: int
    redeliveries: int = 0
    lapsed: bool = False
    acked: bool = False
    key: str | None = "k"
    origin: str = "queue"

    @property
    def message(self):
        attributes = {"source": "tests", "id": str(self.number)}
        return IncomingMessage("letters", b"", None, self.key, attributes, {})

    def ack(self):
        self.acked = True


@pytest.fixture
def lanes():
    return Lanes(Delivered.ack)


def put(lanes, *deliveries):
    assert [] == lanes.put([in_hand(delivery) for delivery in deliveries])
    return deliveries


def lose(*deliveries):
    for delivery in deliveries:
        delivery.lapsed = True


def handled(lanes):
    """Take and finish what there is, one after the other."""
    numbers = []
    while item := lanes.take(1):
        numbers.append(item.delivery.number)
        item.is_done = True
        lanes.done(item)
    return numbers


@pytest.mark.parametrize("taken_meanwhile", [False, True])
def test_what_comes_again_comes_in_its_order(lanes, taken_meanwhile):
    """Whether or not somebody has looked for the next one between the loss and the return."""
    first, *others = put(lanes, *map(Delivered, range(4)))
    running = lanes.take(1)
    lose(first, *others)
    running.is_done = True
    lanes.done(running)
    put(lanes, Delivered(99, key="other"))
    taken = lanes.take(1) if taken_meanwhile else None
    put(lanes, *[Delivered(number, 1) for number in range(1, 4)], Delivered(4))
    if taken is not None:
        lanes.done(taken)

    assert [1, 2, 3, 4] == [number for number in handled(lanes) if number != 99]
    assert 0 == len(lanes)


def test_what_has_come_again_in_part_keeps_its_order(lanes):
    """The first one is back and handled before the others are."""
    lose(*put(lanes, *map(Delivered, range(3))))
    put(lanes, Delivered(0, 1))
    begun = handled(lanes)
    put(lanes, Delivered(1, 1), Delivered(2, 1))

    assert [0, 1, 2] == begun + handled(lanes)
    assert 0 == len(lanes)


def test_of_what_nobody_has_handled_nothing_is_settled(lanes):
    """A message that has lapsed is let go of; the delivery that comes next is not taken for it."""
    lose(*put(lanes, Delivered(1)))
    assert lanes.take(1) is None
    (again,) = put(lanes, Delivered(1, 1))

    assert not again.acked
    assert [1] == handled(lanes)
    assert again.acked


def test_what_is_still_ours_goes_on_behind_what_is_not(lanes):
    """Of one key some came from a partition that was lost, and some from one that is ours."""
    lost, _ = put(lanes, Delivered(1), Delivered(2))
    lose(lost)

    assert [2] == handled(lanes)
    put(lanes, Delivered(3), Delivered(4))
    assert [3, 4] == handled(lanes)
    assert 0 == len(lanes)


def test_a_copy_waits_for_its_turn_under_its_own_name(lanes):
    """Whatever is counted for it is counted under the name that an inbox takes."""
    put(lanes, Delivered(1), Delivered(1))
    first = lanes.take(2)
    assert lanes.take(2) is None
    lanes.done(first)
    second = lanes.take(2)

    assert first.identity == second.identity
    lanes.done(second)
    assert 0 == len(lanes)


def test_what_has_no_key_is_let_go_of_alone(lanes):
    lost, _ = put(lanes, Delivered(1, key=None), Delivered(2, key=None))
    lose(lost)

    assert [2] == handled(lanes)
    assert 0 == len(lanes)
