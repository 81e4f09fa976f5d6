"""The health of a consumer, in a file and over HTTP, for whatever restarts its process."""

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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any, BinaryIO, cast

import attrs

from cqrs_sync.consumer import Consumer
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.workers.watchdogs import RunningMessage, SlowHandlerWatchdog, running_message
from cqrs_sync.workers.worker import PeriodicTask

logger: logging.Logger = logging.getLogger(__name__)

#: Seconds between two writes of the health file.
_RENEWED = 3.0
#: Seconds that a client has in all, and between two looks for clients that take longer.
_CLIENT_TIMEOUT, _POLL = 1.0, 0.2
#: Clients that are served at a time, and those that may wait; bytes that a request may have.
_MOST_CLIENTS, _QUEUE, _REQUEST_BYTES = 32, 16, 8192


@attrs.frozen
class HealthSnapshot:
    """The health of a consumer at one moment."""

    #: `receiving`, `waiting` for the broker, `stopping`, `stopped`, or `stuck`.
    state: str
    is_alive: bool
    is_ready: bool
    trouble: str
    received: int
    handled: int
    delayed: int
    dead: int
    dropped: int
    in_flight: int
    running: int
    #: What has been running for the longest time.
    oldest: RunningMessage | None

    def facts(self) -> dict[str, Any]:
        """Return it as values that become JSON."""
        facts = attrs.asdict(self)
        oldest = facts["oldest"]
        if oldest is not None:
            oldest["seconds"] = round(oldest["seconds"], 3)
        return {"state": facts.pop("state"), "alive": facts.pop("is_alive"), "ready": facts.pop("is_ready"), **facts}


def take_snapshot(
    consumer: Consumer,
    stall: float,
    slow_handlers: SlowHandlerWatchdog,
    *,
    is_stopping: bool = False,
    has_stopped: bool = False,
) -> HealthSnapshot:
    """Take a snapshot of a consumer that works, that was told to stop, or that has stopped; safe from any thread."""
    counts, health = consumer.counts, consumer.health(stall)
    running = sorted(consumer.running(), key=lambda item: item.begun)
    if has_stopped:
        state = "stopped"
    elif not health.is_alive:
        state = "stuck"
    elif is_stopping:
        state = "stopping"
    else:
        state = "receiving" if health.is_ready else "waiting"
    # If the consumer is stuck, slow handlers add nothing.
    troubles = (health.trouble, slow_handlers.trouble if health.is_alive else "")
    return HealthSnapshot(
        state=state,
        is_alive=health.is_alive,
        is_ready=health.is_ready and not is_stopping,
        trouble="" if has_stopped else "; ".join(filter(None, troubles)),
        received=consumer.received,
        handled=counts.handled,
        delayed=counts.delayed,
        dead=counts.dead,
        dropped=counts.dropped,
        in_flight=consumer.in_flight_count,
        running=len(running),
        oldest=running_message(consumer, running[0]) if running else None,
    )


class HealthFile:
    """A file that exists while the consumer is alive, and is renewed every few seconds."""

    def __init__(self, path: Path, snapshot: Callable[[], HealthSnapshot]) -> None:
        self._path = path
        self._snapshot = snapshot
        self._writing = threading.Lock()
        self._is_closed = False
        self._task = PeriodicTask("cqrs-health-file", self.renew)

    def start(self) -> None:
        """Write it from now on. Raises ConfigurationError if it cannot be written."""
        try:
            self.renew()
        except OSError as error:
            raise ConfigurationError(f"the health file {str(self._path)!r} cannot be written: {error}") from error
        self._task.start()

    def close(self, timeout: float = 0.5) -> None:
        """Remove it; a disk that does not answer is waited for `timeout` seconds."""
        self._task.close()
        if self._writing.acquire(timeout=timeout):
            self._is_closed = True
            self._remove()
            self._writing.release()

    def renew(self) -> float:
        """Write the file, or remove it if the consumer is not alive; return the seconds until the next time."""
        snapshot = self._snapshot()
        with self._writing:
            if not self._is_closed:
                self._write(snapshot) if snapshot.is_alive else self._remove()
        return _RENEWED

    def _write(self, snapshot: HealthSnapshot) -> None:
        # Readers find the whole text, or none.
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        beside.write_text(_json_of(snapshot) + "\n", "utf-8")
        beside.replace(self._path)

    def _remove(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


class HealthServer:
    """
    Answers `GET /live` and `GET /ready` over HTTP: 200 or 503, and a JSON object.

    A client has a second in all and sends 8 KiB at most. Of more than 32 clients at a time the rest are refused.
    """

    def __init__(self, host: str, port: int, snapshot: Callable[[], HealthSnapshot]) -> None:
        """Listen. Raises ConfigurationError if that is not possible."""
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
                0
            ]
            self._server = _Server(family, str(address[0]), port, snapshot)
        except (OSError, OverflowError) as error:
            raise ConfigurationError(f"the health port {port} of {host!r} cannot be opened: {error}") from error
        name, number = self._server.server_address[:2]
        #: Where it listens; port 0 chooses a free one.
        self.url: str = f"http://{f'[{name!s}]' if ':' in str(name) else name!s}:{number}"
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cqrs-health-server", daemon=True)

    def start(self) -> None:
        """Answer from now on. Raises RuntimeError if the system has no thread left."""
        self._thread.start()

    def close(self, timeout: float = 1.0) -> None:
        """Stop to listen, within `timeout` seconds."""
        self._is_closed.set()
        if self._thread.ident is None:
            self._server.server_close()
        else:
            self._thread.join(timeout)

    def _run(self) -> None:
        with self._server:
            while not self._is_closed.is_set():
                self._server.handle_request()
                self._server.drop_late_clients()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = _QUEUE
    #: Of `handle_request`.
    timeout = _POLL

    def __init__(self, family: int, host: str, port: int, snapshot: Callable[[], HealthSnapshot]) -> None:
        self.address_family = family
        self.snapshot = snapshot
        self._clients: dict[Any, float] = {}
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind without the name server, which that of the base class asks."""
        TCPServer.server_bind(self)
        # A client may be gone before it is accepted, which should not block.
        self.socket.settimeout(_CLIENT_TIMEOUT)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a client."""
        try:
            return super().get_request()
        except OSError:
            # There may be no file descriptor left: without a pause this thread would spin.
            threading.Event().wait(_CLIENT_TIMEOUT)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a client in a thread of its own, unless there are too many."""
        if len(self._clients) >= _MOST_CLIENTS:
            self.shutdown_request(request)
            return
        self._clients[request] = time.monotonic() + _CLIENT_TIMEOUT
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close the connection of a client."""
        self._clients.pop(request, None)
        super().shutdown_request(request)

    def drop_late_clients(self) -> None:
        """Shut down connections that are older than a client may take, which ends their threads."""
        now = time.monotonic()
        for request, until in self._clients.copy().items():
            if until < now:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 -- as the base class has it
        """Log an error of one client."""
        logger.debug("a client of the health port failed", exc_info=True)  # noqa: LOG014 -- an error is being handled


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    #: Of each read and write; all of them together are bounded by `drop_late_clients`.
    timeout = _CLIENT_TIMEOUT

    def setup(self) -> None:
        super().setup()
        self.rfile = cast("BinaryIO", _BoundedReader(self.rfile))  # type: ignore[assignment]

    def do_GET(self) -> None:
        # The base class shortens `//` at the beginning of `self.path` to `/`.
        path = self.requestline.split()[1].partition("?")[0]
        if path not in {"/live", "/ready"}:
            self._answer(404, '{"error": "there are /live and /ready"}')
            return
        try:
            snapshot = cast("_Server", self.server).snapshot()
        except Exception:
            logger.exception("the health of the consumer cannot be read")
            self._answer(500, '{"error": "the health cannot be read"}')
            return
        is_well = snapshot.is_alive if path == "/live" else snapshot.is_ready
        self._answer(200 if is_well else 503, _json_of(snapshot))

    do_HEAD = do_GET  # noqa: N815 -- as the base class calls it

    def __getattr__(self, name: str) -> Callable[[], None]:
        """Answer 405 to all other methods of HTTP, where the base class answers 501 to those it does not know."""
        if name.startswith("do_"):
            return lambda: self._answer(405, '{"error": "only GET is supported"}')
        raise AttributeError(name)

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.encode())

    def version_string(self) -> str:
        return "cqrs-sync"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- as the base class has it
        # A client has written the request: its control characters must not reach the log.
        logger.debug("health port: %r", format % args)


class _BoundedReader:
    """Reads the lines of a request up to its bound; then the request is at its end."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = _REQUEST_BYTES

    def readline(self, size: int = -1) -> bytes:
        line: bytes = self._file.readline(self._left if size < 0 else min(size, self._left))
        self._left -= len(line)
        return line

    def close(self) -> None:
        self._file.close()


def _json_of(snapshot: HealthSnapshot) -> str:
    return json.dumps({"at": datetime.now(UTC).isoformat(timespec="milliseconds"), **snapshot.facts()})
