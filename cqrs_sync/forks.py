"""Moved to cqrs_sync.lifecycle."""

from cqrs_sync.lifecycle import reset_in_child

__all__ = ["reset_in_child"]
