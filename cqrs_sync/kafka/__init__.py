"""
Kafka's records, whichever client carries them: the CloudEvents binding, a group's places, how far a group has come.

It is here and not in an integration because two of them need it and they do not know
each other: what one client has published, the other one must be able to read.
"""

from cqrs_sync.kafka.broker import BaseKafkaBroker, RecordGroups, TopicAdmin
from cqrs_sync.kafka.cloudevents import KeptMessage, due_in, incoming_message, kept_messages, key_and_headers_of
from cqrs_sync.kafka.partitions import Client, FetchBuffer, KafkaDelivery, OffsetTracker, OwnedPartition
from cqrs_sync.kafka.subscription import BaseKafkaSubscription
from cqrs_sync.kafka.topology import GroupTopics, PartitionOffsets, SubscriptionPlan

__all__ = [
    "BaseKafkaBroker",
    "BaseKafkaSubscription",
    "Client",
    "FetchBuffer",
    "GroupTopics",
    "KafkaDelivery",
    "KeptMessage",
    "OffsetTracker",
    "OwnedPartition",
    "PartitionOffsets",
    "RecordGroups",
    "SubscriptionPlan",
    "TopicAdmin",
    "due_in",
    "incoming_message",
    "kept_messages",
    "key_and_headers_of",
]
