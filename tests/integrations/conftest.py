"""Fixtures of the tests of worker processes."""

from tests.integrations.processes import gate, start_worker

__all__ = ["gate", "start_worker"]
