"""What tests of several clients share."""

from __future__ import annotations

import pytest

from tests.brokers.scripted_kafka import ScriptedKafka


@pytest.fixture
def scripted():
    """A broker that knows one topic, and does what it is told."""
    scripted = ScriptedKafka("known")
    yield scripted
    scripted.close()
