"""Every error of librdkafka is one of ours."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError, KafkaException

from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, MessageRejected
from cqrs_sync.integrations.confluent.settings import (
    LOST_PRODUCER,
    MISSING_TOPIC,
    REFUSALS,
    configuration_error,
    connection_error,
    delivery_error,
)

#: The message is at fault: a broker that has looked at it will never take it.
AT_FAULT = {
    "INVALID_RECORD",
    "INVALID_TIMESTAMP",
    "MSG_SIZE_TOO_LARGE",
    "POLICY_VIOLATION",
    "RECORD_LIST_TOO_LARGE",
    "TOPIC_EXCEPTION",
    "UNSUPPORTED_FOR_MESSAGE_FORMAT",
}
ALL = sorted(name for name in vars(KafkaError) if name.strip("_").isupper())


@pytest.mark.parametrize("name", ALL)
def test_every_error_is_the_message_s_or_the_broker_s(name):
    """Whatever is not known to be the message's fault is the broker's; librdkafka's error is the cause and is named."""
    vendor = KafkaError(getattr(KafkaError, name))

    ours = delivery_error(vendor)

    assert (MessageRejected if name in AT_FAULT else BrokerUnavailable) is type(ours)
    assert vendor == ours.__cause__.args[0]
    assert vendor.name() in str(ours)
    assert vendor.str() in str(ours)


def test_the_lists_name_what_exists_and_nothing_twice():
    """Every refusal is one of those above, and no error is treated in two ways."""
    assert {getattr(KafkaError, name) for name in AT_FAULT} == REFUSALS
    assert set() == REFUSALS & LOST_PRODUCER
    assert set() == (REFUSALS | LOST_PRODUCER) & MISSING_TOPIC


def test_a_refusal_is_found_inside_an_exception():
    """What `produce` raises says the same as what a report brings."""
    vendor = KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))

    ours = delivery_error(vendor)

    assert (MessageRejected, vendor) == (type(ours), ours.__cause__)


@pytest.mark.parametrize("kind", [OverflowError, TypeError, UnicodeEncodeError, ValueError])
def test_what_produce_says_about_its_arguments_is_the_message_s(kind):
    """Plain exceptions about a topic, a key or a body are the message's fault."""
    vendor = UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no") if kind is UnicodeEncodeError else kind("no")

    assert MessageRejected is type(delivery_error(vendor))


@pytest.mark.parametrize("kind", [KeyError, AttributeError, RuntimeError, OSError, Exception])
def test_what_is_not_expected_is_not_the_message_s(kind):
    """A message is not given up for a bug or an outage somewhere else."""
    assert BrokerUnavailable is type(delivery_error(kind("no")))


def test_an_expired_message_says_what_was_wrong_with_the_connection():
    """\"Timed out\" alone does not help: the error also has what librdkafka said last about its connections."""
    expired, refused = KafkaError(KafkaError._MSG_TIMED_OUT), KafkaError(KafkaError._TRANSPORT, "one:1 refused")

    assert "one:1 refused" in str(delivery_error(expired, refused))


def test_no_way_to_the_broker_names_the_servers():
    """The error says where to look."""
    vendor = KafkaException(KafkaError(KafkaError._TRANSPORT))

    ours = connection_error(vendor, "one:1")

    assert ("one:1" in str(ours), vendor) == (True, ours.__cause__)


def test_a_wrong_option_is_told_without_its_value():
    """Values may be secrets that stand at the wrong place."""
    vendor = KafkaException(KafkaError(KafkaError._INVALID_ARG, 'Invalid value "S3cr3t" for property "acks"'))

    ours = configuration_error(vendor)

    assert ConfigurationError is type(ours)
    assert "S3cr3t" not in str(ours)
    assert '"acks"' in str(ours)
