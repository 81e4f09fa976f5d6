from __future__ import annotations

from attrs import frozen

import cqrs_sync as cqrs


@frozen
class JoinMeeting(cqrs.Command[int]):
    """Let a user into a meeting; the response is how many are in it then."""

    user_id: str
    meeting_id: str


@frozen
class UserJoined(cqrs.DomainEvent, name="meetings.user-joined"):
    participation_id: int


@frozen
class MeetingJoined(cqrs.NotificationEvent, topic="meetings", name="meeting.joined", key="meeting_id"):
    meeting_id: str
    user_id: str
