"""Promises about what is shipped, and about the repository it is built from."""

from __future__ import annotations

import configparser
import fnmatch
import re
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.release import NEEDED, build
from tests.source import MODULES, PACKAGE, ROOT

TOP_LEVEL = {
    "cqrs_sync",
    "docs",
    "tests",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "pyproject.toml",
    "setup.cfg",
}


@pytest.fixture(scope="module")
def builds(tmp_path_factory) -> list[tuple[Path, Path]]:
    """Build sdist and wheel twice, from copies of other names and times, without a network."""
    builds = []
    for name in ("first", "second"):
        source = tmp_path_factory.mktemp(name)
        shutil.copytree(
            PACKAGE, source / "cqrs_sync", ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copyfile
        )
        for needed in NEEDED:
            shutil.copyfile(ROOT / needed, source / needed)
        builds.append(build(source, source / "dist", 1_700_000_000, "--no-isolation"))
    return builds


@pytest.fixture(scope="module")
def wheel(builds) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(builds[0][1]) as opened:
        yield opened


def test_two_builds_are_the_same_byte_for_byte(builds):
    first, second = ([path.read_bytes() for path in build] for build in builds)

    assert first == second


def test_the_wheel_is_small(builds):
    """It stays below 400 kB, of 1024 bytes."""
    assert 400 * 1024 >= builds[0][1].stat().st_size


def test_the_sdist_holds_what_the_wheel_is_built_from(builds):
    """Tests and documentation come with the tag."""
    with tarfile.open(builds[0][0]) as opened:
        files = {name.partition("/")[2] for name in opened.getnames()}
    package = {module.relative_to(ROOT).as_posix() for module in MODULES} | {"cqrs_sync/py.typed"}

    assert package | {*NEEDED, "PKG-INFO"} == {name for name in files if not name.startswith("cqrs_sync.egg-info/")}


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    """Every module and the mark that it is typed are in the wheel; tests and documents are not."""
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {module.relative_to(ROOT).as_posix() for module in MODULES} | {"cqrs_sync/py.typed"}

    assert expected == shipped


def test_the_wheel_says_what_it_is(wheel):
    """Licence, description, commands and the pytest plugin are in the wheel's metadata."""
    info = {name.split("/", 1)[1]: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}

    assert "Requires-Python: >=3.11" in info["METADATA"]
    assert "License-Expression: MIT" in info["METADATA"]
    assert "A command reaches its handler" in info["METADATA"]
    assert any(name.endswith("LICENSE") for name in info)
    assert "cqrs-sync = cqrs_sync.__main__:main" in info["entry_points.txt"]
    assert "cqrs_sync = cqrs_sync.testing.plugin" in info["entry_points.txt"]


def test_the_changelog_knows_this_version():
    """The newest entry of the changelog is about the version in setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    entries = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert setup["metadata"]["version"] == entries[0]


def test_ci_runs_what_the_readme_says():
    """The README has two commands; the second one, which tests, is what CI runs."""
    shown = re.findall(r"^pip install .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    run = (ROOT / ".ci/run").read_text().replace("--quiet ", "")

    assert [command for command in shown if "python -m tests" in command and command in run] == shown[1:]


def test_the_top_level_stays_as_it_is():
    """Beside the package, its tests, its documents and dotfiles nothing lies around."""
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
    there = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    stray = {name for name in there - TOP_LEVEL if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)}

    assert set() == stray
