"""Acks and nacks, as few frames as tell it all."""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct

_CHANNEL = 1
#: Method frames with a delivery tag and a byte of flags.
_FRAME = Struct(">BHIHHQBB")
_SIZE = 13
_BASIC, _ACK, _NACK = 60, 80, 120
_MULTIPLE, _REQUEUE = 1, 2
_END = 0xCE


class Answers:
    """
    What was answered on one channel; its tags count from 1.

    Where everything up to a tag is settled, one frame says so: RabbitMQ works less for it than for each of them.
    """

    def __init__(self) -> None:
        #: Every tag below is settled.
        self._lowest = 1
        #: Settled, from there on.
        self._settled: set[int] = set()

    def encode(self, answers: Iterable[tuple[int, bool]]) -> bytes:
        """Return the frames for tags that are done, or are to be delivered again."""
        frames: list[bytes] = []
        acks: list[int] = []
        for tag, done in answers:
            self._settled.add(tag)
            if done:
                acks.append(tag)
            else:
                frames.append(_frame(_NACK, tag, _REQUEUE))
        while self._lowest in self._settled:
            self._settled.remove(self._lowest)
            self._lowest += 1
        # The tag it names has to be one that RabbitMQ still waits for.
        last = max((tag for tag in acks if tag < self._lowest), default=0)
        if last:
            frames.append(_frame(_ACK, last, _MULTIPLE))
        frames += (_frame(_ACK, tag, 0) for tag in acks if tag > last)
        return b"".join(frames)


def _frame(method: int, tag: int, flags: int) -> bytes:
    return _FRAME.pack(1, _CHANNEL, _SIZE, _BASIC, method, tag, flags, _END)
