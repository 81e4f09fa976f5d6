"""What a client library of Kafka has to do: `integrations/kafka` and `integrations/confluent` implement this port."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, ClassVar, TypeAlias

import attrs

from cqrs_sync.broker import IncomingMessage, OutgoingMessage
from cqrs_sync.errors import ConfigurationError, DeliveryError

#: A topic and the number of one of its partitions. The TopicPartition of kafka-python is such a tuple.
Partition: TypeAlias = "tuple[str, int]"
Headers: TypeAlias = "Iterable[tuple[str, bytes | None]]"
#: Headers to send: kafka-python takes nothing but a list.
HeaderList: TypeAlias = "list[tuple[str, bytes]]"


class ProducerRetired(Exception):
    """This producer takes no more records; the supervisor has another one."""


class TopicNotKnown(Exception):
    """The producer cannot send to this topic until `find_topics` has found it."""


class ErrorAction(enum.Enum):
    """What to do after an error of a record."""

    #: The record is not sent again.
    FAIL = enum.auto()
    #: The same, and another producer has to replace this one.
    FAIL_AND_REPLACE = enum.auto()
    #: The broker refused this record, or another one of the same request or producer.
    SEND_ALONE = enum.auto()
    #: The producer failed: the next one sends the record.
    SEND_AGAIN = enum.auto()
    #: The topic may not exist: if it does, the record is sent again.
    FIND_TOPIC = enum.auto()


class RecordBatch(ABC):
    """The records that one call of `publish` has sent through one producer, by the indexes of their messages."""

    @abstractmethod
    def send(self, index: int, message: OutgoingMessage, key: bytes | None, headers: HeaderList, /) -> None:
        """
        Send a message; wait while the queue of the producer is full.

        Raises ProducerRetired, TopicNotKnown, and what the client says about the record.
        """

    @abstractmethod
    def wait(self, timeout: float, /) -> None:
        """Wait until every record is answered, for `timeout` seconds at most."""

    @abstractmethod
    def answers(self) -> dict[int, Any]:
        """Return, for each answered record, None if the broker has confirmed it, else the client's error."""


class ProducerClient(ABC):
    """
    One producer, used by all threads.

    It registers with `reset_in_child` itself: a child never touches the producer of its parent.
    """

    #: Whether any error of a record means that another producer has to replace this one.
    replaced_after_errors: ClassVar[bool] = False
    #: Whether the producer refuses a topic that was missing, long after it was created.
    caches_missing_topics: ClassVar[bool] = False
    #: Whether `abandon` ends a silent producer. Otherwise `finish` does.
    abandoned_when_silent: ClassVar[bool] = False
    #: Whether the broker has answered this producer before: until then, silence means that it is connecting.
    was_heard: bool = True
    #: Why the broker will never let this producer connect.
    refusal: DeliveryError | None = None

    @abstractmethod
    def new_batch(self, timeout: float, /) -> RecordBatch:
        """Return an empty batch that may wait `timeout` seconds for room in the queue."""

    @abstractmethod
    def find_topics(self, topics: Collection[str], timeout: float, /) -> Iterator[tuple[str, DeliveryError | None]]:
        """Yield each topic as soon as the broker has told about it: with None if it exists, else with the error."""

    @abstractmethod
    def action_after(self, error: Any, /) -> ErrorAction:
        """Tell what to do with a record that failed with this error."""

    @abstractmethod
    def delivery_error(self, error: Any, /) -> DeliveryError:
        """Return the client's error as ours, with the client's as the cause."""

    def connection_trouble(self) -> str:
        """Return what the client said last about its connections; "" if they are well or the client does not say."""
        return ""

    def confirm(self) -> None:
        """Note that the broker has confirmed a record."""
        return

    @abstractmethod
    def finish(self, timeout: float, /) -> None:
        """Take no more records, and end in the background once all are answered, after `timeout` seconds at most."""

    @abstractmethod
    def abandon(self) -> None:
        """Take no more records and send none: those in flight fail at once."""

    @abstractmethod
    def close(self, timeout: float, /) -> None:
        """Send what waits, for `timeout` seconds at most; fail the rest and end."""


#: Called with the producer and the reason when the producer will never send again.
OnFailure: TypeAlias = Callable[[Any, str], None]


class ProducerConnector(ABC):
    """Makes producers with the same options."""

    #: Whether `connect` waits for a broker. If so, the supervisor calls it in a thread, again and again.
    blocks: ClassVar[bool] = False

    @abstractmethod
    def connect(self, on_failure: OnFailure, /) -> ProducerClient:
        """Make a producer. Raises the client's errors, or ConfigurationError."""

    def cancel(self) -> None:
        """End a `connect` that waits in another thread."""
        return

    def reset_in_child(self) -> None:
        """Forget a `connect` of the parent, without using it: the child does not have its thread."""
        return

    def is_final(self, error: BaseException | None, /) -> bool:
        """Tell whether there is no use in connecting again."""
        return error is not None

    def unreachable(self, error: BaseException | None, /) -> DeliveryError | ConfigurationError:
        """Return why there is no producer; `error` is what `connect` raised last, None while the first call waits."""
        raise NotImplementedError


class ConsumerClient(ABC):
    """One consumer; a record is what the client returns."""

    @abstractmethod
    def offset_of(self, record: Any, /) -> int:
        """Return the record's offset."""

    @abstractmethod
    def headers_of(self, record: Any, /) -> Headers:
        """Return the record's headers."""

    @abstractmethod
    def message_of(self, record: Any, /, *, deferred: bool) -> IncomingMessage:
        """Return the record as a message; see `incoming_message`."""

    @abstractmethod
    def pause(self, partitions: Collection[Partition], /) -> None:
        """Fetch nothing from these partitions."""

    @abstractmethod
    def resume(self, partitions: Collection[Partition], /) -> None:
        """Fetch from these partitions again."""

    @abstractmethod
    def commit(self, offsets: Mapping[Partition, int], /) -> None:
        """Commit offsets without waiting; the subscription tells its buffer about the answer."""

    @abstractmethod
    def find_partitions(self, topics: Collection[str], timeout: float, /) -> dict[str, list[int]]:
        """Return the partitions of those topics that exist; ask the broker again if one is missing."""

    @abstractmethod
    def committed_offsets(self, partitions: Collection[Partition], timeout: float, /) -> dict[Partition, int | None]:
        """Return the offset that the group has committed in each partition."""

    @abstractmethod
    def end_offsets(self, partitions: Collection[Partition], timeout: float, /) -> dict[Partition, int]:
        """Return the offset of the next record in each partition."""

    @abstractmethod
    def commit_before_joining(self, offsets: Mapping[Partition, int], timeout: float, /) -> Collection[Partition]:
        """Commit offsets from outside the group; return the partitions the broker accepted, none if it has members."""


@attrs.frozen
class PartitionOffsets:
    """How far a partition goes, and how far a group has come; None if it has committed nothing."""

    first: int
    end: int
    committed: int | None = None

    @property
    def lag(self) -> int:
        """How many records are left for a group that begins with the first one."""
        return max(0, self.end - max(self.first, self.committed or 0))


class TopicAdmin(ABC):
    """A connection that looks at topics and creates them; raises BrokerUnavailable and ConfigurationError."""

    @abstractmethod
    def partition_counts(self, topics: Iterable[str], /) -> dict[str, int]:
        """Return the number of partitions of those topics that exist; creates none."""

    @abstractmethod
    def create_topics(self, topics: Mapping[str, int], replication_factor: int, /) -> None:
        """
        Create topics with so many partitions, -1 for the broker's default, and wait until they can be used.

        Another process may create them at the same time.
        """

    @abstractmethod
    def offsets(self, topics: Mapping[str, int], group: str, /) -> dict[Partition, PartitionOffsets]:
        """Return the offsets of topics with so many partitions, without joining the group."""
