"""The pictures of the documentation can be made anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_terminals_can_be_shown_anew(tmp_path):
    """Each command still does what its picture shows, and no picture loads anything."""
    command = [sys.executable, "-m", "tests.docs.screenshots", "--terminals", "--into", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    pictures = {file.stem: file.read_text("utf-8").replace("&#160;", " ") for file in tmp_path.glob("*.svg")}

    assert done.returncode == 0, done.stderr
    assert "It adds up" in pictures["demo"]
    assert "26 waiting, 11 dead" in pictures["outbox-status"]
    assert "billing: 15 waiting, 0 delayed, 6 dead" in pictures["consumer-lag"]
    assert "PermanentError: card … was declined" in pictures["consumer-dead"]
    assert [name for name, picture in pictures.items() if "url(http" in picture or "@import" in picture] == []
