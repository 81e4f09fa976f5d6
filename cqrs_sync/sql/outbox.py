"""The outbox in two tables: who claims what, in which order, and what becomes of it."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import orjson

from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import ConfigurationError, NotInTransaction
from cqrs_sync.outbox import (
    Backlog,
    Claimed,
    DeadDelivery,
    Entry,
    Listener,
    Outcome,
    Selection,
    TargetBacklog,
    Verdict,
    check_size,
    lane_of,
)
from cqrs_sync.sql.database import Connection, Database
from cqrs_sync.sql.statements import DEAD, HANDLER, PENDING, TOPIC, TRIED, Statements, marks
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


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}(\.[A-Za-z_][A-Za-z0-9_]{0,62})?")


class Tables:
    """The tables, by their names, with the schema where there is one."""

    def __init__(self, database: Database, messages: str, deliveries: str) -> None:
        check_table(messages)
        check_table(deliveries)
        self._database = database
        self._names = messages, deliveries
        self._known: Statements | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._names)})"

    @property
    def _say(self) -> Statements:
        # Made late: naming the dialect may need settings that are there only then.
        if self._known is None:
            self._known = Statements(self._database.dialect, *self._names)
        return self._known

    @contextmanager
    def _begun(self, *, durable: bool = False) -> Iterator[Connection]:
        """Open a transaction that claims, settles or deletes."""
        with self._database.begun(durable=durable) as connection:
            if not connection.is_nested:
                connection.execute(self._say.begin)
            yield connection


class Office(Tables):
    """The part of the store that operators use."""

    def backlog(self) -> Backlog:
        """Count what is not delivered yet."""
        deliveries, messages = self._say.deliveries_table, self._say.messages_table
        age = self._database.dialect.until.format(column="m.created_at")
        with self._database.begun() as connection:
            counts = connection.execute(
                f"SELECT kind, target, {', '.join(map(_count, (PENDING, TRIED, DEAD)))} "
                f"FROM {deliveries} GROUP BY kind, target ORDER BY kind, target"
            )
            reasons = connection.execute(
                f"SELECT reason, COUNT(*) FROM {deliveries} WHERE status = '{DEAD}' GROUP BY reason "
                "ORDER BY COUNT(*) DESC, reason"
            )
            oldest = connection.execute(
                f"SELECT MIN({age}) FROM {deliveries} d JOIN {messages} m ON m.id = d.message_id "
                f"WHERE d.status IN ('{PENDING}', '{TRIED}')"
            )
        return Backlog(
            targets=tuple(TargetBacklog(kind, target, *map(int, numbers)) for kind, target, *numbers in counts),
            dead_by_reason=tuple((reason, int(count)) for reason, count in reasons),
            oldest=None if oldest[0][0] is None else max(0.0, -float(oldest[0][0])),
        )

    def dead(self, selection: Selection, /, *, limit: int = 100) -> Sequence[DeadDelivery]:
        """Return dead deliveries, oldest first."""
        age = self._database.dialect.until.format(column="m.created_at")
        where, values = _where(selection, "d.")
        with self._database.begun() as connection:
            rows = connection.execute(
                f"SELECT d.id, d.kind, d.target, d.attempts, d.reason, d.last_error, d.lane, {age}, {_MESSAGE} "
                f"FROM {self._say.deliveries_table} d JOIN {self._say.messages_table} m ON m.id = d.message_id "
                f"WHERE {where} ORDER BY d.id LIMIT %s",
                [*values, limit],
            )
        return [
            DeadDelivery(
                number=number,
                message=read_message(message),
                handler=target if kind == HANDLER else None,
                attempts=attempts,
                reason=reason,
                error=error,
                age=max(0.0, -float(seconds)),
                blocks=lane is not None,
            )
            for number, kind, target, attempts, reason, error, lane, seconds, *message in rows
        ]

    def replay(self, selection: Selection, /, *, limit: int = 1000) -> int:
        """Let dead deliveries be claimed again, with their attempts forgotten."""
        return self._change_dead(selection, limit, self._say.replay())

    def discard(self, selection: Selection, /, *, limit: int = 1000) -> int:
        """Delete dead deliveries."""
        return self._change_dead(selection, limit, self._say.delete)

    def purge(self, older_than: float, /, *, limit: int = 1000) -> int:
        """Delete messages that were written more than `older_than` seconds ago and are delivered."""
        say, dialect = self._say, self._database.dialect
        with self._begun() as connection:
            if dialect.scan is not None:
                connection.execute(dialect.scan)
            # In no order: any of them will do, and sorting would have to look at all of them.
            found = connection.execute(
                f"SELECT m.id FROM {say.messages_table} m WHERE m.created_at < {dialect.before} AND NOT EXISTS "
                f"(SELECT 1 FROM {say.deliveries_table} d WHERE d.message_id = m.id) LIMIT %s {dialect.skip_locked}",
                [dialect.seconds(-older_than), limit],
            )
            ids = [row[0] for row in found]
            if not ids:
                return 0
            return connection.change(*say.listed(say.delete_messages, ids))

    def _change_dead(self, selection: Selection, limit: int, statement: str) -> int:
        table = self._say.deliveries_table
        where, values = _where(selection, "")
        with self._begun() as connection:
            # No subquery: MySQL does not change a table that it reads, and everybody can lock.
            found = connection.execute(
                f"SELECT id FROM {table} WHERE {where} ORDER BY id LIMIT %s {self._database.dialect.skip_locked}",
                [*values, limit],
            )
            numbers = [row[0] for row in found]
            if not numbers:
                return 0
            return connection.change(*self._say.listed(statement, numbers))


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


_MESSAGE = "m.id, m.topic, m.type, m.partition_key, m.content_type, m.payload, m.headers"


def _count(status: str) -> str:
    return f"SUM(CASE WHEN status = '{status}' THEN 1 ELSE 0 END)"


def read_message(row: Sequence[Any]) -> OutgoingMessage:
    """Make a message of its row."""
    identity, topic, kind, key, content_type, payload, headers = row
    return OutgoingMessage(
        id=identity,
        topic=topic,
        type=kind,
        body=bytes(payload),
        content_type=content_type,
        key=key,
        attributes=orjson.loads(headers),
    )


def _where(selection: Selection, prefix: str) -> tuple[str, list[Any]]:
    """Return the condition for a selection of dead deliveries, and its values."""
    conditions = [f"{prefix}status = '{DEAD}'"]
    values: list[Any] = []
    if selection.numbers is not None:
        conditions.append(f"{prefix}id IN ({marks(selection.numbers) or 'NULL'})")
        values.extend(selection.numbers)
    for column, value in (("reason", selection.reason), ("target", selection.target)):
        if value is not None:
            conditions.append(f"{prefix}{column} = %s")
            values.append(value)
    return " AND ".join(conditions), values


def check_table(name: str) -> None:
    """Raise ConfigurationError for what cannot stand in a statement as the name of a table."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{name!r} cannot be the name of a table: use letters, digits and _")
