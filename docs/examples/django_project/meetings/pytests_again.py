"""A second module: the mediator is still open."""

from __future__ import annotations

import pytest

from cqrs_sync.testing.waiting import eventually
from meetings.mediator import mediator
from meetings.messages import JoinMeeting
from meetings.models import Participation


@pytest.mark.django_db(transaction=True)
def test_a_commit_in_another_module() -> None:
    mediator.send(JoinMeeting("bob", "monthly"))
    eventually(lambda: mediator.relay.outbox.backlog().waiting == 0)
    assert Participation.objects.get().welcomed
