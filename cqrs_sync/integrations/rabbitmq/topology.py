"""Looking at the places of a group, and making them."""

from __future__ import annotations

from functools import partial

from cqrs_sync.broker import GroupBacklog, Piece
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.integrations.rabbitmq.inquiry import Inquiry
from cqrs_sync.integrations.rabbitmq.places import Binding, Place, Places

#: Close codes of a channel.
_FORBIDDEN, _MISSING = 403, 404


def look(inquiry: Inquiry, places: Places, *, is_theirs: bool) -> list[Piece]:
    """
    Tell what is there of them, and what is different; changes nothing.

    `is_theirs`: the exchange everybody publishes to is somebody else's and may be of any type.
    """
    pieces: list[Piece] = []
    for place in places.all:
        if isinstance(place, Binding):
            is_missing = any(
                piece.state == "missing" for piece in pieces if piece.name in {place.queue, place.exchange}
            )
            pieces.append(_piece(place, "missing" if is_missing else "unknown"))
        else:
            compares = not (is_theirs and place is places.exchange)
            pieces.append(_look_at(inquiry, place, compares=compares))
    return pieces


def build(inquiry: Inquiry, places: Places, *, is_theirs: bool) -> list[Piece]:
    """Make what is missing of them, and tell how all of it is then."""
    pieces: list[Piece] = []
    for place in places.all:
        is_passive = is_theirs and place is places.exchange
        answer = inquiry.ask(partial(place.declare, passive=is_passive))
        pieces.append(_piece(place, "there") if not isinstance(answer, Exception) else _refused(place, answer))
    return pieces


def count(inquiry: Inquiry, places: Places) -> GroupBacklog:
    """Count the messages that are in no consumer's hand; a queue that is not there has none."""

    def ready(queue: Place) -> int:
        answer = inquiry.ask(partial(queue.declare, passive=True))
        return 0 if isinstance(answer, Exception) else answer.message_count

    name = places.queue.name
    return GroupBacklog({name: ready(places.queue)}, sum(map(ready, places.retries.values())), ready(places.dead))


def mismatch(queue: str, refusal: BaseException) -> ConfigurationError:
    """Return the error for what the broker refuses to a group while it is set up."""
    return ConfigurationError(f"the group of {queue} cannot be set up: {_trouble(refusal)}")


def _look_at(inquiry: Inquiry, place: Place, *, compares: bool) -> Piece:
    answer = inquiry.ask(partial(place.declare, passive=True))
    if isinstance(answer, Exception):
        return _refused(place, answer)
    # Declaring what exists changes nothing: the broker only says whether it is the same.
    answer = inquiry.ask(place.declare) if compares else None
    return _refused(place, answer) if isinstance(answer, Exception) else _piece(place, "there")


def _refused(place: Place, refusal: Exception) -> Piece:
    code = getattr(refusal, "reply_code", 0)
    if code == _MISSING:
        return _piece(place, "missing")
    # Whoever may not configure cannot compare.
    return _piece(place, "unknown" if code == _FORBIDDEN else "different", _trouble(refusal))


def _piece(place: Place, state: str, trouble: str = "") -> Piece:
    return Piece(place.kind, place.name, place.details, state, trouble)


def _trouble(refusal: BaseException) -> str:
    code, text = getattr(refusal, "reply_code", 0), getattr(refusal, "reply_text", str(refusal))
    return f"{code} {text}; {_WAYS_OUT.get(code, _WAY_OUT)}"


_WAY_OUT = (
    "delete it once it is empty (it is made again as it has to be), give the broker the `queue_arguments` "
    "it has, or give the group another name"
)
_WAYS_OUT = {
    _FORBIDDEN: "give the user the permission to configure, or build it as another user and say `declare=False`",
    _MISSING: "build it first, or leave out `declare=False`",
}
