"""Wait for what another thread or process does, never longer than a bound."""

from cqrs_sync.testing.waiting import eventually

__all__ = ["eventually"]
