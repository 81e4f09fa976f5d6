"""Commands sent by the tests themselves. A TransactionTestCase commits; in a TestCase nothing ever commits."""

from __future__ import annotations

from django.db import IntegrityError, transaction
from django.test import TestCase

from cqrs_sync.testing import record
from cqrs_sync.testing.waiting import eventually
from meetings.mediator import broker, mediator
from meetings.messages import JoinMeeting, MeetingJoined
from meetings.models import Meeting, Participation
from meetings.testing import DeliveringTestCase


class JoiningAMeeting(DeliveringTestCase):
    def test_nothing_leaves_before_the_commit(self) -> None:
        """Inside a transaction `send` returns the response, and the events wait."""
        with transaction.atomic():
            assert mediator.send(JoinMeeting("ada", "weekly")) == 1
            assert len(broker.published) == 0
            assert not Participation.objects.get().welcomed
        assert self.published() == ["meeting.joined"]

    def test_a_command_that_fails_leaves_nothing_behind(self) -> None:
        """The database refuses a participation without a user: the meeting is rolled back, too, and nothing leaves."""
        with self.assertRaises(IntegrityError):  # noqa: PT027 -- as in Django's own documentation
            mediator.send(JoinMeeting(None, "weekly"))

        assert Meeting.objects.count() == 0
        assert self.published() == []

    def test_a_savepoint_that_is_rolled_back_is_not_announced(self) -> None:
        """The surrounding transaction commits, and only its own events leave."""
        with transaction.atomic():
            mediator.send(JoinMeeting("ada", "weekly"))
            with transaction.atomic():
                mediator.send(JoinMeeting("bob", "weekly"))
                transaction.set_rollback(True)
        assert self.published() == ["meeting.joined"]

    def test_a_handler_on_the_pool_sees_the_committed_row(self) -> None:
        """With a deadline the caller runs no handler itself: all are on the pool, with connections of their own."""
        with self.assertLogs("meetings.handlers", "INFO") as logs:
            mediator.send(JoinMeeting("ada", "weekly"), timeout=10)

        assert [record.getMessage() for record in logs.records] == ["ada joined weekly"]
        assert logs.records[0].threadName.startswith("cqrs")
        assert eventually(lambda: Participation.objects.get().welcomed)

    def test_a_test_that_records_needs_no_outbox(self) -> None:
        """Everything happens in its own thread, and nothing is written to the outbox."""
        with record(mediator) as recorder:
            mediator.send(JoinMeeting("ada", "weekly"))
        recorder.assert_published(MeetingJoined("weekly", "ada"))
        assert Participation.objects.get().welcomed


class JoiningAMeetingThatIsNeverCommitted(TestCase):
    def test_a_test_that_records_calls_what_waits_for_the_commit(self) -> None:
        """As after a commit: in this thread, on the connection of the test."""
        with record(mediator) as recorder, self.captureOnCommitCallbacks(execute=True):
            mediator.send(JoinMeeting("ada", "weekly"))
        recorder.assert_published(MeetingJoined("weekly", "ada"))
        assert Participation.objects.get().welcomed

    def test_without_recording_events_are_rows(self) -> None:
        """They are rolled back with the rest, and no other process has seen them."""
        mediator.send(JoinMeeting("ada", "weekly"))

        assert [(each.target, each.pending) for each in mediator.relay.outbox.backlog().targets] == [
            ("welcome", 1),
            ("meetings", 1),
        ]
