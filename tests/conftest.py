"""What every test shares: the servers' fixtures and how Hypothesis searches."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from hypothesis import settings

from tests.servers import in_ci

_HERE = Path(__file__).parent

pytest_plugins = [
    f"tests.servers.{module.stem}"
    for module in sorted((_HERE / "servers").glob("[!_]*.py"))
    if "pytest.fixture" in module.read_text()
]

# An installed cqrs_sync brings its plugin along; a bare source tree has to name it.
if not entry_points(group="pytest11", name="cqrs_sync") and (_HERE.parent / "cqrs_sync/testing/plugin.py").exists():
    pytest_plugins.append("cqrs_sync.testing.plugin")

# The tests' own timeout bounds a run; Hypothesis' per-example deadline only punishes a busy machine.
settings.register_profile("desk", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
# For tests that run a second time, in another setting.
settings.register_profile("few", parent=settings.get_profile("ci"), max_examples=10)
settings.load_profile("ci" if in_ci() else "desk")
