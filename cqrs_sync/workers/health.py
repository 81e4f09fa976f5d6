"""How a consumer is, in a file and over HTTP, for whoever restarts it where it is not well."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.workers.vitals import Vitals
from cqrs_sync.workers.worker import Errand

logger = logging.getLogger(__name__)

#: Seconds between two signs of life in the file.
_RENEWED = 3.0
#: Seconds that a client has for its question and for taking the answer, and bytes its question may have.
_PATIENCE, _QUESTION = 1.0, 8192
#: Clients that may wait for their turn.
_QUEUE = 16


class HealthFile:
    """A file that is written anew every few seconds as long as the consumer is alive, and is not there otherwise."""

    def __init__(self, path: Path, look: Callable[[], Vitals]) -> None:
        self._path = path
        self._look = look
        self._writing = threading.Lock()
        self._has_ended = False
        self._errand = Errand("cqrs-health-file", self._renew, lambda: None)

    def start(self) -> None:
        """Write it from now on. Raises ConfigurationError where it cannot be written."""
        try:
            self._renew()
        except OSError as error:
            raise ConfigurationError(f"the health file {str(self._path)!r} cannot be written: {error}") from error
        self._errand.start()

    def end(self) -> None:
        """Remove it."""
        self._errand.end()
        # A disk that takes nothing keeps nobody.
        if self._writing.acquire(timeout=_PATIENCE / 2):
            self._has_ended = True
            self._remove()
            self._writing.release()

    def _renew(self) -> float:
        vitals = self._look()
        with self._writing:
            if not self._has_ended:
                self._write(vitals) if vitals.is_alive else self._remove()
        return _RENEWED

    def _write(self, vitals: Vitals) -> None:
        # Whoever reads it finds all of it.
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        beside.write_text(_json_of(vitals) + "\n", "utf-8")
        beside.replace(self._path)

    def _remove(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


class HealthPort:
    """
    Answers `GET /live` and `GET /ready` with 200 or 503 and a JSON object, one client after the other.

    A client has a second; what it sends beside the head of its question is not read.
    """

    def __init__(self, host: str, port: int, look: Callable[[], Vitals]) -> None:
        self._look = look
        self._socket = _listening(host, port)
        name, number = self._socket.getsockname()[:2]
        #: Where it listens; the port is a free one where 0 was asked for.
        self.url = f"http://{f'[{name}]' if ':' in name else name}:{number}"
        self._thread = threading.Thread(target=self._run, name="cqrs-health-port", daemon=True)

    def start(self) -> None:
        """Answer from now on. Raises RuntimeError where the system gives no thread."""
        self._thread.start()

    def end(self) -> None:
        """Answer no more."""
        with suppress(OSError):
            # It wakes the thread, which `close` alone does not.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                if self._socket.fileno() < 0:
                    return
                # The system has no room for it now.
                threading.Event().wait(_PATIENCE)
                continue
            with client, suppress(OSError):
                self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        until = time.monotonic() + _PATIENCE
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _QUESTION:
            client.settimeout(max(0.01, until - time.monotonic()))
            part = client.recv(_QUESTION)
            if not part or time.monotonic() >= until:
                return
            head += part
        status, body = self._answer(head)
        client.settimeout(max(0.01, until - time.monotonic()))
        client.sendall(
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "Cache-Control: no-store\r\nConnection: close\r\n\r\n".encode()
            + (b"" if head.startswith(b"HEAD ") else body)
        )

    def _answer(self, head: bytes) -> tuple[str, bytes]:
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in {b"GET", b"HEAD"}:
            return "405 Method Not Allowed", b'{"error": "GET is all there is"}'
        if path not in {b"/live", b"/ready"}:
            return "404 Not Found", b'{"error": "there are /live and /ready"}'
        try:
            vitals = self._look()
        except Exception:
            logger.exception("nobody can tell how the consumer is")
            return "500 Internal Server Error", b'{"error": "nobody can tell"}'
        is_well = vitals.is_alive if path == b"/live" else vitals.is_ready
        return "200 OK" if is_well else "503 Service Unavailable", _json_of(vitals).encode()


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((str(address[0]), port), family=family, backlog=_QUEUE)
    except (OSError, OverflowError) as error:
        raise ConfigurationError(f"the health port {port} of {host!r} cannot be listened at: {error}") from error


def _json_of(vitals: Vitals) -> str:
    facts: dict[str, Any] = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), **vitals.facts()}
    return json.dumps(facts)
