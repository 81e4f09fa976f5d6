"""Help for tests: a recorder, contract suites for every socket (`testing.contracts`), pytest fixtures."""

from cqrs_sync.testing.recorder import Recorder, record

__all__ = ["Recorder", "record"]
