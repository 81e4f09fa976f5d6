"""What contracts about transactions want of a backend that has a table to write to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest


class WritingFixtures:
    """What a subclass may give that writes somewhere; without them nothing is written."""

    @pytest.fixture
    def write(self) -> Callable[[str], object]:
        """Write a text in the transaction that is open, and nowhere else; in no table where there is none."""
        return lambda _: None

    @pytest.fixture
    def written(self) -> Callable[[], list[str]] | None:
        """Read what was written and has committed, in order; None where nothing is written."""
        return None

    @pytest.fixture
    def careless(self) -> Mapping[str, Callable[[], object]]:
        """What code may do to the transaction that is open and raise nothing, such as catch an error; by a name."""
        return {}
