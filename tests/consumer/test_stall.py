"""Promises of the clock by which a consumer is told to be stuck."""

from __future__ import annotations

import threading
import time

import pytest

from cqrs_sync.consumer import StallDetector


class Looker:
    """Looks at what stands still, by a clock that it moves."""

    def __init__(self, monkeypatch):
        self.now, self.patience = 1000.0, 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def __call__(self, patience):
        """Begin with a first look."""
        self.patience, self.detector = patience, StallDetector()
        self.look(0.2)
        return self

    def look(self, *pauses, seen="it"):
        """Look after each of these pauses; what the last look told."""
        for pause in pauses:
            self.now += pause
            told = self.detector.seconds_unchanged(seen, self.patience)
        return told

    def found_out(self, pause):
        """Look after this pause again and again; the seconds until patience is at an end."""
        begun = self.now
        while self.look(pause) <= self.patience:
            assert self.now - begun < 100 * self.patience, "it is never found out"
        return self.now - begun


@pytest.fixture
def looker(monkeypatch):
    return Looker(monkeypatch)


def test_what_stands_still_is_found_out_when_patience_ends(looker):
    """
    Whoever looks five times a second, or ten times in its patience.
    """
    assert 3.0 < looker(3.0).found_out(0.2) < 3.5
    assert 300 < looker(300.0).found_out(29.0) < 330


def test_what_changes_does_not_stand_still(looker):
    """
    It begins with the look that has seen it.
    """
    looking = looker(3.0)

    assert 2.0 == pytest.approx(looking.look(*[0.2] * 10))
    assert 0.0 == looking.look(0.2, seen="another")
    assert 0.2 == pytest.approx(looking.look(0.2, seen="another"))


@pytest.mark.parametrize("frozen", [1.5, 6.0, 86_400.0])
def test_a_process_that_was_frozen_has_all_its_patience_again(looker, frozen):
    """
    Whatever it had waited for before; and no more than that.
    """
    looking = looker(3.0)
    looking.look(*[0.2] * 14)

    assert 0.0 == looking.look(frozen)
    assert 3.0 < looking.found_out(0.2) < 3.5


def test_a_process_that_is_frozen_again_and_again_is_not_stuck(looker):
    """
    Of each further time in which nothing could move a second counts, or a tenth of its patience.
    """
    looking = looker(300.0)

    assert looking.look(3600.0, 60.0, 3600.0, 60.0, 3600.0) <= 300


@pytest.mark.parametrize("hog", [1.0, 2.5, 4.0, 60.0])
def test_what_keeps_others_from_looking_is_found_out_in_the_end(looker, hog):
    """
    A handler that does not let go of the interpreter for seconds, again and again.
    """
    assert looker(3.0).found_out(hog) <= 5 * max(hog, 1.0)


def test_looks_of_many_threads_count_once():
    """
    A file, a port and the process itself ask for health: time does not pass faster for that.
    """
    detector, begun = StallDetector(), time.monotonic()
    detector.seconds_unchanged("it", 60.0)
    together = threading.Barrier(8)

    def look():
        together.wait(10)
        for _ in range(2000):
            detector.seconds_unchanged("it", 60.0)

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert detector.seconds_unchanged("it", 60.0) <= time.monotonic() - begun
