"""The map of the package shows what is there."""

from __future__ import annotations

import re

from tests.source import PACKAGE, ROOT


def test_the_map_names_each_root_module_and_folder_once():
    """`docs/architecture.md` lists every module and folder at the root of the package, and nothing else."""
    page = (ROOT / "docs/architecture.md").read_text()
    listed = re.findall(r"^[├└]── (\S+)", page, re.MULTILINE)
    there = [
        f"{entry.name}/" if entry.is_dir() else entry.name
        for entry in PACKAGE.iterdir()
        if entry.name not in {"__init__.py", "__pycache__", "py.typed"}
    ]

    assert sorted(there) == sorted(listed)
