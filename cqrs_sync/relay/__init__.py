"""
The relay: what the outbox keeps is given to the broker, and durable handlers are run.

The same relay is the fast path of the process that wrote it, woken by each commit, and
a process of its own that looks for what others have left. There may be any number of
either; none is special, and none waits for another.

`publisher` and `runner` deliver, each in a `thread` of its own; `outages` tells when not
to try; `scout` looks for work that nobody has told of.
"""

from cqrs_sync.relay.relay import Relay

__all__ = ["Relay"]
