"""The parts of `cqrs_sync.testing.outbox_contract`."""
