"""
The consumer: what other services publish is received, and handled by the mediator's event handlers.

`receiver` is the thread that talks to the broker, `queue` keep the order of keys, `processor` handles
one message and decides what becomes of it, by the rules in `tiers`; `outage` spares messages
that fail for no fault of theirs, `detector` tells for how long nothing moves.
"""

from cqrs_sync.consumer.consumer import Consumer, Health, broker_of, group_of
from cqrs_sync.consumer.inflight import InFlightMessage
from cqrs_sync.consumer.stall import StallDetector
from cqrs_sync.consumer.tiers import Tiers, Unknown

__all__ = ["Consumer", "Health", "InFlightMessage", "StallDetector", "Tiers", "Unknown", "broker_of", "group_of"]
