"""Why something failed, in words that can be kept, and what failures that are alike have in common."""

from __future__ import annotations

import re

from cqrs_sync.errors import EventsFailed

#: Characters of an error and of a reason that are kept.
LONGEST_ERROR, LONGEST_REASON = 2000, 255


def words_of(error: BaseException) -> str:
    """Say what an error is; of an EventsFailed, what each handler has raised."""
    if isinstance(error, EventsFailed) and error.failures:
        return "; ".join(f"{failure.handler}: {_words(failure.error)}" for failure in error.failures)
    return _words(error)


def reason_of(words: str) -> str:
    """Reduce an error to what it has in common with others: without numbers, ids and quotations."""
    line = printable(words.strip().partition("\n")[0])
    line = re.sub(r"'[^']*'|\"[^\"]*\"|\b[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}\b|\d+", "…", line)
    return line[:LONGEST_REASON]


def printable(text: str) -> str:
    """Return a text with nothing in it that a terminal or a database would trip over."""
    return "".join(each if each.isprintable() or each == "\n" else f"\\x{ord(each):02x}" for each in text)


def _words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 -- an error that cannot say what is wrong is no reason to lose its message
        return f"{type(error).__name__}, which cannot be shown"
