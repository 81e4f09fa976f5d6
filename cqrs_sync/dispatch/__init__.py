"""One message carried out: its handler runs, and the events it raised reach theirs."""

from cqrs_sync.dispatch.dispatcher import EventDispatcher, RequestDispatcher

__all__ = ["EventDispatcher", "RequestDispatcher"]
