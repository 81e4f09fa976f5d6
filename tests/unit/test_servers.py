"""What happens to a test whose server is missing."""

from __future__ import annotations

import threading

import pytest

from tests.servers import answers, free_port, missing
from tests.waiting import eventually


@pytest.mark.parametrize("ci", ["", "false"])
def test_a_missing_server_skips_on_a_desk(monkeypatch, ci):
    """Without CI, the test is skipped and says how to get the server."""
    monkeypatch.setenv("CI", ci)
    with pytest.raises(pytest.skip.Exception, match="Redis is not there: start it"):
        missing("Redis", "start it")


@pytest.mark.parametrize("ci", ["true", "1"])
def test_a_missing_server_fails_in_ci(monkeypatch, ci):
    """In CI, no test is skipped for want of a server."""
    monkeypatch.setenv("CI", ci)
    with pytest.raises(pytest.fail.Exception, match="Redis is not there: start it"):
        missing("Redis", "start it")


def test_nobody_answers_on_a_free_port():
    """A port without a listener does not answer."""
    assert answers("127.0.0.1", free_port()) is False


def test_waiting_returns_what_came_true():
    """`eventually` returns as soon as another thread made its condition true."""
    seen: list[int] = []
    later = threading.Timer(0.05, seen.append, [7])
    later.start()

    assert eventually(lambda: seen) == [7]
    later.join(5)


def test_waiting_ends():
    """`eventually` gives up at its bound and shows what it saw last."""
    with pytest.raises(AssertionError, match=r"still returned \[\] after 0.05 s"):
        eventually(list, timeout=0.05)
