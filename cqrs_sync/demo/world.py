"""What an application would have outside of itself: a database, a mail server, telephones. All of them in memory."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence


class PhoneSwitchedOff(Exception):
    """Nobody can be reached under this number now."""


class Meetings:
    """Who is in which meeting."""

    def __init__(self) -> None:
        self._users: defaultdict[str, list[str]] = defaultdict(list)
        self._lock = threading.Lock()

    def join(self, user_id: str, meeting_id: str) -> int:
        """Let a user in; returns how many there are now."""
        with self._lock:
            users = self._users[meeting_id]
            users.append(user_id)
            return len(users)

    def names(self) -> Sequence[str]:
        """Return every meeting that somebody has joined."""
        with self._lock:
            return sorted(self._users)

    def users_in(self, meeting_id: str) -> Sequence[str]:
        """Return who has joined a meeting, first come first."""
        with self._lock:
            return tuple(self._users.get(meeting_id, ()))


class MailServer:
    """Takes letters, and takes a while for each."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self._lock = threading.Lock()

    def send(self, recipient: str, text: str) -> None:
        """Send a letter."""
        del text
        _takes(0.010)
        with self._lock:
            self.sent[recipient] += 1


class Phones:
    """Takes text messages for phones that are not switched off."""

    def __init__(self, switched_off: Collection[str] = ()) -> None:
        self._switched_off = frozenset(switched_off)

    def text(self, recipient: str, text: str) -> None:
        """Send a text message. Raises PhoneSwitchedOff."""
        del text
        _takes(0.006)
        if recipient in self._switched_off:
            raise PhoneSwitchedOff(f"the phone of {recipient} is switched off")


class Statistics:
    """How often each meeting was joined."""

    def __init__(self) -> None:
        self.joins: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, meeting_id: str) -> None:
        """Count one more."""
        with self._lock:
            self.joins[meeting_id] += 1


class AuditTrail:
    """Lines that are written and never changed."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        """Write a line, and wait for the disk."""
        _takes(0.002)
        self.lines.append(line)


class Directory:
    """Who is where, as another service knows it: a list of its own, fed by what it hears."""

    def __init__(self) -> None:
        self._users: defaultdict[str, list[str]] = defaultdict(list)
        self._lock = threading.Lock()

    def add(self, user_id: str, meeting_id: str) -> None:
        """Note that a user is in a meeting; what is heard twice stands there twice."""
        with self._lock:
            self._users[meeting_id].append(user_id)

    def users_in(self, meeting_id: str) -> Sequence[str]:
        """Return who is in a meeting, in the order it was heard."""
        with self._lock:
            return tuple(self._users.get(meeting_id, ()))


def _takes(seconds: float) -> None:
    """Wait as one waits for a network or a disk: other threads go on meanwhile."""
    threading.Event().wait(seconds)
