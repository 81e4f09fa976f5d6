"""
The consumer receives what other services publish, and runs the mediator's event handlers with it.

`threads` has the thread that talks to the broker, and decides how many handle messages. `inflight` keeps the order of
keys, `processor` handles one message and decides what follows a failure.
"""

from cqrs_sync.consumer.consumer import Consumer, Health, StallDetector, broker_of, group_of
from cqrs_sync.consumer.inflight import InFlightMessage
from cqrs_sync.consumer.processor import OnUnknownType

__all__ = ["Consumer", "Health", "InFlightMessage", "OnUnknownType", "StallDetector", "broker_of", "group_of"]
