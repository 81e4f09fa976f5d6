"""What a mediator says of its group: who receives, from where, and what."""

from __future__ import annotations

from collections.abc import Sequence

from cqrs_sync.broker import PREFETCH, Group, GroupBroker
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.mediator import RequestMediator
from cqrs_sync.messages import publication_of


def group_of(
    mediator: RequestMediator,
    name: str,
    *,
    topics: Sequence[str] = (),
    ordered: bool | None = None,
    prefetch: int = PREFETCH,
    delays: Sequence[float] = (),
) -> Group:
    """Return the group that a consumer of this mediator is one of. Raises ConfigurationError where nothing is bound."""
    if not name or not name.isprintable() or name != name.strip():
        raise ConfigurationError(f"a group has a name, such as that of the service, not {name!r}")
    if isinstance(topics, str):
        topics = (topics,)
    publications = [publication_of(event) for event in mediator.events.event_map.types.values()]
    found = tuple(topics) or tuple(sorted({each.topic for each in publications if each.topic}))
    if not found:
        raise ConfigurationError(
            "no notification event is bound to a handler, so there is nothing to consume: bind one in the event map "
            "that bootstrap is given, and import the module that does so"
        )
    if not all(found):
        raise ConfigurationError("a topic has a name, not ''")
    keyed = any(each.key is not None for each in publications if each.topic in found) or bool(topics)
    return Group(name, found, tuple(delays), keyed if ordered is None else ordered, prefetch)


def broker_of(mediator: RequestMediator) -> GroupBroker:
    """Return the broker of a mediator. Raises ConfigurationError where it is none to consume from."""
    emitter = mediator.events.dispatcher.stager.emitter
    broker = None if emitter is None else emitter.broker
    if not isinstance(broker, GroupBroker):
        what = "has no broker" if broker is None else f"has a {type(broker).__qualname__}, which receives nothing"
        raise ConfigurationError(f"this mediator {what}: give bootstrap(broker=...) one to consume from")
    return broker


def check_above_zero(**numbers: int) -> None:
    """Raise ConfigurationError for what is no whole number above 0."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ConfigurationError(f"{name} must be a whole number above 0, not {number!r}")
