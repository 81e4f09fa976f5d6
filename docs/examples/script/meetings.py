"""
Two people join a meeting, and a report follows from what was published.

    python meetings.py                                      # everything in this process
    python meetings.py amqp://guest:guest@127.0.0.1:5672/   # through RabbitMQ
    python meetings.py kafka://127.0.0.1:9092               # through Kafka
"""

from __future__ import annotations

import sys
from collections import Counter

from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.broker import ReceivingBroker
from cqrs_sync.memory import MemoryBroker

requests = cqrs.RequestMap()
events = cqrs.EventMap()

members: dict[str, list[str]] = {}
report: Counter[str] = Counter()


@frozen
class JoinMeeting(cqrs.Command[int]):
    user_id: str
    meeting_id: str


@frozen
class UserJoined(cqrs.DomainEvent):
    user_id: str
    meeting_id: str


@frozen
class MeetingJoined(cqrs.NotificationEvent, topic="meetings", name="meeting.joined", key="meeting_id"):
    meeting_id: str
    user_id: str


@requests.bind
class JoinMeetingHandler(cqrs.RequestHandler[JoinMeeting, int]):
    def handle(self, request: JoinMeeting) -> int:
        present = members.setdefault(request.meeting_id, [])
        present.append(request.user_id)
        self.raise_event(UserJoined(request.user_id, request.meeting_id))
        self.raise_event(MeetingJoined(request.meeting_id, request.user_id))
        return len(present)


@events.bind
def welcome(event: UserJoined) -> None:
    print(f"welcome, {event.user_id}")


# Another service. It has event handlers and a mediator of its own.
received = cqrs.EventMap()


@received.bind
def count(event: MeetingJoined) -> None:
    report[event.meeting_id] += 1


def broker_at(url: str) -> ReceivingBroker:
    if url.startswith(("amqp://", "amqps://")):
        from cqrs_sync.integrations.rabbitmq import RabbitMQBroker  # noqa: PLC0415 -- an extra

        return RabbitMQBroker(url, exchange="meetings-example")
    if url.startswith(("kafka://", "kafkas://")):
        from cqrs_sync.integrations.kafka import KafkaBroker  # noqa: PLC0415 -- an extra

        return KafkaBroker(url)
    return MemoryBroker()


def main(url: str = "memory") -> None:
    broker = broker_at(url)
    # First the subscription: a broker keeps nothing for a group that it does not know.
    with (
        cqrs.bootstrap(requests, events, source="meetings", broker=broker) as mediator,
        broker.subscribe(cqrs.Group("report", ["meetings"])) as inbox,
    ):
        reporting = cqrs.bootstrap(events=received, threads=cqrs.SameThread())
        for user in ("ada", "bob"):
            print(f"{mediator.send(JoinMeeting(user, 'weekly'), timeout=10)} in the meeting")
        while report.total() < 2 and (delivery := inbox.receive(timeout=30)) is not None:
            reporting.receive(delivery.message)
            delivery.ack()
    print(f"the report says: {dict(report)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
