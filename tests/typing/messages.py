"""What a type checker knows of messages."""

from __future__ import annotations

from typing import assert_type

from attrs import frozen

from cqrs_sync.messages import NotificationEvent, Publication, Query, Request, publication_of


@frozen
class Seats(Query[int]):
    meeting_id: str


@frozen
class MeetingJoined(NotificationEvent, topic="meetings", name="meeting.joined", key="meeting_id"):
    meeting_id: str


def answer(request: Request[int]) -> int:
    return len(repr(request))


assert_type(Seats("m-1").meeting_id, str)
assert_type(MeetingJoined("m-1").meeting_id, str)
assert_type(answer(Seats("m-1")), int)
assert_type(publication_of(MeetingJoined), Publication)
