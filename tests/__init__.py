"""The promises of cqrs_sync, one test each."""
