"""A headless Chromium for the commands beside it: pages at a width and in a colour scheme, scripts, pictures."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import urlopen

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb")


class Tab:
    """One tab of a running Chromium."""

    def __init__(self, connection: websocket.WebSocket) -> None:
        self._connection = connection
        self._number = 0
        self._call("Page.enable")

    def set_size(self, width: int, height: int, *, scale: float = 1.0) -> None:
        """Set the size of the window in CSS pixels; `scale` is the resolution of pictures."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )

    def set_scheme(self, scheme: str) -> None:
        """Prefer `light` or `dark`."""
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def set_cookie(self, url: str, name: str, value: str) -> None:
        """Set a cookie for a site."""
        self._call("Network.setCookie", url=url, name=name, value=value)

    def open(self, url: str) -> None:
        """Open a page and wait until it is loaded."""
        self._call("Page.navigate", url=url)
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, script: str) -> object:
        """Return what a script yields, as JSON."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def picture(self, *, whole_page: bool = False) -> bytes:
        """Return a PNG of the window, or of the whole page."""
        answer = self._call("Page.captureScreenshot", captureBeyondViewport=whole_page, **self._clip(whole_page))
        return base64.b64decode(answer["data"])

    def _clip(self, whole_page: bool) -> dict[str, object]:
        if not whole_page:
            return {}
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def _call(self, method: str, **params: object) -> dict:
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while (answer := self._receive()).get("id") != self._number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _receive(self) -> dict:
        return json.loads(self._connection.recv())


@contextmanager
def running() -> Iterator[Tab]:
    """Start a Chromium with one tab, and end it after the block."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        sys.exit("Chromium is not installed: on Debian, run `apt-get install chromium`")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        try:
            connection = websocket.create_connection(_address(process), suppress_origin=True, timeout=60)
            yield Tab(connection)
            connection.close()
        finally:
            process.terminate()
            process.wait(20)


def _address(process: subprocess.Popen) -> str:
    """Return the address of the tab: Chromium writes that of the browser, and lists its tabs there."""
    for line in process.stderr:
        if "DevTools listening on ws://" in line:
            host = line.rpartition("ws://")[2].partition("/")[0]
            return _tab_at(host)
    sys.exit("Chromium ended before it could be used: run it by hand to see why")


def _tab_at(host: str) -> str:
    with urlopen(f"http://{host}/json", timeout=20) as answer:
        tabs = json.load(answer)
    return next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
