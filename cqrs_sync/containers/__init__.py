"""Implementations of the socket `cqrs_sync.container`."""
