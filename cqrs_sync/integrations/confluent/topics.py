"""What Kafka takes for the name of a topic."""

from __future__ import annotations

import functools
import re

from cqrs_sync.errors import MessageRejected

_LEGAL = re.compile(r"[a-zA-Z0-9._-]{1,249}")


@functools.lru_cache(maxsize=1024)
def check_topic(topic: str) -> None:
    """
    Raise MessageRejected for what no broker takes.

    librdkafka asks the broker about any name, for as long as it may take to make a topic.
    """
    if not isinstance(topic, str) or not _LEGAL.fullmatch(topic) or topic in {".", ".."}:
        raise MessageRejected(f"{topic!r} cannot be a topic: use letters, digits, '.', '_' and '-', 249 at most")
