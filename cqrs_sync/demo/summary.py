"""Does it add up? Every number is held against another one that was counted elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import attrs

from cqrs_sync.demo.playing import Outcome

#: Of what is missing, so many are named.
_SHOWN = 3


@attrs.frozen
class Check:
    """One line of the summary, and what is wrong with it where something is."""

    title: str
    sum: str
    missing: Sequence[str] = ()


def add_up(outcome: Outcome) -> Sequence[Check]:
    """Hold the numbers of a run against each other; all of it adds up where nothing is missing anywhere."""
    return [
        _commands(outcome),
        _handlers(outcome),
        _failures(outcome),
        _messages(outcome),
        _read_model(outcome),
    ]


def _commands(outcome: Outcome) -> Check:
    planned, sent, answered = outcome.plan.events, outcome.snapshot.sent, outcome.snapshot.answered
    missing = []
    if sent != planned:
        missing.append(f"{planned - sent} of {planned} commands were not sent")
    if answered != sent:
        missing.append(f"{sent - answered} commands have no response")
    return Check("commands", f"{sent} sent = {answered} responses", missing)


def _handlers(outcome: Outcome) -> Check:
    planned, handlers = outcome.plan.events, outcome.snapshot.handlers
    names = ["JoinMeetingHandler", "SendWelcomeMail", "TextTheUser", "UpdateStatistics", "KeepAuditTrail"]
    runs = {name: handlers[name].runs if name in handlers else 0 for name in names}
    missing = [f"{name} ran {count} times, not {planned}" for name, count in runs.items() if count != planned]
    return Check("handlers", f"{len(names)} ran {planned} times each = {sum(runs.values())} runs", missing)


def _failures(outcome: Outcome) -> Check:
    planned, failed = len(outcome.plan.switched_off), outcome.snapshot.failed
    missing = _some("not planned", outcome.snapshot.problems)
    if failed != planned:
        missing.append(f"TextTheUser failed {failed} times, not {planned}")
    return Check("failures", f"{failed} of TextTheUser = {planned} phones switched off", missing)


def _messages(outcome: Outcome) -> Check:
    snapshot, planned = outcome.snapshot, outcome.plan.events
    counts = {"raised": snapshot.raised, "confirmed": snapshot.confirmed, "consumed": snapshot.consumed}
    missing = [f"{count}, not {planned}, were {name}" for name, count in counts.items() if count != planned]
    missing += _some("lost", outcome.lost) + _some("doubled", outcome.doubled)
    sums = " = ".join(f"{count} {name}" for name, count in counts.items())
    return Check("messages", f"{sums}, {len(outcome.lost)} lost, {len(outcome.doubled)} doubled", missing)


def _read_model(outcome: Outcome) -> Check:
    joined, listed = (sum(map(len, meetings.values())) for meetings in (outcome.joined, outcome.listed))
    lost, doubled = list(_more(outcome.joined, outcome.listed)), list(_more(outcome.listed, outcome.joined))
    missing = _some("lost", lost) + _some("doubled", doubled)
    if joined != outcome.plan.events:
        missing.append(f"{joined}, not {outcome.plan.events}, joined")
    return Check("read model", f"{joined} joined = {listed} listed, {len(lost)} lost, {len(doubled)} doubled", missing)


def _some(what: str, found: Sequence[str]) -> list[str]:
    """Name the first few, and say how many more there are."""
    more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return [f"{what}: {each}" for each in found[:_SHOWN]] + more


def _more(these: Mapping[str, Sequence[str]], those: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield what stands in the first more often than in the second."""
    for meeting, users in these.items():
        for user, times in (Counter(users) - Counter(those.get(meeting, ()))).items():
            yield from [f"{user} in {meeting}"] * times
