"""
Make the pictures of the documentation anew: `python -m tests.docs.screenshots`.

Terminals become SVG in `docs/images`, or in the folder that `--into` names, the pages of Django's admin PNG. The admin
needs Chromium; `--terminals` leaves it out. What they show is `tests/docs/shop.py`.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs/images"
COLUMNS = 100

#: The commands whose output is shown, by the name of the picture.
TERMINALS = {
    "demo": "cqrs-sync demo --events 1000",
    "outbox-status": "cqrs-sync outbox status --app tests.docs.shop:mediator",
    "consumer-lag": "cqrs-sync consumer lag --app tests.docs.shop:billing --group billing",
    "consumer-dead": "cqrs-sync consumer dead list --by-reason --app tests.docs.shop:billing --group billing",
}
#: Pages of the admin, by the name of the picture.
ADMIN = {
    "admin-dead": "admin/cqrs_sync/delivery/?status=dead",
    "admin-pending": "admin/cqrs_sync/delivery/?status=pending",
}


def main(arguments: list[str]) -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(prog="python -m tests.docs.screenshots", description=__doc__)
    parser.add_argument("--into", type=Path, default=IMAGES, help="the folder for the pictures")
    parser.add_argument("--terminals", action="store_true", help="leave out the admin, which needs Chromium")
    options = parser.parse_args(arguments)
    options.into.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"CQRS_PICTURES": folder, "DJANGO_SETTINGS_MODULE": "tests.docs.shop"}
        _fill()
        for name, command in TERMINALS.items():
            (options.into / f"{name}.svg").write_text(_terminal(command, name), "utf-8")
            print(options.into / f"{name}.svg")
        if not options.terminals:
            _photograph_admin(options.into)


def _fill() -> None:
    """Place orders: some are delivered or dead, the later ones wait."""
    # Some orders fail: that is the picture.
    logging.disable()
    import django  # noqa: PLC0415 -- the settings name the folder that has just been made
    from django.core.management import call_command  # noqa: PLC0415

    django.setup()
    call_command("migrate", verbosity=0)
    from tests.docs import shop  # noqa: PLC0415

    with shop.mediator() as mediator:
        for number in range(1, 31):
            mediator.send(shop.PlaceOrder(number))
        mediator.relay.start()
        mediator.relay.close(30, drain=True)
    waiting = shop.mediator()
    for number in range(31, 43):
        waiting.send(shop.PlaceOrder(number))


def _terminal(command: str, name: str) -> str:
    """Run a command on a terminal of its own, and return what that shows as SVG."""
    shown = re.sub(r" --app tests\.docs\.shop:\w+", "", command)
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: PTH123, SIM115
    console.print(Text.assemble(("$ ", "bold"), shown))
    console.print(Text.from_ansi(_output(command)))
    svg = console.export_svg(title="", unique_id=name)
    # No fonts from elsewhere: the reader's own.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    return re.sub(r"font-family: Fira Code, monospace", "font-family: ui-monospace, Menlo, Consolas, monospace", svg)


def _output(command: str) -> str:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    words = [sys.executable, "-m", "cqrs_sync", *command.split()[1:]]
    process = subprocess.Popen(words, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, close_fds=True)
    os.close(theirs)
    chunks = []
    while chunk := _read(ours):
        chunks.append(chunk)
    process.wait(60)
    os.close(ours)
    text = b"".join(chunks).decode()
    # A picture that was redrawn while the command ran was erased in the end: what follows the last erasure stays.
    return re.split(r"\x1b\[2K|\x1b\[\?25[hl]", text)[-1].replace("\r\n", "\n").strip("\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:
        # The other end is closed.
        return b""


class _Handler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def _photograph_admin(into: Path) -> None:
    from tests.docs.chromium import running  # noqa: PLC0415 -- only this needs it

    with _admin() as (address, session), running() as tab:
        tab.set_size(1200, 560)
        tab.set_scheme("light")
        tab.set_cookie(address, "sessionid", session)
        for name, page in ADMIN.items():
            tab.open(address + page)
            tab.evaluate(
                "document.querySelectorAll('#nav-sidebar, #toggle-nav-sidebar').forEach(each => each.remove())"
            )
            (into / f"{name}.png").write_bytes(tab.picture())
            print(into / f"{name}.png")


@contextmanager
def _admin() -> Iterator[tuple[str, str]]:
    """Serve the admin to a superuser: give its address and the session."""
    from django.contrib.auth.models import User  # noqa: PLC0415 -- Django is set up by now
    from django.contrib.staticfiles.handlers import StaticFilesHandler  # noqa: PLC0415
    from django.core.wsgi import get_wsgi_application  # noqa: PLC0415
    from django.test import Client  # noqa: PLC0415

    client = Client()
    client.force_login(User.objects.create_superuser("operator"))
    application = StaticFilesHandler(get_wsgi_application())
    server = make_server("127.0.0.1", 0, application, WSGIServer, _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", client.cookies["sessionid"].value
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main(sys.argv[1:])
