"""How a snapshot of the demo looks, as wide and as high as there is room."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from rich.console import ConsoleDimensions, Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from cqrs_sync.demo.ledger import HandlerRuns, Snapshot
from cqrs_sync.demo.playing import Plan

#: The handlers in the order of the story.
HANDLERS = (
    "JoinMeetingHandler",
    "SendWelcomeMail",
    "TextTheUser",
    "UpdateStatistics",
    "KeepAuditTrail",
    "AddToDirectory",
)
#: No line is longer, however wide the terminal.
_WIDEST = 110
#: Fewer columns than these have no room for what a handler's row and a message's row say in the end.
_ROOM_FOR_MORE = 48
_ROOM_FOR_THREADS = 72
#: Lines of a picture without the messages, without and with blank lines, and where there is room for those.
_DENSE, _AIRY = 14, 19
_ROOMY = 20
#: Columns of one step of a message, so that rows do not jump.
_STEP = 17
_NUMBERED = re.compile(r"(.*?)[_-]?(\d+)\Z")


def live_picture(snapshot: Snapshot, plan: Plan, address: str, size: ConsoleDimensions) -> RenderableType:
    """Draw how it stands now."""
    airy = size.height >= _ROOMY
    blank = [Text()] if airy else []
    room = min(size.height - (_AIRY if airy else _DENSE), 2 * plan.senders)
    right = f"{snapshot.elapsed:.1f} s" if snapshot.sent else "waiting for the broker"
    parts: list[RenderableType] = [*blank, heading(plan, address, right), *blank, bars(snapshot, plan), *blank]
    parts += [handlers(snapshot, width_in(size.width))]
    if room > 0 and snapshot.journeys:
        parts += [*blank, messages(snapshot, room, width_in(size.width))]
    if snapshot.last_failure is not None:
        line = Text(
            f"TextTheUser fails on purpose: {snapshot.last_failure}", "yellow", no_wrap=True, overflow="ellipsis"
        )
        parts += [*blank, line]
    return framed(parts, size.width)


def framed(parts: Iterable[RenderableType], width: int) -> RenderableType:
    """Draw the parts below each other, a column from the edge and no wider than is good to read."""
    return Padding(Group(*parts), (0, width - width_in(width) - 1, 0, 1))


def width_in(width: int) -> int:
    """Return the columns inside a frame."""
    return min(width - 2, _WIDEST)


def heading(plan: Plan, address: str, right: str) -> RenderableType:
    """Draw what is played, and where."""
    grid = Table.grid(
        Column(ratio=1, no_wrap=True, overflow="ellipsis"), Column(justify="right"), expand=True, padding=(0, 1)
    )
    pool = f"a pool of {plan.pool}" if plan.pool else "no pool"
    grid.add_row(
        Text.assemble(("demo", "bold"), f"  {address}", (f"  {plan.senders} senders, {pool}", "dim")),
        Text(right, "dim"),
    )
    return grid


def bars(snapshot: Snapshot, plan: Plan) -> RenderableType:
    """Draw how far commands and messages are: each bar follows the one above it."""
    grid = Table.grid(
        Column(no_wrap=True),
        Column(ratio=1),
        Column(justify="right", no_wrap=True, min_width=2 * len(str(plan.events)) + 1),
        Column(justify="right", no_wrap=True, min_width=7),
        expand=True,
        padding=(0, 1),
    )
    answered, consumed = snapshot.answered, snapshot.consumed
    for label, count in (("answered", answered), ("confirmed", snapshot.confirmed), ("consumed", consumed)):
        bar = ProgressBar(total=plan.events, completed=count, complete_style="cyan", finished_style="green")
        grid.add_row(label, bar, f"{count}/{plan.events}", Text(rate(count, snapshot.elapsed), "dim"))
    return grid


def handlers(snapshot: Snapshot, width: int) -> RenderableType:
    """Draw what each handler has done, and in which threads."""
    columns = [Column("handler", no_wrap=True), Column("runs", justify="right", min_width=5)]
    if width >= _ROOM_FOR_MORE:
        columns.append(Column("failed", justify="right", style="yellow"))
    columns.append(Column("p50", justify="right", no_wrap=True, min_width=7))
    if width >= _ROOM_FOR_MORE:
        columns.append(Column("max", justify="right", no_wrap=True, min_width=8))
    if width >= _ROOM_FOR_THREADS:
        columns.append(Column("threads", no_wrap=True, overflow="ellipsis", style="dim"))
    table = Table(*columns, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in HANDLERS:
        cells = _cells(snapshot.handlers.get(name, HandlerRuns(name)))
        table.add_row(*(cells[str(column.header)] for column in columns))
    return table


def messages(snapshot: Snapshot, room: int, width: int) -> RenderableType:
    """Draw the way of the last messages through the broker."""
    grid = Table.grid(padding=(0, 3, 0, 0))
    grid.add_row(Text("MeetingJoined", "dim"), Text(f"{snapshot.raised - snapshot.consumed} in flight", "dim"))
    for journey in snapshot.journeys[-room:]:
        event = json.loads(journey.body)
        after = [("consumed", journey.consumed)]
        what = event["user_id"]
        if width >= _ROOM_FOR_MORE:
            after.insert(0, ("confirmed", journey.confirmed))
            what += f" joined {event['meeting_id']}"
        grid.add_row(what, *(_after(step, journey.raised, moment) for step, moment in after))
    return grid


def rate(count: int, seconds: float) -> str:
    """Write how many there were a second."""
    return f"{count / seconds:.0f}/s" if seconds > 0.2 else ""


def threads(names: Iterable[str]) -> str:
    """Write the names of threads short: `pool 0-7, sender 0-3`."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        numbered = _NUMBERED.match(name)
        numbers.setdefault(numbered[1] if numbered else name, []).extend([int(numbered[2])] if numbered else [])
    return ", ".join(f"{name} {_ranges(sorted(found))}".rstrip() for name, found in sorted(numbers.items()))


def duration(seconds: float) -> str:
    """Write a time as people read it."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _cells(runs: HandlerRuns) -> dict[str, str]:
    return {
        "handler": runs.name,
        "runs": str(runs.runs),
        "failed": str(runs.failed or ""),
        "p50": duration(runs.median) if runs.runs else "",
        "max": duration(runs.longest) if runs.runs else "",
        "threads": threads(runs.threads),
    }


def _after(what: str, begin: float, end: float | None) -> Text:
    if end is None:
        return Text(f"{'...':<{_STEP}}", "dim")
    return Text.assemble((f"{what} ", "green"), f"{duration(end - begin):<{_STEP - len(what)}}")


def _ranges(numbers: Sequence[int]) -> str:
    """Write 0, 1, 2, 5 as 0-2,5."""
    written: list[str] = []
    begin = None
    for index, number in enumerate(numbers):
        begin = number if begin is None else begin
        if numbers[index + 1 : index + 2] != [number + 1]:
            written.append(str(number) if begin == number else f"{begin}-{number}")
            begin = None
    return ",".join(written)
