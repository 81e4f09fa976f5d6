"""What test cases of several modules share."""

from __future__ import annotations

from django.test import TransactionTestCase

from cqrs_sync.testing.waiting import eventually
from meetings.mediator import broker, mediator


class DeliveringTestCase(TransactionTestCase):
    """Commits as a request does, and the outbox delivers as in production."""

    def setUp(self) -> None:
        broker.published.clear()

    def tearDown(self) -> None:
        # Ends the threads that deliver, with their connections; the next commit starts them again.
        mediator.relay.quiesce()

    def published(self) -> list[str]:
        """Return the types of the published messages, once the backlog is empty."""
        eventually(lambda: mediator.relay.outbox.backlog().waiting == 0)
        return [message.type for message in broker.published]
