"""Each storm of tests/storms/threads.py, for a second: nothing is lost, doubled, stuck or above the limit."""

import sys
from ast import literal_eval

import pytest

from tests.storms.threads import STORMS, run


@pytest.mark.parametrize("name", STORMS)
def test_a_storm_passes(name):
    """Whatever threads do at once, every event is handled once, and every pool is as it was."""
    done = run(name, seconds=1.0)

    assert 0 == done.returncode, done.stderr
    assert all(count > 0 for figure, count in literal_eval(done.stdout).items() if figure != "places_lost")


@pytest.mark.parametrize("name", ["mixed", "closings"])
def test_a_storm_of_switches_passes(name):
    """A storm of switches passes, also where threads are switched as often as the interpreter can."""
    done = run(name, seconds=1.0, interval=1e-6)

    assert 0 == done.returncode, done.stderr
    assert sys.getswitchinterval() > 1e-6
