"""What is in hand while its deliveries lapse and come again."""

import attrs
import pytest

from cqrs_sync.broker import IncomingMessage
from cqrs_sync.consumer.inflight import InFlightMessage, KeyedQueue


@attrs.define(eq=False)
class Delivered:
    """A delivery of a message with a number."""

    number: int
    redeliveries: int = 0
    is_stale: bool = False
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
def queue():
    return KeyedQueue(200)


def put(queue, *deliveries):
    assert [] == queue.put(map(InFlightMessage.of, deliveries))
    return deliveries


def lose(*deliveries):
    for delivery in deliveries:
        delivery.is_stale = True


def handled(queue):
    """Take and finish what there is, one after the other."""
    numbers = []
    while item := queue.get(1):
        numbers.append(item.delivery.number)
        item.is_done = True
        queue.message_done(item)
        while queue.done_deliveries:
            queue.done_deliveries.popleft().ack()
    return numbers


@pytest.mark.parametrize("taken_meanwhile", [False, True])
def test_what_comes_again_comes_in_its_order(queue, taken_meanwhile):
    """Whether or not somebody has looked for the next one between the loss and the return."""
    first, *others = put(queue, *map(Delivered, range(4)))
    running = queue.get(1)
    lose(first, *others)
    running.is_done = True
    queue.message_done(running)
    put(queue, Delivered(99, key="other"))
    taken = queue.get(1) if taken_meanwhile else None
    put(queue, *[Delivered(number, 1) for number in range(1, 4)], Delivered(4))
    if taken is not None:
        queue.message_done(taken)

    assert [1, 2, 3, 4] == [number for number in handled(queue) if number != 99]
    assert 0 == len(queue)


def test_what_has_come_again_in_part_keeps_its_order(queue):
    """The first one is back and handled before the others are."""
    lose(*put(queue, *map(Delivered, range(3))))
    put(queue, Delivered(0, 1))
    begun = handled(queue)
    put(queue, Delivered(1, 1), Delivered(2, 1))

    assert [0, 1, 2] == begun + handled(queue)
    assert 0 == len(queue)


def test_of_what_nobody_has_handled_nothing_is_settled(queue):
    """A message that is stale is let go of; the delivery that comes next is not taken for it."""
    lose(*put(queue, Delivered(1)))
    assert queue.get(1) is None
    (again,) = put(queue, Delivered(1, 1))

    assert not again.acked
    assert [1] == handled(queue)
    assert again.acked


def test_what_is_still_ours_goes_on_behind_what_is_not(queue):
    """Of one key some came from a partition that was lost, and some from one that is ours."""
    lost, _ = put(queue, Delivered(1), Delivered(2))
    lose(lost)

    assert [2] == handled(queue)
    put(queue, Delivered(3), Delivered(4))
    assert [3, 4] == handled(queue)
    assert 0 == len(queue)


def test_a_copy_waits_for_its_turn_under_its_own_name(queue):
    """Whatever is counted for it is counted under the name that an inbox takes."""
    put(queue, Delivered(1), Delivered(1))
    first = queue.get(2)
    assert queue.get(2) is None
    queue.message_done(first)
    second = queue.get(2)

    assert first.identity == second.identity
    queue.message_done(second)
    assert 0 == len(queue)


def test_what_has_no_key_is_let_go_of_alone(queue):
    lost, _ = put(queue, Delivered(1, key=None), Delivered(2, key=None))
    lose(lost)

    assert [2] == handled(queue)
    assert 0 == len(queue)
