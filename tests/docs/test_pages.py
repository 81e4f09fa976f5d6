"""
The documentation cannot lie: what it shows is run.

The Python blocks of a page run from top to bottom, as one module per page and in
an empty directory. A block that must not run says why, on the line above it:

    <!-- not run: it needs a million messages -->

Of the shell blocks, the commands of this library run. Those that name a broker's
URL are left to the tests of the brokers.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import attrs
import pytest

from cqrs_sync.cli.consumer import run

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(
    r"(?:^[ ]*<!-- not run: (?P<reason>[^\n]*) -->\n)?"
    r"^(?P<indent>[ ]*)(?P<fence>```+)[ ]*(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)(?P=fence)[ ]*$",
    re.DOTALL | re.MULTILINE,
)
_COMMAND = re.compile(r"(?:^|&&)\s*(?:\$ )?(?P<command>(?:python -m cqrs_sync|cqrs-sync)\b[^&|>#\n]*)", re.MULTILINE)
_APPLICATION = re.compile(r"--app (\w+):")
_LINK = re.compile(r"\]\((?!\w+:|#)(?P<target>[^)#\s]+)")
_ANCHOR = re.compile(r"\]\((?P<target>(?!\w+:)[^)#\s]*)#(?P<anchor>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_PYTHON = {"python", "python3", "py"}
_SHELL = {"bash", "console", "sh", "shell"}


@attrs.frozen
class Block:
    """A fenced block of a page."""

    page: Path
    #: Of its first line, as an editor counts.
    line: int
    language: str
    body: str
    #: Why it must not run, None where it has to.
    reason: str | None

    def run_in(self, module: types.ModuleType) -> None:
        """Run it; a traceback shows the page's own lines."""
        exec(compile("\n" * (self.line - 1) + self.body, str(self.page), "exec"), module.__dict__)  # noqa: S102


def blocks_of(page: Path, languages: set[str]) -> list[Block]:
    """Find the blocks of a page that are written in one of these languages."""
    text = page.read_text("utf-8")
    return [
        Block(
            page=page,
            line=text.count("\n", 0, found.start("body")) + 1,
            language=found["language"].lower(),
            body=textwrap.dedent(found["body"]),
            reason=found["reason"],
        )
        for found in _BLOCK.finditer(text)
        if found["language"].lower() in languages
    ]


def commands_of(page: Path) -> list[str]:
    """Every command of this library that a page shows and that needs no broker."""
    shown = [block.body for block in blocks_of(page, _SHELL) if block.reason is None]
    commands = [found["command"].strip() for body in shown for found in _COMMAND.finditer(body)]
    return [command for command in commands if "://" not in command]


def name_of(page: object) -> str | None:
    """Name a test after its page."""
    return page.relative_to(ROOT).as_posix() if isinstance(page, Path) else None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_block_runs(page, tmp_path, monkeypatch):
    """The Python blocks of a page run, one after the other."""
    monkeypatch.chdir(tmp_path)
    # A page about a package is not that package.
    module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
    # Type hints are looked up in the module that a class names.
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks_of(page, _PYTHON):
        if block.reason is None:
            block.run_in(module)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_fence_is_understood(page):
    """No block escapes these tests because of the way it is written."""
    fences = re.findall(r"^\s*```", page.read_text("utf-8"), re.MULTILINE)

    assert len(fences) == 2 * sum(1 for _ in _BLOCK.finditer(page.read_text("utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_belongs_to_a_list_is_indented_by_four(page):
    """GitHub takes three spaces after `1.`; the site would begin a new list."""
    assert [] == re.findall(r"^ {1,3}(?:```|<!--).*", page.read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_list_has_an_empty_line_before_it(page):
    """GitHub does without; the site would make it part of the paragraph."""
    text = _BLOCK.sub("", page.read_text("utf-8"))

    assert [] == re.findall(r"^[^-*\s|#<].*\n(?:[-*] |1\. ).*", text, re.MULTILINE)


@pytest.mark.parametrize(("page", "command"), [(page, command) for page in PAGES for command in commands_of(page)])
def test_every_command_runs(page, command, tmp_path):
    """A command of this library that a page shows ends well; its application is the Python of the page."""
    program, *arguments = shlex.split(command)
    for name in _APPLICATION.findall(command):
        shown = [block.body for block in blocks_of(page, _PYTHON) if block.reason is None]
        (tmp_path / f"{name}.py").write_text("\n".join(shown))
    if program == "cqrs-sync":
        arguments = ["-m", "cqrs_sync", *arguments]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, f"{name_of(page)}: {command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_of_supervisors_start_commands_that_are_there(page):
    """What a unit, an image or a manifest on a page gives to a command of this library, that command takes."""
    for block in blocks_of(page, {"ini", "dockerfile", "yaml"}):
        for line in block.body.splitlines():
            words = re.findall(r"[\w./:-]+", line)
            if "cqrs-sync" in line and {"consumer", "run"} <= set(words):
                options = words[words.index("run") + 1 :]
                run.make_context("run", options)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    """A link to another file of this repository finds it."""
    targets = [found["target"] for found in _LINK.finditer(page.read_text("utf-8"))]
    lost = [target for target in targets if not (page.parent / target).exists()]

    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_to_a_heading_finds_it(page):
    """The heading is on the same page or on another one."""
    found = [(link["target"], link["anchor"]) for link in _ANCHOR.finditer(page.read_text("utf-8"))]
    lost = [link for link in found if link[1] not in anchors_of(page.parent / link[0] if link[0] else page)]

    assert lost == []


def anchors_of(page: Path) -> set[str]:
    """Return what the headings of a page are called in links, as GitHub makes it of them."""
    headings = _HEADING.findall(_BLOCK.sub("", page.read_text("utf-8")))
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w -]", "", heading.strip()).replace(" ", "-") for heading in plain}
