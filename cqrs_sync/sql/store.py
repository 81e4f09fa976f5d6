"""The outbox in two tables: who claims what, in which order, and what becomes of it."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import orjson

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import NotInTransaction
from cqrs_sync.outbox import Claimed, Entry, Listener, Outcome, Verdict, check_size, lane_of
from cqrs_sync.sql.database import Connection, Database
from cqrs_sync.sql.office import Office, read_message
from cqrs_sync.sql.statements import HANDLER, PENDING, TOPIC, TRIED
from cqrs_sync.transactions import Transactions

logger = logging.getLogger(__name__)

T = TypeVar("T")

_DONE = Verdict.DONE
#: Rows of one INSERT.
_ROWS = 200
#: Bytes of the messages in it: MySQL takes 16 MiB in a statement, a quoted byte may be two.
_INSERTED_BYTES = 4 * 1024 * 1024
#: Bytes of the messages that are claimed at a time.
_CLAIMED_BYTES = 16 * 1024 * 1024


class _Candidate(NamedTuple):
    """A delivery that may be claimed, if it is its turn."""

    number: int
    message_id: str
    target: str
    lane: int | None
    attempts: int
    size: int


class SqlOutbox(Office):
    """
    The outbox in a SQL database.

    - `messages` and `deliveries` are the names of its tables, with the schema where there is one.
    - `max_bytes`: larger bodies are refused before they are written.
    - `strict`: keeping a message outside of a transaction is an error; otherwise it gets one of its own.
    - `relayed`: messages are given to the broker from here. False where change data
      capture reads them from the table: then only deliveries for handlers are written.
    - `notify`: tell relays in other processes of each commit, where the database can
      (PostgreSQL); it costs each commit a lock that all of them share.

    Any number of processes may claim at a time, none of them is special. A claim locks
    its candidates first and looks at what is ahead of them after that, in a statement of
    its own: it sees what others have claimed or written meanwhile, and gives back what has
    an earlier delivery of its key ahead of it.
    """

    def __init__(
        self,
        database: Database,
        *,
        messages: str = "cqrs_message",
        deliveries: str = "cqrs_delivery",
        max_bytes: int = 1_048_576,
        strict: bool = True,
        relayed: bool = True,
        notify: bool = False,
    ) -> None:
        super().__init__(database, messages, deliveries)
        self._max_bytes = max_bytes
        self._strict = strict
        self._relayed = relayed
        self._notify = notify

    @property
    def transactions(self) -> Transactions:
        """The transactions that `add` joins."""
        return self._database.transactions

    def add(self, entries: Sequence[Entry], /, *, alone: bool = False) -> None:
        """Keep messages and their deliveries in the transaction of the calling thread."""
        for entry in entries:
            check_size(entry.message, self._max_bytes)
        if self.transactions.active():
            self._insert(self._database.joined(), entries)
        elif alone or not self._strict:
            with self._database.begun() as connection:
                self._insert(connection, entries)
        else:
            raise NotInTransaction(self._outside(entries))

    def claim(
        self, limit: int, lease: float, *, handlers: Collection[str] | None = None, besides: Collection[str] = ()
    ) -> Sequence[Claimed]:
        """Claim deliveries for `lease` seconds, oldest first."""
        if handlers is not None and not handlers:
            return ()
        claimed, gave_back = self._claim(limit, lease, handlers, besides)
        if gave_back and not claimed:
            # What was ahead of it may be done by now, by somebody who has looked for more while this was locked here.
            claimed, _ = self._claim(limit, lease, handlers, besides)
        return claimed

    def _claim(
        self, limit: int, lease: float, handlers: Collection[str] | None, besides: Collection[str]
    ) -> tuple[Sequence[Claimed], bool]:
        """Claim once; tells whether something was locked and given back."""
        token = uuid.uuid4().hex
        with self._begun(durable=True) as connection:
            candidates = self._candidates(connection, limit, handlers, besides)
            kept = list(_bounded(candidates, runs=handlers is None))
            if not kept:
                return (), False
            statement, numbers = self._say.listed(self._say.claim, [candidate.number for candidate in kept])
            connection.change(statement, [token, self._database.dialect.seconds(lease), *numbers])
            early = self._give_back_early(connection, token, kept)
            messages = {row[0]: read_message(row) for row in connection.execute(self._say.messages, [token])}
            claimed = [
                Claimed(
                    number=candidate.number,
                    message=messages[candidate.message_id],
                    handler=None if handlers is None else candidate.target,
                    attempts=candidate.attempts + 1,
                    token=token,
                )
                for candidate in kept
                if candidate.number not in early and candidate.message_id in messages
            ]
            if len(claimed) + len(early) < len(kept):
                self._delete_orphans(connection, token, claimed)
            return claimed, bool(early)

    def renew(self, tokens: Collection[str], lease: float) -> int:
        """Keep what was claimed for `lease` more seconds."""
        if not tokens:
            return 0
        with self._begun(durable=True) as connection:
            statement, values = self._say.listed(self._say.renew, tokens)
            return connection.change(statement, [self._database.dialect.seconds(lease), *values])

    def settle(self, outcomes: Sequence[Outcome], /) -> int:
        """Write down what became of deliveries."""
        if not outcomes:
            return 0
        with self._begun(durable=True) as connection:
            return sum(self._settle_alike(connection, group) for group in _alike(outcomes))

    def next_due(self, handlers: Collection[str], /) -> float | None:
        """Return the seconds until something may be claimed."""
        with self._database.begun() as connection:
            found = connection.execute(self._say.next_due(len(handlers)), [*handlers] * 3)
        return None if found[0][0] is None else max(0.0, float(found[0][0]))

    def listener(self) -> Listener | None:
        """Open something that hears of commits in other processes."""
        return self._database.listener(self._channel)

    def release_connection(self) -> None:
        """Give up the connection of the calling thread."""
        self._database.release_connection()

    @property
    def _channel(self) -> str:
        return self._names[1].replace(".", "_")

    def _insert(self, connection: Connection, entries: Sequence[Entry]) -> None:
        rows = [delivery for entry in entries for delivery in self._deliveries_of(entry)]
        for part in _parts(entries, lambda entry: len(entry.message.body)):
            statement = self._say.insert_messages(len(part))
            connection.execute(statement, [value for entry in part for value in _message_row(entry.message)])
        for some in _parts(rows, lambda _: 0):
            connection.execute(self._say.insert_deliveries(len(some)), [value for row in some for value in row])
        notify = self._database.dialect.notify
        if self._notify and notify is not None and rows:
            connection.execute(notify, [self._channel])

    def _deliveries_of(self, entry: Entry) -> Iterator[tuple[Any, ...]]:
        message = entry.message
        targets = [(HANDLER, name) for name in entry.handlers]
        if entry.publish and self._relayed:
            targets.insert(0, (TOPIC, message.topic))
        for kind, target in targets:
            yield message.id, kind, target, lane_of(f"{kind} {target}", message.key), len(message.body)

    def _outside(self, entries: Sequence[Entry]) -> str:
        types = ", ".join(sorted({entry.message.type for entry in entries}))
        elsewhere = self._database.elsewhere()
        if elsewhere is not None:
            return (
                f"{types} is to be kept in an outbox in another database than the transaction that is open, "
                f"which is on {elsewhere}: give the outbox that database"
            )
        return (
            f"{types} is to be kept in the outbox, and no transaction is open: let a middleware open one around the "
            "handler that raises it, or give the outbox strict=False, and it is kept in one of its own"
        )

    def _candidates(
        self, connection: Connection, limit: int, handlers: Collection[str] | None, besides: Collection[str]
    ) -> list[_Candidate]:
        kind = TOPIC if handlers is None else HANDLER
        found: list[_Candidate] = []
        for status in (TRIED, PENDING):
            if len(found) < limit:
                statement = self._say.candidates(status, len(handlers or ()), len(besides))
                rows = connection.execute(statement, [kind, *(handlers or ()), *besides, limit - len(found)])
                found.extend(_Candidate(*row) for row in rows)
        return sorted(found)

    def _give_back_early(self, connection: Connection, token: str, kept: Sequence[_Candidate]) -> set[int]:
        """Give back those that have an earlier delivery of their lane ahead of them that is not claimed with them."""
        lanes = {candidate.lane for candidate in kept if candidate.lane is not None}
        if not lanes:
            return set()
        statement, values = self._say.listed(self._say.ahead, lanes)
        first: dict[int | None, int] = {}
        for number, lane in connection.execute(statement, [*values, kept[-1].number, token]):
            first[lane] = min(number, first.get(lane, number))
        early = {each.number for each in kept if each.number > first.get(each.lane, each.number)} if first else set()
        for status in (TRIED, PENDING):
            numbers = [
                each.number for each in kept if each.number in early and (each.attempts > 0) == (status == TRIED)
            ]
            if numbers:
                connection.change(*self._say.listed(self._say.unclaim(status), numbers))
        return early

    def _delete_orphans(self, connection: Connection, token: str, claimed: Sequence[Claimed]) -> None:
        """Delete deliveries whose message somebody has deleted."""
        held = [row[0] for row in connection.execute(self._say.held, [token])]
        orphans = set(held) - {each.number for each in claimed}
        logger.error("%d deliveries have no message any more and are deleted: somebody deleted it", len(orphans))
        connection.change(*self._say.listed(self._say.delete, orphans))

    def _settle_alike(self, connection: Connection, outcomes: Sequence[Outcome]) -> int:
        first, say = outcomes[0], self._say
        if first.verdict is Verdict.DONE:
            statement, values = say.done, []
        elif first.verdict is Verdict.DEAD:
            statement, values = say.dead_and_blocks if first.blocks else say.dead, [first.reason, first.error]
        else:
            # Given back at once as if nobody had had it, it is claimed in one go with what follows it.
            untouched = not first.counted and first.after == 0
            statement = say.again_untouched if untouched else say.again if first.counted else say.again_not_counted
            values = [self._database.dialect.seconds(first.after), first.reason, first.error]
        statement, numbers = say.listed(statement, sorted(outcome.claimed.number for outcome in outcomes))
        return connection.change(statement, [*values, first.claimed.token, *numbers])


def _bounded(candidates: Sequence[_Candidate], *, runs: bool) -> Iterator[_Candidate]:
    """Leave out what makes the batch too large, and, without `runs`, all but the first of each lane."""
    size = 0
    lanes: set[int] = set()
    for candidate in candidates:
        if candidate.lane is not None and not runs:
            if candidate.lane in lanes:
                continue
            lanes.add(candidate.lane)
        size += candidate.size
        if size > _CLAIMED_BYTES and size > candidate.size:
            return
        yield candidate


def _alike(outcomes: Sequence[Outcome]) -> Collection[Sequence[Outcome]]:
    """Group outcomes that one statement writes down."""
    groups: dict[Any, list[Outcome]] = {}
    for outcome in outcomes:
        likeness: Any = outcome.claimed.token
        if outcome.verdict is not _DONE:
            likeness = (likeness, outcome.verdict, outcome.after, outcome.counted, outcome.blocks, outcome.error)
        groups.setdefault(likeness, []).append(outcome)
    return groups.values()


def _parts(rows: Sequence[T], size: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """Take rows apart into as many as one statement inserts; sizes are bytes."""
    part: list[T] = []
    total = 0
    for row in rows:
        if part and (len(part) == _ROWS or total + size(row) > _INSERTED_BYTES):
            yield part
            part, total = [], 0
        part.append(row)
        total += size(row)
    if part:
        yield part


def _message_row(message: OutgoingMessage) -> tuple[Any, ...]:
    headers = orjson.dumps(dict(message.attributes)).decode()
    return message.id, message.topic, message.type, message.key, message.content_type, message.body, headers
