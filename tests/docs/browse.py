"""
Open every page of the built site in Chromium and list what does not fit: `python -m tests.docs.browse`.

Each page is looked at as wide as a phone and a desktop, dark and light. The exit status is 1 if a page scrolls
sideways, shows Markdown that was not understood, or loads something from another server. `--pictures FOLDER` also
keeps a picture of each view. Build the site first: `mkdocs build -f .mkdocs.yml`.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.docs.chromium import Tab, running

SITE = Path(__file__).parents[2] / "build/site"
WIDTHS = (390, 1280)
SCHEMES = {"light": "default", "dark": "slate"}

#: Elements that reach over the right edge and that nothing around them scrolls or cuts off.
_TOO_WIDE = """
(() => {
    const wide = [];
    if (document.documentElement.scrollWidth > innerWidth) {
        for (const element of document.querySelectorAll("article *")) {
            const inside = element.closest(".highlight, .diagram, .md-typeset__scrollwrap, pre");
            if (!inside && element.getBoundingClientRect().right > innerWidth + 1) {
                wide.push(element.tagName.toLowerCase() + ": " + element.textContent.trim().slice(0, 60));
            }
        }
        wide.push("the page is " + document.documentElement.scrollWidth + " wide");
    }
    return wide.slice(-3);
})()
"""
#: Panels slide in and out after a change of width.
_SETTLED = "new Promise(done => setTimeout(() => requestAnimationFrame(done), 300))"
#: Text outside of code that still looks like Markdown.
_RAW = """
[...document.querySelectorAll("article :is(p, li, td)")]
    .map(element => { const copy = element.cloneNode(true);
                      copy.querySelectorAll("code, pre, .diagram").forEach(each => each.remove());
                      return copy.textContent; })
    .filter(text => /```|\\]\\(|^\\||^- /m.test(text)).map(text => text.trim().slice(0, 60))
"""
#: What the page has loaded from elsewhere.
_FOREIGN = """
performance.getEntriesByType("resource").map(each => each.name).filter(name => !name.startsWith(location.origin))
"""
_TOO_MANY_PIXELS = 16_000


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def main(arguments: list[str]) -> int:
    """Look at each page and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.docs.browse", description=__doc__)
    parser.add_argument("--site", type=Path, default=SITE, help="the built site")
    parser.add_argument("--pictures", type=Path, help="where to keep a picture of each view")
    parser.add_argument("pages", nargs="*", help="look at these alone, such as how-to/django/")
    options = parser.parse_args(arguments)
    pages = options.pages or _pages(options.site)
    if not pages:
        sys.exit(f"there is no site in {options.site}: run `mkdocs build -f .mkdocs.yml`")
    with _serving(options.site) as address, running() as tab:
        found = [line for page in pages for line in _look(tab, address, page, options.pictures)]
    for line in found:
        print(line)
    views = len(pages) * len(WIDTHS) * len(SCHEMES)
    print(f"{len(pages)} pages, {views} views, {len(found)} faults")
    return 1 if found else 0


def _pages(site: Path) -> list[str]:
    pages = (page.relative_to(site).as_posix() for page in sorted(site.rglob("*.html")))
    return [page.removesuffix("index.html") for page in pages]


@contextmanager
def _serving(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def _look(tab: Tab, address: str, page: str, pictures: Path | None) -> Iterator[str]:
    """Yield what is wrong with a page in all its views."""
    tab.set_size(WIDTHS[-1], 900)
    tab.open(address + page)
    for text in tab.evaluate(_RAW):
        yield f"{page}: shows Markdown: {text}"
    for name in tab.evaluate(_FOREIGN):
        yield f"{page}: loads {name}"
    for width in WIDTHS:
        tab.set_size(width, 900)
        for scheme, palette in SCHEMES.items():
            tab.evaluate(f"document.body.setAttribute('data-md-color-scheme', '{palette}')")
            tab.evaluate(_SETTLED)
            for wide in tab.evaluate(_TOO_WIDE):
                yield f"{page} at {width} px, {scheme}: {wide}"
            if pictures is not None:
                _keep(tab, pictures / f"{page.strip('/').replace('/', '-') or 'index'}-{width}-{scheme}.png")


def _keep(tab: Tab, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    short = tab.evaluate("document.documentElement.scrollHeight") < _TOO_MANY_PIXELS
    file.write_bytes(tab.picture(whole_page=bool(short)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
