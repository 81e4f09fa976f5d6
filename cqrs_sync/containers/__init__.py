"""Implementations of the container socket, `cqrs_sync.container`."""
