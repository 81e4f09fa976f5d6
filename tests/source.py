"""Where the code is that tests look at as text."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cqrs_sync"
MODULES = sorted(PACKAGE.rglob("*.py"))

#: Below these, optional dependencies are at home.
EDGES = {"integrations", "testing", "cli", "demo", "__main__"}


def name_of(module: Path) -> str:
    """Return the name it is imported by."""
    parts = module.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


CORE = [name_of(module) for module in MODULES if module.relative_to(PACKAGE).with_suffix("").parts[0] not in EDGES]
