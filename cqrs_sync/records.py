"""
Kafka's records, whichever client carries them: the CloudEvents binding, settling, and how far a group has come.

It is here and not in an integration because two of them need it and they do not know
each other: what one client has published, the other one must be able to read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from cqrs_sync.broker import IncomingMessage, OutgoingMessage
from cqrs_sync.errors import MessageRejected

_PREFIX = "ce_"
_CONTENT_TYPE = "content-type"


def key_and_headers_of(message: OutgoingMessage) -> tuple[bytes | None, list[tuple[str, bytes]]]:
    """
    Return what a record has besides its body; for a structured CloudEvent the content type is the only header.

    Raises MessageRejected for what cannot be UTF-8.
    """
    key = message.key
    try:
        headers = [(f"ce_{name}", value.encode()) for name, value in message.attributes.items()]
        headers.append((_CONTENT_TYPE, message.content_type.encode()))
        return (None if key is None else key.encode()), headers
    except (AttributeError, UnicodeEncodeError) as error:
        raise MessageRejected(f"its key or an attribute is no text: {error}") from error


def incoming_message(
    topic: str, body: bytes | None, key: bytes | None, headers: Iterable[tuple[str, bytes | None]]
) -> IncomingMessage:
    """Read a record, whoever wrote it: what is not text becomes readable, nothing raises."""
    attributes: dict[str, str] = {}
    content_type = None
    for name, value in headers:
        lowered = name.lower()
        if lowered.startswith(_PREFIX):
            attributes[lowered.removeprefix(_PREFIX)] = _text(value)
        elif lowered == _CONTENT_TYPE:
            content_type = _text(value)
    return IncomingMessage(
        topic=topic,
        body=body or b"",
        content_type=content_type,
        key=None if key is None else _text(key),
        attributes=attributes,
    )


class Progress:
    """
    Keeps the offset up to which everything in a partition is finished, whatever the order of finishing.

    Committing less than that delivers finished messages again, committing more loses
    unfinished ones.
    """

    def __init__(self) -> None:
        self._open: deque[int] = deque()
        self._finished: set[int] = set()
        #: The partition is somebody else's by now.
        self.lapsed = False

    def handed_out(self, offset: int) -> None:
        """Take note that this offset is being worked on."""
        self._open.append(offset)

    def finished(self, offset: int) -> int | None:
        """Take note that this offset is done; return the next one to read after a restart, None where it stays."""
        self._finished.add(offset)
        last = None
        while self._open and self._open[0] in self._finished:
            last = self._open.popleft()
            self._finished.remove(last)
        return None if last is None else last + 1


class RecordDelivery:
    """One record of a partition; `settle` is told once, with the delivery and whether it is done."""

    def __init__(
        self, message: IncomingMessage, partition: Any, record: Any, progress: Progress, settle: Callable[..., None]
    ) -> None:
        self.message = message
        #: As the client names it, with its topic.
        self.partition = partition
        self.record = record
        self.progress = progress
        #: Anybody may have had it in hand before: Kafka does not tell.
        self.redeliveries = 1
        self._settle_once: Callable[..., None] | None = settle

    @property
    def origin(self) -> str:
        """Its partition, by the client's name for it."""
        return str(self.partition)

    @property
    def lapsed(self) -> bool:
        """Whether it was settled, or its partition is somebody else's by now."""
        return self._settle_once is None or self.progress.lapsed

    def ack(self) -> None:
        """It is done: never deliver it again."""
        self._settle(done=True)

    def nack(self) -> None:
        """It is not done: deliver it again."""
        self._settle(done=False)

    def _settle(self, *, done: bool) -> None:
        settle, self._settle_once = self._settle_once, None
        if settle is not None:
            settle(self, done=done)


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")
