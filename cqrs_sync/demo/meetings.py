"""
The example: users join meetings. Two services, each with maps of its own, share nothing but messages.

The first one takes commands. A command raises a *domain event*, for handlers in this process, and a
*notification event*, which leaves through a broker. The second service receives that and answers queries.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence

from attrs import frozen

import cqrs_sync as cqrs

#: Each 25th user has switched off the phone.
SWITCHED_OFF = 25


class PhoneSwitchedOff(Exception):
    """The user gets no text message now."""


class Participants:
    """Who is in which meeting: what a database would know."""

    def __init__(self) -> None:
        self._users: defaultdict[str, list[str]] = defaultdict(list)
        self._lock = threading.Lock()

    def add(self, user_id: str, meeting_id: str) -> int:
        """Add a user, and return how many the meeting has now."""
        with self._lock:
            self._users[meeting_id].append(user_id)
            return len(self._users[meeting_id])

    def users_in(self, meeting_id: str) -> Sequence[str]:
        """Return the users of a meeting in the order in which they came."""
        with self._lock:
            return tuple(self._users[meeting_id])


class Directory(Participants):
    """What the second service knows: its read model."""


# The first service

requests: cqrs.RequestMap = cqrs.RequestMap()
events: cqrs.EventMap = cqrs.EventMap()


@frozen
class JoinMeeting(cqrs.Command[int]):
    """Let a user into a meeting. The response is how many users it has then."""

    user_id: str
    meeting_id: str


@frozen
class UserJoined(cqrs.DomainEvent):
    """A user is in a meeting now."""

    user_id: str
    meeting_id: str


@frozen
class MeetingJoined(cqrs.NotificationEvent, topic="meetings", name="meeting.joined", key="meeting_id"):
    """The same for other services. The events of one meeting arrive in order."""

    meeting_id: str
    user_id: str


@requests.bind
def join_meeting(request: JoinMeeting, participants: Participants) -> int:
    """Run in the thread that sends the command. The events are dispatched when this has returned."""
    present = participants.add(request.user_id, request.meeting_id)
    cqrs.raise_event(UserJoined(request.user_id, request.meeting_id))
    cqrs.raise_event(MeetingJoined(request.meeting_id, request.user_id))
    return present


@events.bind
def send_welcome_mail(event: UserJoined) -> None:
    """Run on the thread pool, beside the other handlers of the event. A mail server takes a while."""
    del event
    threading.Event().wait(0.010)


@events.bind
def text_the_user(event: UserJoined) -> None:
    """Fail for each 25th user. The mail and the notification event are sent all the same."""
    threading.Event().wait(0.006)
    if int(event.user_id.rpartition("-")[2]) % SWITCHED_OFF == 0:
        raise PhoneSwitchedOff(f"the phone of {event.user_id} is switched off")


# The second service

directory_requests: cqrs.RequestMap = cqrs.RequestMap()
directory_events: cqrs.EventMap = cqrs.EventMap()


@frozen
class ListParticipants(cqrs.Query[Sequence[str]]):
    """Ask who is in a meeting."""

    meeting_id: str


@directory_events.bind
def add_to_directory(event: MeetingJoined, directory: Directory) -> None:
    """Update the read model."""
    directory.add(event.user_id, event.meeting_id)


@directory_requests.bind
def list_participants(request: ListParticipants, directory: Directory) -> Sequence[str]:
    """Answer from the read model."""
    return directory.users_in(request.meeting_id)
