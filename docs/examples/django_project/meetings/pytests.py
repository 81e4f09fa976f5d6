"""With pytest-django."""

from __future__ import annotations

import pytest

from cqrs_sync.testing.waiting import eventually
from meetings.mediator import broker, mediator
from meetings.messages import JoinMeeting, MeetingJoined
from meetings.models import Participation


@pytest.mark.django_db
def test_what_waits_for_the_commit(cqrs_record, django_capture_on_commit_callbacks):
    recorder = cqrs_record(mediator)
    with django_capture_on_commit_callbacks(execute=True):
        mediator.send(JoinMeeting("ada", "weekly"))
    recorder.assert_published(MeetingJoined("weekly", "ada"))


@pytest.mark.django_db(transaction=True)
def test_a_commit():
    mediator.send(JoinMeeting("ada", "weekly"))
    eventually(lambda: mediator.relay.outbox.backlog().waiting == 0)
    assert broker.published[-1].type == "meeting.joined"
    assert Participation.objects.get().welcomed
