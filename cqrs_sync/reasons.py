"""Why something failed, in words that can be kept, and what failures that are alike have in common."""

from __future__ import annotations

import os
import re
import traceback

from cqrs_sync.errors import EventsFailed

#: Characters of an error and of a reason that are kept.
LONGEST_ERROR, LONGEST_REASON = 2000, 255
#: Where the files of this library are.
_OWN = f"{os.path.dirname(__file__)}{os.sep}"  # noqa: PTH120 -- as the names of files in tracebacks are written


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


def told_with_place(error: BaseException) -> str:
    """Say in one line what an error is, and where it was raised: its message alone seldom names what to mend."""
    line = str(error).strip().partition("\n")[0]
    frames = traceback.extract_tb(error.__traceback__)
    # Whoever gave this library something wrong has nothing to mend in it.
    frame = next((each for each in reversed(frames) if not each.filename.startswith(_OWN)), None)
    place = "" if frame is None else f" (line {frame.lineno} of {frame.filename})"
    # A SyntaxError has its place in the message; the frames are those of whoever wanted to import it.
    return f"{type(error).__name__}: {line}{'' if isinstance(error, SyntaxError) else place}"


def printable(text: str) -> str:
    """Return a text with nothing in it that a terminal or a database would trip over."""
    return "".join(each if each.isprintable() or each == "\n" else f"\\x{ord(each):02x}" for each in text)


def _words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 -- an error that cannot say what is wrong is no reason to lose its message
        return f"{type(error).__name__}, which cannot be shown"
