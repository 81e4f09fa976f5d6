"""
The consumer: what other services publish is received, and handled by the mediator's event handlers.

`intake` is the thread that talks to the broker, `lanes` keep the order of keys, `handling` handles
one message and decides what becomes of it, by the rules in `tiers`; `outage` spares messages
that fail for no fault of theirs, `standstill` tells for how long nothing moves.
"""

from cqrs_sync.consumer.consumer import Consumer, Health, broker_of, group_of
from cqrs_sync.consumer.inflight import InHand
from cqrs_sync.consumer.stall import Standstill
from cqrs_sync.consumer.tiers import Tiers, Unknown

__all__ = ["Consumer", "Health", "InHand", "Standstill", "Tiers", "Unknown", "broker_of", "group_of"]
