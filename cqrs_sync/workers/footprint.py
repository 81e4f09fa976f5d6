"""How much memory this process takes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cqrs_sync.errors import ConfigurationError

_STATM = Path("/proc/self/statm")


def resident() -> int:
    """
    Return the bytes of memory that this process occupies; where the system tells no more, the most it ever did.

    Raises ConfigurationError where the system tells nothing.
    """
    try:
        return int(_STATM.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return _peak()


def _peak() -> int:
    try:
        import resource  # noqa: PLC0415 -- not every system has it
    except ImportError as error:
        raise ConfigurationError("this system does not tell how much memory a process takes") from error
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
