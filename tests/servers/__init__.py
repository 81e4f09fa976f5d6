"""
Real servers for tests: one module each, with the fixtures that find or start it.

A server is taken from its environment variable, else from its default port,
else started from an installed binary. Where none of these is possible, tests
are skipped and say how to get it; under `CI=true` they fail.
"""

from __future__ import annotations

import os
import socket
from typing import NoReturn

import pytest


def missing(server: str, how: str) -> NoReturn:
    """End the test that needs `server`: skipped, and failed in CI; `how` tells the way to get it."""
    reason = f"{server} is not there: {how}"
    if in_ci():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def in_ci() -> bool:
    """Whether this run has to find every server."""
    return os.environ.get("CI", "").lower() in {"1", "true"}


def answers(host: str, port: int, timeout: float = 1.0) -> bool:
    """Whether something accepts TCP connections there."""
    try:
        with socket.create_connection((host, port), timeout):
            return True
    except OSError:
        return False


def free_port() -> int:
    """A loopback port that is free at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
