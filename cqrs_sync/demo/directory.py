"""
Another service: it hears from the broker who joined what, and answers who is where.

It has maps, and a mediator, of its own: nothing reaches it but messages.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.demo.meetings import MeetingJoined
from cqrs_sync.demo.world import Directory

requests = cqrs.RequestMap()
events = cqrs.EventMap()


@events.bind
class AddToDirectory(cqrs.EventHandler[MeetingJoined]):
    """Keeps the read model: the list that queries are answered from."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory

    def handle(self, event: MeetingJoined) -> None:
        """Add the user."""
        self.directory.add(event.user_id, event.meeting_id)


@frozen
class ListParticipants(cqrs.Query[Sequence[str]]):
    """Tell who is in a meeting."""

    meeting_id: str


@requests.bind
class ListParticipantsHandler(cqrs.RequestHandler[ListParticipants, Sequence[str]]):
    """Reads, and raises no events."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory

    def handle(self, request: ListParticipants) -> Sequence[str]:
        """Look it up."""
        return self.directory.users_in(request.meeting_id)
