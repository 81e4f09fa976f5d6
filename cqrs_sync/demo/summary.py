"""Does it add up? Every number is held against another one that was counted elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import attrs

from cqrs_sync.demo.playing import Outcome

_HANDLERS = ("JoinMeetingHandler", "SendWelcomeMail", "TextTheUser", "UpdateStatistics", "KeepAuditTrail")
#: Of what is missing, so many are named.
_SHOWN = 3


@attrs.frozen
class Check:
    """One line of the summary, and what is wrong with it where something is."""

    title: str
    sum: str
    wrong: Sequence[str] = ()


def add_up(outcome: Outcome) -> Sequence[Check]:
    """Hold the numbers of a run against each other; it adds up where nothing is wrong with any."""
    return [_commands(outcome), _handlers(outcome), _failures(outcome), _messages(outcome), _read_model(outcome)]


def _commands(outcome: Outcome) -> Check:
    planned, sent, answered = outcome.plan.events, outcome.snapshot.sent, outcome.snapshot.answered
    wrong = []
    if sent != planned:
        wrong.append(f"{planned - sent} of {planned} commands were not sent")
    if answered != sent:
        wrong.append(f"{sent - answered} commands have no response")
    return Check("commands", _equation((sent, "sent"), (answered, "responses")), wrong)


def _handlers(outcome: Outcome) -> Check:
    planned, handlers = outcome.plan.events, outcome.snapshot.handlers
    runs = {name: handlers[name].runs if name in handlers else 0 for name in _HANDLERS}
    wrong = [f"{name} ran {count} times, not {planned}" for name, count in runs.items() if count != planned]
    due = planned * len(_HANDLERS)
    return Check(
        "handlers", _equation((due, f"due ({len(_HANDLERS)} x {planned})"), (sum(runs.values()), "runs")), wrong
    )


def _failures(outcome: Outcome) -> Check:
    planned, failed = len(outcome.plan.switched_off), outcome.snapshot.failed
    wrong = _some("not planned", outcome.snapshot.problems)
    if failed != planned:
        wrong.append(f"TextTheUser failed {failed} times, not {planned}")
    return Check("failures", _equation((failed, "of TextTheUser"), (planned, "phones switched off")), wrong)


def _messages(outcome: Outcome) -> Check:
    snapshot, planned = outcome.snapshot, outcome.plan.events
    counts = {"raised": snapshot.raised, "confirmed": snapshot.confirmed, "consumed": snapshot.consumed}
    wrong = [f"{count}, not {planned}, were {name}" for name, count in counts.items() if count != planned]
    wrong += _some("lost", outcome.lost) + _some("doubled", outcome.doubled)
    equation = _equation(*((count, name) for name, count in counts.items()))
    return Check("messages", f"{equation}, {len(outcome.lost)} lost, {len(outcome.doubled)} doubled", wrong)


def _read_model(outcome: Outcome) -> Check:
    planned = outcome.plan.events
    joined, listed = (sum(map(len, meetings.values())) for meetings in (outcome.joined, outcome.listed))
    lost, doubled = list(_more(outcome.joined, outcome.listed)), list(_more(outcome.listed, outcome.joined))
    wrong = _some("lost", lost) + _some("doubled", doubled)
    if joined != planned:
        wrong.append(f"{joined}, not {planned}, joined")
    equation = _equation((joined, "joined"), (listed, "listed"))
    return Check("read model", f"{equation}, {len(lost)} lost, {len(doubled)} doubled", wrong)


def _equation(*terms: tuple[int, str]) -> str:
    """Write `2 sent = 2 responses`, or `2 sent != 1 responses`."""
    written = f"{terms[0][0]} {terms[0][1]}"
    for (before, _), (count, name) in pairwise(terms):
        written += f" {'=' if before == count else '!='} {count} {name}"
    return written


def _some(what: str, found: Sequence[str]) -> list[str]:
    """Name the first few, and say how many more there are."""
    more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return [f"{what}: {each}" for each in found[:_SHOWN]] + more


def _more(these: Mapping[str, Sequence[str]], those: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield what stands in the first more often than in the second."""
    for meeting, users in these.items():
        for user, times in (Counter(users) - Counter(those.get(meeting, ()))).items():
            yield from [f"{user} in {meeting}"] * times
