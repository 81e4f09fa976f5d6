"""The parts of `cqrs_sync.testing.inbox_contract`."""
