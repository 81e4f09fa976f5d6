"""Every error of kafka-python is one of ours."""

from __future__ import annotations

import inspect

import pytest
from kafka import errors

from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, MessageRejected
from cqrs_sync.integrations.kafka.client import connection_error, delivery_error

#: The message is at fault: a broker that has looked at it will never take it.
AT_FAULT = {
    "InvalidRecordError",
    "InvalidTimestampError",
    "InvalidTopicError",
    "MessageSizeTooLargeError",
    "PolicyViolationError",
    "RecordListTooLargeError",
    "UnsupportedForMessageFormatError",
}
#: Errors that are neither passing nor about rights, and still not the message's: it waits until they are mended.
MENDED_ELSEWHERE = set(
    """
    AuthorizationError BrokerIdNotRegisteredError BrokerNotAvailableError BrokerResponseError
    ClusterAuthorizationFailedError CommitFailedError CorruptRecordError
    DelegationTokenAuthDisabledError DelegationTokenAuthorizationFailedError DelegationTokenExpiredError
    DelegationTokenNotFoundError DelegationTokenOwnerMismatchError DelegationTokenRequestNotAllowedError
    DuplicateBrokerRegistrationError DuplicateResourceError DuplicateSequenceNumberError DuplicateVoterError
    FeatureUpdateFailedError FencedInstanceIdError FencedMemberEpochError FencedStateEpochError
    GroupAuthorizationFailedError GroupIdNotFoundError GroupMaxSizeReachedError GroupSubscribedToTopicError
    IllegalArgumentError IllegalGenerationError IllegalSaslStateError IllegalStateError
    IncompatibleBrokerVersion InconsistentClusterIdError InconsistentGroupProtocolError
    InconsistentVoterSetError IneligibleReplicaError InvalidCommitOffsetSizeError InvalidConfigurationError
    InvalidFetchRequestError InvalidGroupIdError InvalidPartitionsError InvalidPrincipalTypeError
    InvalidProducerEpochError InvalidProducerIdMappingError InvalidReceiveError InvalidRecordStateError
    InvalidRegistrationError InvalidReplicationAssignmentError InvalidReplicationFactorError
    InvalidRequestError InvalidRequiredAcksError InvalidSessionTimeoutError InvalidTransactionTimeoutError
    InvalidTxnStateError InvalidUpdateVersionError InvalidVoterKeyError KafkaConfigurationError KafkaError
    KafkaProtocolError LogDirNotFoundError LogTruncationError MemberIdRequiredError
    MismatchedEndpointTypeError NewLeaderElectedError NoError NoOffsetForPartitionError
    NoReassignmentInProgressError NonEmptyGroupError OffsetMetadataTooLargeError
    OffsetMovedToTieredStorageError OffsetOutOfRangeError OperationNotAttemptedError
    OutOfOrderSequenceNumberError PositionOutOfRangeError PrincipalDeserializationFailureError
    ProducerFencedError QuotaViolationError ReassignmentInProgressError RebalanceInProgressError
    ResourceNotFoundError SaslAuthenticationFailedError SecurityDisabledError SnapshotNotFoundError
    StaleBrokerEpochError StaleControllerEpochError StaleMemberEpochError TelemetryTooLargeError
    TopicAlreadyExistsError TopicAuthorizationFailedError TopicDeletionDisabledError TransactionAbortableError
    TransactionAbortedError TransactionCoordinatorFencedError TransactionalIdAuthorizationFailedError
    TransactionalIdNotFoundError UnacceptableCredentialError UnknownBrokerIdError UnknownControllerIdError
    UnknownError UnknownMemberIdError UnknownProducerIdError UnknownSubscriptionIdError
    UnrecognizedBrokerVersion UnreleasedInstanceIdError UnsupportedAssignorError UnsupportedCodecError
    UnsupportedCompressionTypeError UnsupportedEndpointTypeError UnsupportedSaslMechanismError
    UnsupportedVersionError VoterNotFoundError
    """.split()  # noqa: SIM905 -- read as a text
)
ALL = sorted(
    (kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.KafkaError)),
    key=lambda kind: kind.__name__,
)


def instance(kind: type[Exception]) -> Exception:
    return kind({}) if kind is errors.LogTruncationError else kind("what it said")


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_is_the_message_s_or_the_broker_s(kind):
    """Each class of kafka-python has been decided on, and becomes ours with itself as the cause."""
    vendor = instance(kind)

    ours = delivery_error(vendor)

    assert kind.__name__ in AT_FAULT | MENDED_ELSEWHERE or vendor.retriable, "decide whose fault this is"
    assert (MessageRejected if kind.__name__ in AT_FAULT else BrokerUnavailable) is type(ours)
    assert vendor is ours.__cause__
    assert kind.__name__ in str(ours)


def test_the_lists_name_what_exists():
    """No name above is a slip of the pen, and none is on two lists."""
    names = {kind.__name__ for kind in ALL}
    retriable = {kind.__name__ for kind in ALL if kind.retriable}

    assert set() == (AT_FAULT | MENDED_ELSEWHERE) - names
    assert set() == AT_FAULT & MENDED_ELSEWHERE
    assert set() == AT_FAULT & retriable


@pytest.mark.parametrize("kind", [AssertionError, OverflowError, TypeError, UnicodeEncodeError, ValueError])
def test_what_send_says_about_its_arguments_is_the_message_s(kind):
    """Plain exceptions about a topic, a key or a body are the message's fault."""
    vendor = UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no") if kind is UnicodeEncodeError else kind("no")

    assert MessageRejected is type(delivery_error(vendor))


@pytest.mark.parametrize("kind", [KeyError, AttributeError, RuntimeError, OSError, Exception])
def test_what_is_not_expected_is_not_the_message_s(kind):
    """A message is not given up for a bug or an outage somewhere else."""
    assert BrokerUnavailable is type(delivery_error(kind("no")))


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_what_keeps_us_from_connecting_names_the_servers_or_the_configuration(kind):
    """No vendor error comes out of connecting."""
    vendor = instance(kind)

    ours = connection_error(vendor, "one:1")

    assert vendor is ours.__cause__
    assert isinstance(ours, ConfigurationError) or ("one:1" in str(ours) and isinstance(ours, BrokerUnavailable))
