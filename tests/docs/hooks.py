"""
What `mkdocs` does for the site beside its own: diagrams are drawn, files outside of `docs` become pages.

A page has to read well on GitHub too, so it says nothing about any of this.
"""

from __future__ import annotations

import functools
import hashlib
import os
import posixpath
import re
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import mermaidx
from mkdocs.structure.files import File, Files, InclusionLevel
from pymdownx.superfences import SuperFencesException

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

#: Files at the root of the repository, and the pages that they become.
PROJECT = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}

_CACHE = ROOT / "build/diagrams"
#: Narrow enough for a column of text.
_DIAGRAMS = {"sequence": {"actorMargin": 40, "width": 150, "wrap": True}}

#: Stands under each `pip install 'cqrs-sync[...]'`, on the site only. The first release deletes it.
UNTIL_RELEASED = "*cqrs-sync is not released yet: in a checkout, write* `pip install '.[...]'`.\n"
_INSTALL = re.compile(r"^```\w*\n[^`]*pip install 'cqrs-sync\[[^`]*^```\n", re.MULTILINE)

_FENCE = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?P<target>(?!\w+:|#)[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_config(config):
    """Let fences of mermaid be drawn."""
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [
        {"name": "mermaid", "class": "diagram", "format": _diagram}
    ]
    return config


def on_files(files: Files, config) -> Files:
    """Add what pages link to and is not in `docs`: the project's own pages, and source code."""
    for name, page in PROJECT.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text("utf-8")))
    _draw_at_once([found[1] for file in files.documentation_pages() for found in _FENCE.finditer(file.content_string)])
    linked = {
        path
        for file in files.documentation_pages()
        for path in _linked_paths(file.src_uri, file.content_string)
        if path.suffix == ".py"
    }
    for path in sorted(linked):
        uri = _source_uri(path)
        files.append(File.generated(config, uri, content=_source_page(path), inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, *, page, config, files) -> str:
    """Let links that leave `docs` lead to the pages made for them, and say what cannot be installed yet."""

    def rewritten(found: re.Match[str]) -> str:
        path = _path_of(page.file.src_uri, found["target"])
        uri = PROJECT.get(_relative(path))
        if uri is None and path.is_relative_to(DOCS) and path.suffix == ".md":
            uri = path.relative_to(DOCS).as_posix()
        if uri is None and path.suffix == ".py":
            uri = _source_uri(path)
        if uri is None:
            return found[0]
        return f"]({posixpath.relpath(uri, posixpath.dirname(page.file.src_uri))}{found['anchor'] or ''})"

    markdown = _INSTALL.sub(lambda found: f"{found[0]}\n{UNTIL_RELEASED}", markdown)
    return _LINK.sub(rewritten, markdown)


def _linked_paths(page: str, markdown: str) -> set[Path]:
    paths = {_path_of(page, found["target"]) for found in _LINK.finditer(markdown)}
    return {path for path in paths if path.is_file()}


def _path_of(page: str, target: str) -> Path:
    """Return the file that a link on a page leads to; pages of the project lie at the root of the repository."""
    folder = ROOT if page in PROJECT.values() else (DOCS / page).parent
    return (folder / target).resolve()


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def _source_uri(path: Path) -> str:
    return f"source/{_relative(path)}.md"


def _source_page(path: Path) -> str:
    return (
        f"---\nsearch:\n  exclude: true\n---\n\n# {_relative(path)}\n\n`````python\n{path.read_text('utf-8')}\n`````\n"
    )


def _draw_at_once(sources: list[str]) -> None:
    """Draw diagrams on all processors, before pages ask for one after the other."""
    fork, count = get_context("fork"), os.cpu_count() or 1
    children = [fork.Process(target=_draw_each, args=(sources[number::count],)) for number in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join()


def _draw_each(sources: list[str]) -> None:
    # What cannot be drawn is an error when its page asks for it.
    with suppress(RuntimeError):
        for source in sources:
            _drawn(source)


def _diagram(source: str, language: str, css_class: str, options, md, **_) -> str:
    try:
        return f'<div class="{css_class}" tabindex="0">{_drawn(source)}</div>'
    except RuntimeError as error:
        # Any other error would be logged, and the diagram shown as code.
        raise SuperFencesException(f"{error}\n{source}") from error


@functools.cache
def _drawn(source: str) -> str:
    """Draw a diagram, or take it from the cache of an earlier build: drawing one takes a second or two."""
    source = source.strip()
    name = hashlib.sha256(f"{mermaidx.__version__}\n{_DIAGRAMS}\n{source}".encode()).hexdigest()[:16]
    cached = _CACHE / f"{name}.svg"
    if cached.exists():
        return cached.read_text("utf-8")
    svg = mermaidx.render(source, config=_DIAGRAMS).svg().replace("my-svg", f"diagram-{name}")
    # On a phone a wide diagram is scrolled, not made too small to read.
    svg = re.sub(
        r'style="max-width: ([\d.]+)px;',
        lambda found: f'style="max-width: {found[1]}px; min-width: {min(float(found[1]), 700) * 0.8:.0f}px;',
        svg,
        count=1,
    )
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_text(svg, "utf-8")
    return svg
