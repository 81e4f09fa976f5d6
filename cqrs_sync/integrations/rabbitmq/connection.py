"""Where the broker is and how to get in: a URL or pika's parameters become ours."""

from __future__ import annotations

import contextlib
import copy

# Resolving a host name imports it: a child forked meanwhile would wait for that import for ever.
import encodings.idna  # noqa: F401
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import pika
from pika import exceptions, frame, spec
from pika.adapters import select_connection
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel
from pika.connection import Parameters

from cqrs_sync.errors import DeliveryError
from cqrs_sync.integrations.rabbitmq.amqp import Receiver, cut
from cqrs_sync.integrations.rabbitmq.errors import delivery_error, is_final
from cqrs_sync.retry import exponential_delay

#: Seconds between signs of life, unless the URL says otherwise.
_HEARTBEAT = 30
#: Seconds one attempt to connect may take at most: the next one may find a path that works.
_ATTEMPT = 5.0


def parameters_of(url_or_parameters: str | Parameters) -> Parameters:
    """
    Return the parameters of a connection, with our defaults where nothing is said.

    Raises ValueError for what is not an AMQP URL, TypeError for anything else.
    """
    if isinstance(url_or_parameters, str):
        parameters = _parsed(url_or_parameters)
    elif isinstance(url_or_parameters, Parameters):
        # pika cannot deepcopy a TLS context, and the rest is values.
        parameters = copy.copy(url_or_parameters)
    else:
        raise TypeError(f"a URL or pika's ConnectionParameters is wanted, not {type(url_or_parameters).__qualname__}")
    if parameters.heartbeat is None:
        parameters.heartbeat = _HEARTBEAT
    # Retries are ours: they know who still waits.
    parameters.connection_attempts = 1
    parameters.socket_timeout = min(parameters.socket_timeout or _ATTEMPT, _ATTEMPT)
    parameters.stack_timeout = min(parameters.stack_timeout or _ATTEMPT, _ATTEMPT)
    parameters.client_properties = {"connection_name": "cqrs-sync", **(parameters.client_properties or {})}
    return parameters


def address_of(parameters: Parameters) -> str:
    """Return where a connection goes to, without a secret."""
    return f"{parameters.host}:{parameters.port}"


def _parsed(url: str) -> Parameters:
    if not url.startswith(("amqp://", "amqps://")):
        raise ValueError("the URL of a RabbitMQ broker starts with amqp:// or amqps://")
    try:
        return pika.URLParameters(url)
    except Exception:  # noqa: BLE001 -- whatever the parser says, it may quote the password
        raise ValueError(
            "this is not the URL of a RabbitMQ broker; it reads amqp://user:password@host:port/vhost?heartbeat=30, "
            "with special characters in user, password and vhost written as %XX"
        ) from None


#: A pika without this hook still works, message by message through its public `basic_publish`.
CAN_EMIT = hasattr(select_connection.SelectConnection, "_adapter_emit_data")

_PLAIN = "_AsyncPlaintextTransport"
_READ = 65536
_HEADER_FRAME = 2


class Connection(select_connection.SelectConnection):  # type: ignore[misc]
    """A connection on an I/O loop that outlives it."""

    #: Where data may go past pika's buffer: a plain socket, none under TLS.
    _socket: socket.socket | None = None

    #: Who gets deliveries on the channel past pika's decoder.
    receiver: Receiver | None = None

    def tune(self) -> None:
        """
        Read once per wake-up.

        pika reads until the kernel says there is no more. Every such call gives up the
        interpreter lock and waits for it again, behind each thread that computes.
        """
        transport: Any = getattr(self, "_transport", None)
        if type(transport).__name__ == _PLAIN:
            transport._MAX_RECV_BYTES = _READ  # noqa: SLF001
            transport._MAX_CONSUME_BYTES = 1  # noqa: SLF001
            self._socket = getattr(transport, "_sock", None)

    def emit(self, data: bytes) -> None:
        """Send encoded frames in one write, at once where the kernel takes them: pika would ask it three times."""
        if self._socket is not None and self._transport is not None and self._transport.get_write_buffer_size() == 0:
            try:
                sent = self._socket.send(data)
            except OSError:
                # Full or broken: pika knows what to do, and finds out by itself.
                sent = 0
            data = data[sent:]
        if data:
            self._adapter_emit_data(data)

    def abort(self, reason: Exception) -> None:
        """End it without waiting for an answer of a broker that does not answer."""
        if hasattr(self, "_terminate_stream"):
            self._terminate_stream(reason)
        elif not (self.is_closing or self.is_closed):
            self.close()

    def disown(self) -> None:
        """
        Let go of a descriptor inherited from the parent without a word.

        Closing the connection would end the parent's; keeping the descriptor would
        keep the parent's alive after the parent has died.
        """
        transport = getattr(self, "_transport", None)
        inherited = getattr(transport, "_sock", None)
        if inherited is not None and inherited.fileno() >= 0:
            os.close(inherited.detach())

    def _on_data_available(self, data_in: bytes) -> None:
        """Hand over deliveries, and everything else to pika, frame by frame."""
        receiver = self.receiver
        if receiver is None:
            super()._on_data_available(data_in)
            return
        self._frame_buffer += data_in
        while self._frame_buffer:
            end = cut(self._frame_buffer, receiver)
            if end:
                self._trim_frame_buffer(end)
                continue
            consumed, frame_value = self._read_frame()
            if not frame_value:
                break
            self._trim_frame_buffer(consumed)
            self._process_frame(frame_value)
        receiver.taken()

    def _read_frame(self) -> tuple[int, Any]:
        """Read the next frame; headers that pika cannot decode become none, or they would kill every connection."""
        try:
            return super()._read_frame()  # type: ignore[no-any-return]
        except Exception:
            data = self._frame_buffer
            if data[0] != _HEADER_FRAME:
                raise
            channel, size = int.from_bytes(data[1:3], "big"), int.from_bytes(data[3:7], "big")
            body_size = int.from_bytes(data[11:19], "big")
            header = frame.Header(channel, body_size, pika.BasicProperties())
            return size + spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE, header


logger = logging.getLogger(__name__)

#: Seconds before the second attempt to connect; doubled for each further one, and jittered.
_BACKOFF = 0.05
_BACKOFF_MAX = 2.0
#: Raw frames name their channel, so there is only this one.
_CHANNEL = 1


class Owner(Protocol):
    """Whoever uses a link; every method runs on its I/O thread."""

    def opened(self, connection: Connection) -> None:
        """Take note of a new connection."""

    def set_up(self, channel: Channel) -> None:
        """Prepare a new channel and call `link.is_ready()` when that is done."""

    def lost(self, error: Exception) -> None:
        """What was under way on the channel has no answer."""

    def refused(self, error: DeliveryError) -> None:
        """Trying again at once will not help: tell those who wait."""

    def wanted(self) -> bool:
        """Tell whether somebody waits for the channel."""


class Link:
    """
    A connection that is made when it is wanted, and again after it broke.

    The thread starts with the first `wake`. Attempts back off with jitter as long as
    the owner wants the channel. pika answers heartbeats on the same thread, however
    long everybody else is busy.
    """

    def __init__(self, parameters: Parameters, owner: Owner, name: str) -> None:
        self.ready = False
        #: Why there is no channel.
        self.trouble: DeliveryError | None = None
        self.address = address_of(parameters)
        self.connection: Connection | None = None
        self._parameters = parameters
        self._owner = owner
        self._name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: Any = None
        self._channel: Channel | None = None
        self._retry: object = None
        self._attempts = 0
        self._stopping = False

    def wake(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the I/O thread, from any thread."""
        if self._thread is None:
            self._start()
        if self._loop is not None:
            self._loop.add_callback_threadsafe(callback)

    def later(self, delay: float, callback: Callable[[], None]) -> object:
        """Call `callback` after `delay` seconds; from the I/O thread."""
        return self._loop.call_later(delay, callback)

    def ensure(self) -> None:
        """Make what is missing, unless that is under way or has to wait; from the I/O thread."""
        if self.ready or self._stopping or self._retry is not None:
            return
        if self.connection is None:
            self._connect()
        elif self._channel is None and self.connection.is_open:
            self._open_channel()

    def is_ready(self) -> None:
        """Take note that the owner has set the channel up."""
        self.ready = True
        self.trouble = None
        self._attempts = 0

    def reopen(self, error: Exception) -> None:
        """Drop the connection without waiting for it to answer, and make a new one if one is wanted."""
        if self.connection is not None:
            self.connection.abort(error)

    def stop(self, until: float) -> None:
        """Close the connection and end the thread, politely while there is time; from any other thread."""
        with self._lock:
            self._stopping = True
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        self._loop.add_callback_threadsafe(self._close_politely)
        thread.join(max(0.0, until - time.monotonic()))
        if thread.is_alive():
            self._loop.add_callback_threadsafe(self._close_at_once)
            thread.join(0.5)

    def disown(self) -> None:
        """Let go, in a forked child, of what belongs to the parent."""
        if self.connection is not None:
            self.connection.disown()
        # Not even the garbage collector may touch what is left of it.
        _inherited.append(self)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._stopping:
                self._loop = IOLoop()
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        finished = False
        while not finished:
            loop = self._loop
            try:
                loop.start()
                finished = True
            except Exception as error:
                # Callers would wait in vain if this thread died.
                logger.warning("the connection to RabbitMQ at %s failed: %s", self.address, error, exc_info=True)
                self._crashed(error)
            loop.close()

    def _crashed(self, error: Exception) -> None:
        """Go on with a new loop and a new connection: what state the old ones are in is anyone's guess."""
        connection, self.connection, self._channel = self.connection, None, None
        if connection is not None:
            connection.disown()
        self._loop, self._retry = IOLoop(), None
        self.ready = True
        self._gone(error)

    def _connect(self) -> None:
        self.connection = Connection(
            self._parameters,
            on_open_callback=self._on_open,
            on_open_error_callback=self._on_open_error,
            on_close_callback=self._on_close,
            custom_ioloop=self._loop,
        )

    def _on_open(self, connection: Connection) -> None:
        if self._stopping:
            connection.close()
        else:
            connection.tune()
            self._owner.opened(connection)
            self._open_channel()

    def _on_open_error(self, connection: Connection, error: Exception) -> None:
        if connection is self.connection:
            self.connection = None
            self._gone(error)

    def _on_close(self, connection: Connection, error: Exception) -> None:
        if connection is self.connection:
            self.connection = self._channel = None
            self._gone(error)

    def _open_channel(self) -> None:
        assert self.connection is not None
        self._channel = self.connection.channel(_CHANNEL, on_open_callback=self._on_channel_open)
        self._channel.add_on_close_callback(self._on_channel_closed)

    def _on_channel_open(self, channel: Channel) -> None:
        if not self._stopping:
            self._owner.set_up(channel)

    def _on_channel_closed(self, channel: Channel, error: Exception) -> None:
        if channel is not self._channel or self.connection is None or not self.connection.is_open:
            # The connection is going as well and says so itself.
            return
        self._channel = None
        if self.ready:
            self.ready = False
            self._owner.lost(error)
            # pika forgets the channel only after this callback.
            self.later(0, self._if_wanted)
        else:
            self.trouble = delivery_error(error, self.address)
            self._owner.refused(self.trouble)

    def _gone(self, error: Exception) -> None:
        was_ready, self.ready = self.ready, False
        if self._stopping:
            self._loop.stop()
            return
        self.trouble = delivery_error(error, self.address)
        if was_ready:
            logger.info("the connection to RabbitMQ is gone: %s", self.trouble)
            self._owner.lost(error)
        if is_final(error):
            self._owner.refused(self.trouble)
        else:
            self._back_off()

    def _back_off(self) -> None:
        self._attempts += 1
        self._retry = self.later(exponential_delay(self._attempts, _BACKOFF, _BACKOFF_MAX), self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._if_wanted()

    def _if_wanted(self) -> None:
        if self._owner.wanted():
            self.ensure()
        else:
            self._attempts = 0

    def _close_politely(self) -> None:
        if self.connection is None:
            self._loop.stop()
        elif self.connection.is_open:
            self.connection.close()
        elif not (self.connection.is_closing or self.connection.is_closed):
            # pika trips over closing what is not open yet.
            self.connection.abort(ConnectionAbortedError("closed before it was open"))

    def _close_at_once(self) -> None:
        if self.connection is None:
            self._loop.stop()
        else:
            self.connection.abort(ConnectionAbortedError("the broker did not answer while closing"))


_inherited: list[Link] = []


class Watch:
    """
    Drops a connection that stays silent for `patience` seconds while answers are due.

    Heartbeats would take a minute. Half-way through, it asks the broker for something
    it answers at once: one that is only slow to confirm is left in peace, or every
    reconnect would send everything again. All of it runs on the I/O thread.
    """

    def __init__(self, link: Link, patience: float, answers_due: Callable[[], bool]) -> None:
        self._link = link
        self._patience = patience
        self._answers_due = answers_due
        self._watched: Connection | None = None
        self._heard_at = 0.0
        self._heard_bytes = 0
        self._asked = False

    def start(self) -> None:
        """Watch the connection as long as answers are due."""
        connection = self._link.connection
        if connection is not None and connection is not self._watched and self._answers_due():
            self._watched = connection
            self._hear(connection)
            self._look_later(connection)

    def _look_later(self, connection: Connection) -> None:
        self._link.later(self._patience / 4, lambda: self._look(connection))

    def _look(self, connection: Connection) -> None:
        if connection is not self._watched:
            return
        if connection is not self._link.connection or not self._answers_due():
            self._watched = None
            return
        if connection.bytes_received != self._heard_bytes:
            self._hear(connection)
        silence = time.monotonic() - self._heard_at
        # Whoever could not look for so long, as other threads had the interpreter, asks before giving up.
        if silence >= self._patience and self._asked:
            self._watched = None
            self._link.reopen(TimeoutError("no answer"))
            return
        if silence >= self._patience / 2 and not self._asked:
            self._ask(connection)
        self._look_later(connection)

    def _hear(self, connection: Connection) -> None:
        self._heard_at, self._heard_bytes = time.monotonic(), connection.bytes_received
        self._asked = False

    def _ask(self, connection: Connection) -> None:
        self._asked = True
        # A broker that allows a single channel is watched without questions.
        with contextlib.suppress(exceptions.AMQPError):
            connection.channel(on_open_callback=_close)


def _close(channel: Any) -> None:
    channel.close()
