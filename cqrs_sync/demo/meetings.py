"""
Joining a meeting, and what follows from it: the example of the tutorial.

A command goes in and is answered. It raises a *domain event*, for this application,
and a *notification event*, for all others, which leaves through a message broker.
"""

from __future__ import annotations

from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.demo.world import AuditTrail, MailServer, Meetings, Phones, Statistics

requests = cqrs.RequestMap()
events = cqrs.EventMap()


@frozen
class JoinMeeting(cqrs.Command[int]):
    """Let a user into a meeting; the answer is how many are in it then."""

    user_id: str
    meeting_id: str


@frozen
class UserJoined(cqrs.DomainEvent):
    """A user is in a meeting now."""

    user_id: str
    meeting_id: str


@frozen
class MeetingJoined(cqrs.NotificationEvent, topic="meetings", name="meeting.joined", key="meeting_id"):
    """The same, for other services; what happened to one meeting reaches them in order."""

    meeting_id: str
    user_id: str


@requests.bind
class JoinMeetingHandler(cqrs.RequestHandler[JoinMeeting, int]):
    """Runs in the thread that sends the command. The events are dispatched when it has returned."""

    def __init__(self, meetings: Meetings) -> None:
        self.meetings = meetings

    def handle(self, request: JoinMeeting) -> int:
        """Let the user in, and say so."""
        present = self.meetings.join(request.user_id, request.meeting_id)
        self.raise_event(UserJoined(request.user_id, request.meeting_id))
        self.raise_event(MeetingJoined(request.meeting_id, request.user_id))
        return present


# An event has as many handlers as one likes. They run side by side on the thread pool.


@events.bind
class SendWelcomeMail(cqrs.EventHandler[UserJoined]):
    """Takes longest, and holds up nobody but itself."""

    def __init__(self, mail: MailServer) -> None:
        self.mail = mail

    def handle(self, event: UserJoined) -> None:
        """Welcome the user."""
        self.mail.send(event.user_id, f"Welcome to {event.meeting_id}!")


@events.bind
class TextTheUser(cqrs.EventHandler[UserJoined]):
    """Fails where a phone is switched off. Its siblings run all the same, and so does the notification."""

    def __init__(self, phones: Phones) -> None:
        self.phones = phones

    def handle(self, event: UserJoined) -> None:
        """Send the dial-in number."""
        self.phones.text(event.user_id, f"Dial 5050 to talk in {event.meeting_id}.")


@events.bind
class UpdateStatistics(cqrs.EventHandler[UserJoined]):
    """Counts who joins what."""

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics

    def handle(self, event: UserJoined) -> None:
        """Count the user in."""
        self.statistics.count(event.meeting_id)


@events.bind
class KeepAuditTrail(cqrs.EventHandler[UserJoined]):
    """Writes down what happened."""

    def __init__(self, trail: AuditTrail) -> None:
        self.trail = trail

    def handle(self, event: UserJoined) -> None:
        """Write one line."""
        self.trail.write(f"{event.user_id} joined {event.meeting_id}")
