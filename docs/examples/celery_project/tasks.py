"""
Commands as Celery tasks: `celery -A tasks worker` runs them in forked processes.

A task is done when its notification events are confirmed by RabbitMQ. Tasks and
their results go through Redis.
"""

from __future__ import annotations

import os

from attrs import frozen
from celery import Celery

import cqrs_sync as cqrs
from cqrs_sync.integrations.rabbitmq import RabbitMQBroker

requests = cqrs.RequestMap()
events = cqrs.EventMap()


@frozen
class JoinMeeting(cqrs.Command[str]):
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
class JoinMeetingHandler(cqrs.RequestHandler[JoinMeeting, str]):
    def handle(self, request: JoinMeeting) -> str:
        self.raise_event(UserJoined(request.user_id, request.meeting_id))
        self.raise_event(MeetingJoined(request.meeting_id, request.user_id))
        return f"{request.user_id} is in {request.meeting_id}"


@events.bind
def welcome(event: UserJoined) -> None:
    print(f"welcome to {event.meeting_id}, {event.user_id}")


app = Celery(
    "meetings",
    broker=os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"),
    backend=os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"),
)

# Made at import, in the parent of the worker's processes. Connections and threads are made
# by each process at its first command, whether or not the parent has made some of its own.
mediator = cqrs.bootstrap(
    requests,
    events,
    source="meetings",
    broker=RabbitMQBroker(
        os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/"),
        exchange=os.environ.get("RABBITMQ_EXCHANGE", "meetings-example"),
    ),
)


@app.task
def join(user_id: str, meeting_id: str) -> str:
    return mediator.send(JoinMeeting(user_id, meeting_id), timeout=10)
