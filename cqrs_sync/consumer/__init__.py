"""
The consumer receives what other services publish, and runs the mediator's event handlers with it.

`receiver` is the thread that talks to the broker, `inflight` keeps the order of keys, `scheduler` decides how many
threads work, `processor` handles one message and decides what follows a failure, `stall` detects that nothing moves.
"""

from cqrs_sync.consumer.consumer import Consumer, Health, broker_of, group_of
from cqrs_sync.consumer.inflight import InFlightMessage
from cqrs_sync.consumer.processor import OnUnknownType
from cqrs_sync.consumer.stall import StallDetector

__all__ = ["Consumer", "Health", "InFlightMessage", "OnUnknownType", "StallDetector", "broker_of", "group_of"]
