"""The outbox in two tables, messages and deliveries: insert, claim, settle, the queries of operators, the SQL."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple, TypedDict, TypeVar

from cqrs_sync import json_codec
from cqrs_sync.broker import OutgoingMessage
from cqrs_sync.errors import NotInTransaction
from cqrs_sync.outbox import (
    Backlog,
    ClaimedDelivery,
    DeadLetter,
    DeadLetterSelection,
    Listener,
    OnNoTransaction,
    OutboxEntry,
    Outcome,
    OutcomeKind,
    PublishedBy,
    TargetBacklog,
    check_choice,
    check_size,
    lane_of,
)
from cqrs_sync.sql.database import Database, DatabaseConnection
from cqrs_sync.sql.dialects import Dialect, check_table
from cqrs_sync.transactions import Transactions

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

TOPIC, HANDLER = "topic", "handler"
PENDING, TRIED, DEAD = "pending", "tried", "dead"
#: The columns of a message, in the order in which rows are read and written.
_MESSAGE_COLUMNS = ("id", "topic", "type", "partition_key", "content_type", "payload", "headers")
_SELECTED_COLUMNS = ", ".join(f"m.{column}" for column in _MESSAGE_COLUMNS)
#: Rows of one INSERT.
_INSERTED_ROWS = 200
#: Bytes of the messages in it: MySQL takes statements of 16 MiB, and a quoted byte can take two.
_INSERTED_BYTES = 4 * 1024 * 1024
#: Bytes of the messages in one claim.
_CLAIMED_BYTES = 16 * 1024 * 1024


class _Candidate(NamedTuple):
    """A locked delivery that can be claimed if no earlier one of its lane is left."""

    number: int
    message_id: str
    target: str
    lane: int | None
    attempts: int
    size: int


class OutboxOptions(TypedDict, total=False):
    """The options of `SqlOutbox` that the outboxes of the integrations pass on."""

    max_bytes: int
    on_no_transaction: OnNoTransaction
    published_by: PublishedBy
    notify: bool


class SqlOutbox:
    """
    The outbox in a SQL database.

    - `messages` and `deliveries` are the names of its tables, with the schema if there is one.
    - `max_bytes`: larger bodies are refused before they are written.
    - `on_no_transaction`: what happens to a message that is added outside of a transaction. By default that is an
      error.
    - `published_by`: the relay publishes the messages, or change data capture reads them from the table: then the
      outbox writes deliveries for handlers only.
    - `notify`: notify relays in other processes of each commit, if the database can (PostgreSQL). Each such commit
      takes a lock that all of them share.

    Any number of processes can claim at a time, and none of them is special. A claim locks its candidates first.
    A second statement then looks at what is ahead of them, and so sees what others have claimed or written
    meanwhile. The claim gives back each candidate that has an earlier delivery of its key ahead of it.
    """

    def __init__(
        self,
        database: Database,
        *,
        messages: str = "cqrs_message",
        deliveries: str = "cqrs_delivery",
        max_bytes: int = 1_048_576,
        on_no_transaction: OnNoTransaction = OnNoTransaction.RAISE,
        published_by: PublishedBy = PublishedBy.RELAY,
        notify: bool = False,
    ) -> None:
        check_table(messages)
        check_table(deliveries)
        #: The transactions that `add` joins.
        self.transactions: Transactions = database.transactions
        self._database = database
        self._tables = messages, deliveries
        self._channel = deliveries.replace(".", "_")
        self._statements: OutboxStatements | None = None
        self._max_bytes = max_bytes
        self._opens_transactions = check_choice("on_no_transaction", on_no_transaction, OnNoTransaction.OPEN)
        self._is_relayed = check_choice("published_by", published_by, PublishedBy.RELAY)
        self._notify = notify

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._tables)})"

    # Writing

    def add(self, entries: Sequence[OutboxEntry], /, *, own_transaction: bool = False) -> None:
        """Keep messages and their deliveries in the transaction of the calling thread."""
        for entry in entries:
            check_size(entry.message, self._max_bytes)
        connection = self._database.current_connection()
        if connection is not None:
            self._insert(connection, entries)
        elif own_transaction or self._opens_transactions:
            with self._database.transaction() as own:
                self._insert(own, entries)
        else:
            raise NotInTransaction(self._why_not(entries))

    def _insert(self, connection: DatabaseConnection, entries: Sequence[OutboxEntry]) -> None:
        rows = [delivery for entry in entries for delivery in self._delivery_rows(entry)]
        for some_entries in _batches(entries, lambda entry: len(entry.message.body)):
            values = [value for entry in some_entries for value in _message_row(entry.message)]
            connection.execute(self._sql.insert_messages(len(some_entries)), values)
        for some_rows in _batches(rows, lambda _: 0):
            values = [value for row in some_rows for value in row]
            connection.execute(self._sql.insert_deliveries(len(some_rows)), values)
        notify = self._database.dialect.notify
        if self._notify and notify is not None and rows:
            connection.execute(notify, [self._channel])

    def _delivery_rows(self, entry: OutboxEntry) -> Iterator[tuple[Any, ...]]:
        message = entry.message
        targets = [(HANDLER, name) for name in entry.handlers]
        if entry.publish and self._is_relayed:
            targets.insert(0, (TOPIC, message.topic))
        for kind, target in targets:
            yield message.id, kind, target, lane_of(f"{kind} {target}", message.key), len(message.body)

    def _why_not(self, entries: Sequence[OutboxEntry]) -> str:
        types = ", ".join(sorted({entry.message.type for entry in entries}))
        other = self._database.other_database()
        if other is not None:
            return (
                f"{types} cannot be kept in the outbox: the open transaction is on another database, {other}. Give the "
                "outbox that database"
            )
        return (
            f"{types} cannot be kept in the outbox: no transaction is open. {self._database.how_to_open}, "
            "or give the outbox on_no_transaction=OnNoTransaction.OPEN"
            ", which keeps it in a transaction of its own"
        )

    # Delivering

    def claim(
        self, limit: int, lease: float, *, handlers: Collection[str] | None = None, exclude: Collection[str] = ()
    ) -> Sequence[ClaimedDelivery]:
        """Claim deliveries for `lease` seconds, oldest first."""
        if handlers is not None and not handlers:
            return ()
        claimed, gave_back = self._claim(limit, lease, handlers, exclude)
        if gave_back and not claimed:
            # Another process may have finished what was ahead, and looked for more while this claim held the locks.
            claimed, _ = self._claim(limit, lease, handlers, exclude)
        return claimed

    def _claim(
        self, limit: int, lease: float, handlers: Collection[str] | None, exclude: Collection[str]
    ) -> tuple[Sequence[ClaimedDelivery], bool]:
        """Claim once; tell whether the claim locked deliveries and gave them back."""
        token = uuid.uuid4().hex
        with self._transaction(durable=True) as connection:
            candidates = self._candidates(connection, limit, handlers, exclude)
            chosen = list(_within_limits(candidates, one_per_lane=handlers is not None))
            if not chosen:
                return (), False
            statement, numbers = self._sql.with_list(self._sql.claim, [candidate.number for candidate in chosen])
            connection.change(statement, [token, self._database.dialect.interval(lease), *numbers])
            early = self._give_back_early(connection, token, chosen)
            messages = {row[0]: _read_message(row) for row in connection.execute(self._sql.claimed_messages, [token])}
            claimed = [
                ClaimedDelivery(
                    number=candidate.number,
                    message=messages[candidate.message_id],
                    handler=None if handlers is None else candidate.target,
                    attempts=candidate.attempts + 1,
                    token=token,
                )
                for candidate in chosen
                if candidate.number not in early and candidate.message_id in messages
            ]
            if len(claimed) + len(early) < len(chosen):
                self._delete_orphans(connection, token, claimed)
            return claimed, bool(early)

    def _candidates(
        self, connection: DatabaseConnection, limit: int, handlers: Collection[str] | None, exclude: Collection[str]
    ) -> list[_Candidate]:
        kind = TOPIC if handlers is None else HANDLER
        found: list[_Candidate] = []
        for status in (TRIED, PENDING):
            if len(found) < limit:
                statement = self._sql.candidates(status, len(handlers or ()), len(exclude))
                rows = connection.execute(statement, [kind, *(handlers or ()), *exclude, limit - len(found)])
                found.extend(_Candidate(*row) for row in rows)
        return sorted(found)

    def _give_back_early(self, connection: DatabaseConnection, token: str, chosen: Sequence[_Candidate]) -> set[int]:
        """Give back each delivery that has an earlier one of its lane ahead of it, outside of this claim."""
        lanes = {candidate.lane for candidate in chosen if candidate.lane is not None}
        if not lanes:
            return set()
        statement, values = self._sql.with_list(self._sql.ahead, lanes)
        first: dict[int | None, int] = {}
        for number, lane in connection.execute(statement, [*values, chosen[-1].number, token]):
            first[lane] = min(number, first.get(lane, number))
        early = {each.number for each in chosen if each.number > first.get(each.lane, each.number)} if first else set()
        for status in (TRIED, PENDING):
            numbers = [
                each.number for each in chosen if each.number in early and (each.attempts > 0) == (status == TRIED)
            ]
            if numbers:
                connection.change(*self._sql.with_list(self._sql.unclaim(status), numbers))
        return early

    def _delete_orphans(self, connection: DatabaseConnection, token: str, claimed: Sequence[ClaimedDelivery]) -> None:
        """Delete deliveries without a message."""
        ids = [row[0] for row in connection.execute(self._sql.claimed_ids, [token])]
        orphans = set(ids) - {each.number for each in claimed}
        logger.error(
            "%d deliveries of the outbox have no message and are deleted: something other than the outbox has deleted "
            "rows from %s",
            len(orphans),
            self._tables[0],
        )
        connection.change(*self._sql.with_list(self._sql.delete, orphans))

    def renew(self, tokens: Collection[str], lease: float) -> int:
        """Extend claims to `lease` seconds from now."""
        if not tokens:
            return 0
        with self._transaction(durable=True) as connection:
            statement, values = self._sql.with_list(self._sql.renew, tokens)
            return connection.change(statement, [self._database.dialect.interval(lease), *values])

    def settle(self, outcomes: Sequence[Outcome], /) -> int:
        """Record the outcomes of deliveries."""
        if not outcomes:
            return 0
        with self._transaction(durable=True) as connection:
            return sum(self._settle_group(connection, group) for group in _group(outcomes))

    def _settle_group(self, connection: DatabaseConnection, outcomes: Sequence[Outcome]) -> int:
        first, sql = outcomes[0], self._sql
        if first.kind is OutcomeKind.DONE:
            statement, values = sql.done, []
        elif first.kind is OutcomeKind.DEAD:
            statement, values = sql.dead_and_blocks if first.blocks else sql.dead, [first.reason, first.error]
        else:
            # A delivery given back at once, uncounted, is pending again: one claim takes it with those that follow.
            give_back = not first.counted and first.after == 0
            statement = sql.give_back if give_back else sql.retry if first.counted else sql.retry_uncounted
            values = [self._database.dialect.interval(first.after), first.reason, first.error]
        statement, numbers = sql.with_list(statement, sorted(outcome.claimed.number for outcome in outcomes))
        return connection.change(statement, [*values, first.claimed.token, *numbers])

    def next_due(self, handlers: Collection[str], /) -> float | None:
        """Return the seconds until a delivery can be claimed."""
        with self._database.transaction() as connection:
            found = connection.execute(self._sql.next_due(len(handlers)), [*handlers] * 3)
        return None if found[0][0] is None else max(0.0, float(found[0][0]))

    def listener(self) -> Listener | None:
        """Open a listener for commits in other processes."""
        return self._database.listener(self._channel)

    def release_connection(self) -> None:
        """Release the calling thread's connection."""
        self._database.release_connection()

    # Operators

    def backlog(self) -> Backlog:
        """Count what is not delivered yet."""
        deliveries, messages = self._sql.deliveries_table, self._sql.messages_table
        age = self._database.dialect.seconds_until.format(column="m.created_at")
        with self._database.transaction() as connection:
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

    def dead_letters(self, selection: DeadLetterSelection, /, *, limit: int = 100) -> Sequence[DeadLetter]:
        """Return dead deliveries, oldest first."""
        age = self._database.dialect.seconds_until.format(column="m.created_at")
        where, values = _where(selection, "d.")
        with self._database.transaction() as connection:
            rows = connection.execute(
                "SELECT d.id, d.kind, d.target, d.attempts, d.reason, d.last_error, d.lane, "
                f"{age}, {_SELECTED_COLUMNS} FROM {self._sql.deliveries_table} d "
                f"JOIN {self._sql.messages_table} m ON m.id = d.message_id WHERE {where} ORDER BY d.id LIMIT %s",
                [*values, limit],
            )
        return [
            DeadLetter(
                number=number,
                message=_read_message(message),
                handler=target if kind == HANDLER else None,
                attempts=attempts,
                reason=reason,
                error=error,
                age=max(0.0, -float(seconds)),
                blocks=lane is not None,
            )
            for number, kind, target, attempts, reason, error, lane, seconds, *message in rows
        ]

    def replay(self, selection: DeadLetterSelection, /, *, limit: int = 1000) -> int:
        """Make dead deliveries claimable again, with no attempts counted."""
        return self._change_dead(selection, limit, self._sql.replay)

    def discard(self, selection: DeadLetterSelection, /, *, limit: int = 1000) -> int:
        """Delete dead deliveries."""
        return self._change_dead(selection, limit, self._sql.delete)

    def purge(self, older_than: float, /, *, limit: int = 1000) -> int:
        """Delete delivered messages that were written more than `older_than` seconds ago."""
        sql, dialect = self._sql, self._database.dialect
        with self._transaction() as connection:
            if dialect.allow_scans is not None:
                connection.execute(dialect.allow_scans)
            # Without an order: any of them will do, and a sort would read them all.
            found = connection.execute(
                f"SELECT m.id FROM {sql.messages_table} m WHERE m.created_at < {dialect.cutoff} AND NOT EXISTS "
                f"(SELECT 1 FROM {sql.deliveries_table} d WHERE d.message_id = m.id) LIMIT %s {dialect.skip_locked}",
                [dialect.interval(-older_than), limit],
            )
            ids = [row[0] for row in found]
            return connection.change(*sql.with_list(sql.delete_messages, ids)) if ids else 0

    def _change_dead(self, selection: DeadLetterSelection, limit: int, statement: str) -> int:
        where, values = _where(selection, "")
        with self._transaction() as connection:
            # Not a subquery: MySQL does not change a table that the same statement reads.
            found = connection.execute(
                f"SELECT id FROM {self._sql.deliveries_table} WHERE {where} ORDER BY id LIMIT %s "
                f"{self._database.dialect.skip_locked}",
                [*values, limit],
            )
            numbers = [row[0] for row in found]
            return connection.change(*self._sql.with_list(statement, numbers)) if numbers else 0

    @property
    def _sql(self) -> OutboxStatements:
        # Made at first use: finding the dialect may need settings that are not there at import.
        if self._statements is None:
            self._statements = OutboxStatements(self._database.dialect, *self._tables)
        return self._statements

    @contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[DatabaseConnection]:
        """Open a transaction that claims, settles or deletes."""
        with self._database.transaction(durable=durable) as connection:
            if not connection.is_nested:
                connection.execute(self._sql.begin)
            yield connection


class OutboxStatements:
    """
    The statements of the outbox. `{}` in a statement stands for a list of values: see `with_list`.

    A delivery is *pending* until its first claim, and *tried* after it. `due_at` is when it can be claimed: when the
    lease of its claim ends, or when its next attempt is due. A finished delivery is deleted. Deliveries with the
    same `lane`, the hash of target and key, are made in order.
    """

    def __init__(self, dialect: Dialect, messages: str, deliveries: str) -> None:
        self._dialect = dialect
        self.messages_table: str = dialect.quoted(messages)
        self.deliveries_table: str = dialect.quoted(deliveries)
        self.begin: str = dialect.begin.format(table=(table := self.deliveries_table))
        #: No earlier delivery of the same lane is dead, claimed, or waits for its next attempt.
        self._first_in_lane = f"{self._none_ahead(DEAD)} AND {self._none_ahead(TRIED, f'AND b.due_at > {dialect.now}')}"
        self._update = update = dialect.update.format(table=table)
        delete, now_plus = dialect.delete.format(table=table), dialect.now_plus
        self.delete: str = f"{delete} id {{}}"
        self.delete_messages: str = f"{dialect.delete.format(table=self.messages_table)} id {{}}"
        claimed = f"d.kind IN ('{TOPIC}', '{HANDLER}') AND d.status = '{TRIED}' AND d.token = %s"
        self.claim: str = (
            f"{update} status = '{TRIED}', attempts = attempts + 1, token = %s, due_at = {now_plus} WHERE id {{}}"
        )
        self.ahead: str = (
            f"SELECT id, lane FROM {table} WHERE lane {{}} AND status IN ('{PENDING}', '{TRIED}', '{DEAD}') "
            "AND id < %s AND (token IS NULL OR token <> %s)"
        )
        self.claimed_ids: str = f"SELECT d.id FROM {table} d WHERE {claimed}"
        self.claimed_messages: str = (
            f"SELECT {_SELECTED_COLUMNS} FROM {table} d JOIN {self.messages_table} m ON m.id = d.message_id "
            f"WHERE {claimed}"
        )
        self.renew: str = (
            f"UPDATE {table} SET due_at = {now_plus} "
            f"WHERE kind IN ('{TOPIC}', '{HANDLER}') AND status = '{TRIED}' AND token {{}}"
        )
        mine = "token = %s AND id {}"
        self.done: str = f"{delete} {mine}"
        dead = f"{update} status = '{DEAD}', token = NULL, reason = %s, last_error = %s"
        self.dead_and_blocks: str = f"{dead} WHERE {mine}"
        self.dead: str = f"{dead}, lane = NULL WHERE {mine}"
        again = f"due_at = {now_plus}, token = NULL, reason = %s, last_error = %s WHERE {mine}"
        self.retry: str = f"{update} {again}"
        self.retry_uncounted: str = f"{update} attempts = attempts - 1, {again}"
        # MySQL assigns from left to right, so `status` comes before `attempts` changes.
        self.give_back: str = (
            f"{update} status = CASE WHEN attempts > 1 THEN '{TRIED}' ELSE '{PENDING}' END, "
            f"attempts = attempts - 1, {again}"
        )
        self.replay: str = f"{update} status = '{PENDING}', attempts = 0, due_at = {dialect.now} WHERE id {{}}"

    def unclaim(self, status: str) -> str:
        """Undo a claim in the transaction that made it."""
        now = self._dialect.now
        return (
            f"{self._update} status = '{status}', attempts = attempts - 1, token = NULL, due_at = {now} WHERE id {{}}"
        )

    def with_list(self, statement: str, values: Collection[Any]) -> tuple[str, list[Any]]:
        """Return a statement with its `{}` filled in, and the parameters for it."""
        if self._dialect.has_arrays:
            # One parameter for any number of values: the driver need not process each of them.
            return statement.format("= ANY(%s)"), [list(values)]
        return statement.format(f"IN ({_placeholders(values)})"), list(values)

    def next_due(self, handlers: int) -> str:
        """Select the seconds until a delivery can be claimed. Pass the names of the handlers three times."""
        table, now = self.deliveries_table, self._dialect.now
        seconds = self._dialect.seconds_until.format(column="d.due_at")
        names = _placeholders(range(handlers)) or "NULL"
        mine = f"(d.kind = '{TOPIC}' OR (d.kind = '{HANDLER}' AND d.target IN ({names})))"

        def one(which: str) -> str:
            return f"SELECT 0.0 AS seconds FROM {table} d WHERE {mine} AND {which} AND {self._first_in_lane} LIMIT 1"

        tried = f"d.status = '{TRIED}' AND d.due_at"
        return (
            f"SELECT MIN(due.seconds) FROM (SELECT * FROM ({one(f'd.status = {PENDING!r}')}) fresh "
            f"UNION ALL SELECT * FROM ({one(f'{tried} <= {now}')}) ready "
            f"UNION ALL SELECT MIN({seconds}) AS seconds FROM {table} d WHERE {mine} AND {tried} > {now}) due"
        )

    def candidates(self, status: str, targets: int, excluded: int) -> str:
        """Select and lock claimable deliveries of one kind, for `targets` targets, without `excluded` ones."""
        filters = f"AND d.target IN ({_placeholders(range(targets))}) " if targets else ""
        filters += f"AND d.target NOT IN ({_placeholders(range(excluded))}) " if excluded else ""
        due = ""
        if status == TRIED:
            # An earlier delivery that is still pending has committed late, and goes first. Without this condition the
            # deliveries that wait for it would be selected each time and fill the list of candidates.
            due = f"AND d.due_at <= {self._dialect.now} AND {self._none_ahead(PENDING)} "
        return (
            f"SELECT d.id, d.message_id, d.target, d.lane, d.attempts, d.size FROM {self.deliveries_table} d "
            f"WHERE d.kind = %s AND d.status = '{status}' {filters}{due}AND {self._first_in_lane} "
            f"ORDER BY d.id LIMIT %s {self._dialect.skip_locked}"
        )

    def _none_ahead(self, status: str, more: str = "") -> str:
        """
        Say that no earlier delivery of the same lane has this status.

        One status at a time: an index finds such a delivery at once. For several statuses it would have to read
        all deliveries that wait behind it.
        """
        return (
            f"NOT EXISTS (SELECT 1 FROM {self.deliveries_table} b "
            f"WHERE b.lane = d.lane AND b.id < d.id AND b.status = '{status}' {more})"
        )

    def insert_messages(self, rows: int) -> str:
        """Insert messages."""
        row = f"(%s, %s, %s, %s, %s, %s, %s, {self._dialect.now})"
        columns = ", ".join(_MESSAGE_COLUMNS)
        return f"INSERT INTO {self.messages_table} ({columns}, created_at) VALUES {', '.join([row] * rows)}"

    def insert_deliveries(self, rows: int) -> str:
        """Insert pending deliveries."""
        row = f"(%s, %s, %s, %s, %s, '{PENDING}', 0, {self._dialect.now}, '', '')"
        return (
            f"INSERT INTO {self.deliveries_table} "
            "(message_id, kind, target, lane, size, status, attempts, due_at, reason, last_error) "
            f"VALUES {', '.join([row] * rows)}"
        )


def _within_limits(candidates: Sequence[_Candidate], *, one_per_lane: bool) -> Iterator[_Candidate]:
    """Yield candidates until the batch has its size; of each lane all, or the first one only."""
    size = 0
    lanes: set[int] = set()
    for candidate in candidates:
        if candidate.lane is not None and one_per_lane:
            if candidate.lane in lanes:
                continue
            lanes.add(candidate.lane)
        size += candidate.size
        if size > _CLAIMED_BYTES and size > candidate.size:
            return
        yield candidate


def _group(outcomes: Sequence[Outcome]) -> Collection[Sequence[Outcome]]:
    """Group the outcomes that one statement can record."""
    groups: dict[Any, list[Outcome]] = {}
    for outcome in outcomes:
        group: Any = outcome.claimed.token
        if outcome.kind is not OutcomeKind.DONE:
            group = (group, outcome.kind, outcome.after, outcome.counted, outcome.blocks, outcome.error)
        groups.setdefault(group, []).append(outcome)
    return groups.values()


def _batches(rows: Sequence[T], size: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """Split rows into batches that one statement can insert; sizes are bytes."""
    batch: list[T] = []
    total = 0
    for row in rows:
        if batch and (len(batch) == _INSERTED_ROWS or total + size(row) > _INSERTED_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(row)
        total += size(row)
    if batch:
        yield batch


def _message_row(message: OutgoingMessage) -> tuple[Any, ...]:
    headers = json_codec.dump(dict(message.attributes)).decode()
    return message.id, message.topic, message.type, message.key, message.content_type, message.body, headers


def _read_message(row: Sequence[Any]) -> OutgoingMessage:
    identity, topic, kind, key, content_type, payload, headers = row
    return OutgoingMessage(
        id=identity,
        topic=topic,
        type=kind,
        body=bytes(payload),
        content_type=content_type,
        key=key,
        attributes=json_codec.load(headers),
    )


def _count(status: str) -> str:
    return f"SUM(CASE WHEN status = '{status}' THEN 1 ELSE 0 END)"


def _where(selection: DeadLetterSelection, prefix: str) -> tuple[str, list[Any]]:
    """Return the condition for a selection of dead deliveries, and its values."""
    conditions = [f"{prefix}status = '{DEAD}'"]
    values: list[Any] = []
    if selection.numbers is not None:
        conditions.append(f"{prefix}id IN ({_placeholders(selection.numbers) or 'NULL'})")
        values.extend(selection.numbers)
    for column, value in (("reason", selection.reason), ("target", selection.target)):
        if value is not None:
            conditions.append(f"{prefix}{column} = %s")
            values.append(value)
    return " AND ".join(conditions), values


def _placeholders(values: Sized) -> str:
    """Return a placeholder for each value."""
    return ", ".join(["%s"] * len(values))
