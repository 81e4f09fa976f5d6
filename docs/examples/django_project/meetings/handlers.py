from __future__ import annotations

import logging

import cqrs_sync as cqrs
from meetings.messages import JoinMeeting, MeetingJoined, UserJoined
from meetings.models import Meeting, Participation

requests = cqrs.RequestMap()
events = cqrs.EventMap()

logger = logging.getLogger(__name__)


@requests.bind
class JoinMeetingHandler(cqrs.RequestHandler[JoinMeeting, int]):
    """Runs in the thread of the view, in its transaction."""

    def handle(self, request: JoinMeeting) -> int:
        meeting, _ = Meeting.objects.get_or_create(pk=request.meeting_id)
        participation = meeting.participation_set.create(user_id=request.user_id)
        self.raise_event(UserJoined(participation.pk))
        self.raise_event(MeetingJoined(request.meeting_id, request.user_id))
        return meeting.participation_set.count()


# Stored in the view's transaction and run after its commit, by this process or, if that dies, by another.


@events.durable("welcome")
def welcome(event: UserJoined) -> None:
    Participation.objects.filter(pk=event.participation_id).update(welcomed=True)


# Runs after the commit, while the view waits, and is lost if this process dies.


@events.bind
def tell_the_host(event: UserJoined) -> None:
    joined = Participation.objects.get(pk=event.participation_id)
    logger.info("%s joined %s", joined.user_id, joined.meeting_id)
