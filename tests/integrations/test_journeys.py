"""Few files are crossed by a message: what has to be read to follow it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.source import ROOT

#: What is left to do: the bars are those of `tests.journeys`, 8 and 35. Each number may only fall.
LEFT = {"a": 9, "bc": 43}


@pytest.mark.parametrize("journeys", [pytest.param("a"), pytest.param("bc", marks=pytest.mark.broker)])
def test_a_message_crosses_few_files(journeys, request):
    """A command to its handlers crosses few files, and so do an event to RabbitMQ and from there to its handler."""
    if journeys != "a":
        request.getfixturevalue("rabbitmq_url")
    done = subprocess.run(
        [sys.executable, "-m", "tests.journeys", journeys, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert 0 == done.returncode, done.stderr
    files = {file for count in json.loads(done.stdout).values() for file in count["files"]}
    assert len(files) <= LEFT[journeys], sorted(files)
