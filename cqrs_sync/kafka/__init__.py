"""
Kafka's records, whichever client carries them: the CloudEvents binding, a group's places, how far a group has come.

It is here and not in an integration because two of them need it and they do not know
each other: what one client has published, the other one must be able to read.
"""

from cqrs_sync.kafka.binding import incoming_message, key_and_headers_of
from cqrs_sync.kafka.broker import RecordBroker
from cqrs_sync.kafka.delivery import RecordDelivery
from cqrs_sync.kafka.groups import Admin, RecordGroups
from cqrs_sync.kafka.holding import Holding, Progress
from cqrs_sync.kafka.intake import Client, Intake
from cqrs_sync.kafka.keeping import KeptMessage, due_in, kept_messages
from cqrs_sync.kafka.places import Offsets, Places, Reading
from cqrs_sync.kafka.subscription import RecordSubscription

__all__ = [
    "Admin",
    "Client",
    "Holding",
    "Intake",
    "KeptMessage",
    "Offsets",
    "Places",
    "Progress",
    "Reading",
    "RecordBroker",
    "RecordDelivery",
    "RecordGroups",
    "RecordSubscription",
    "due_in",
    "incoming_message",
    "kept_messages",
    "key_and_headers_of",
]
