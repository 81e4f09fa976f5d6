"""
What both Kafka clients share: all but their settings, their errors and their quirks.

`client` is the port that a client library implements. Over it, `publisher` and `supervisor` publish, `subscription`,
`partitions` and `initial_offsets` receive; `cloudevents` makes records of messages, `topology` names the topics of a
group. It is not in an integration because two of them use it: each reads what the other one has published.
"""

from cqrs_sync.kafka.broker import BaseKafkaBroker
from cqrs_sync.kafka.client import (
    ConsumerClient,
    Headers,
    OnFailure,
    Partition,
    PartitionOffsets,
    ProducerClient,
    ProducerConnector,
    ProducerRetired,
    SentBatch,
    TopicAdmin,
    TopicNotKnown,
    Verdict,
)
from cqrs_sync.kafka.cloudevents import incoming_message
from cqrs_sync.kafka.initial_offsets import InitialOffsets
from cqrs_sync.kafka.publisher import KafkaPublisher
from cqrs_sync.kafka.settings import ClientOptions, KafkaAddress, milliseconds, refuse_reserved, unknown_option
from cqrs_sync.kafka.subscription import BaseKafkaSubscription
from cqrs_sync.kafka.supervisor import ProducerSupervisor
from cqrs_sync.kafka.topology import SubscriptionPlan

__all__ = [
    "BaseKafkaBroker",
    "BaseKafkaSubscription",
    "ClientOptions",
    "ConsumerClient",
    "Headers",
    "InitialOffsets",
    "KafkaAddress",
    "KafkaPublisher",
    "OnFailure",
    "Partition",
    "PartitionOffsets",
    "ProducerClient",
    "ProducerConnector",
    "ProducerRetired",
    "ProducerSupervisor",
    "SentBatch",
    "SubscriptionPlan",
    "TopicAdmin",
    "TopicNotKnown",
    "Verdict",
    "incoming_message",
    "milliseconds",
    "refuse_reserved",
    "unknown_option",
]
