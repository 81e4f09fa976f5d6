"""Wire the two services of the example, with somebody watching."""

from __future__ import annotations

import punq

import cqrs_sync as cqrs
from cqrs_sync.demo import directory, meetings, world
from cqrs_sync.demo.ledger import Ledger
from cqrs_sync.demo.watching import OwnTopic, WatchPublishing, WatchReceiving, watched_events, watched_requests


def meetings_service(
    broker: cqrs.MessageBroker, services: punq.Container, *, pool: int, topic: str, ledger: Ledger
) -> cqrs.RequestMediator:
    """Wire the service that takes commands; closing it closes the broker."""
    around_publishing = cqrs.MiddlewareChain()
    around_publishing.add(WatchPublishing(ledger), cqrs.OutgoingMessage)
    around_publishing.add(OwnTopic(topic), cqrs.OutgoingMessage)
    return cqrs.bootstrap(
        watched_requests(meetings.requests, ledger),
        watched_events(meetings.events, ledger),
        container=services,
        broker=broker,
        threads=cqrs.ThreadPool(pool, name="pool") if pool else cqrs.SameThread(),
        middleware=around_publishing,
    )


def directory_service(*, ledger: Ledger) -> cqrs.RequestMediator:
    """Wire the service that listens and answers queries; it publishes nothing, so it has no broker."""
    services = punq.Container()
    services.register(world.Directory, instance=world.Directory())
    return cqrs.bootstrap(
        directory.requests,
        watched_events(directory.events, ledger),
        container=services,
        threads=cqrs.SameThread(),
        middleware=cqrs.MiddlewareChain().add(WatchReceiving(ledger), cqrs.IncomingMessage),
    )


def services_of_meetings(world_of_meetings: world.Meetings, phones: world.Phones) -> punq.Container:
    """Register what the handlers of the meetings ask for by type."""
    services = punq.Container()
    services.register(world.Meetings, instance=world_of_meetings)
    services.register(world.Phones, instance=phones)
    for service in (world.MailServer, world.Statistics, world.AuditTrail):
        services.register(service, instance=service())
    return services
