"""
The relay delivers what the outbox keeps: messages to the broker, and events to durable handlers.

The fast path is the relay of the process that committed: each commit wakes it. A relay process runs the same code and
polls for what other processes have left. Any number of either may run; none leads, and none waits for another.

`publisher` and `durable` deliver, `thread` runs them and finds work that no commit has announced, `settlement` keeps
the claims.
"""

from cqrs_sync.relay.relay import Relay
from cqrs_sync.relay.settlement import InFlightDelivery

__all__ = ["InFlightDelivery", "Relay"]
