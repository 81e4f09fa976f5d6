"""The connection to RabbitMQ: its parameters, pika's class with our hooks, the I/O thread that keeps it alive."""

from __future__ import annotations

import contextlib
import copy

# Name resolution imports it. A child forked during that import would deadlock on the import lock.
import encodings.idna  # noqa: F401
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import pika
from pika import exceptions, frame, spec
from pika.adapters import select_connection
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel
from pika.connection import Parameters

from cqrs_sync.errors import ConfigurationError, DeliveryError
from cqrs_sync.integrations.rabbitmq.amqp import CHANNEL, RawDelivery, cut_deliveries
from cqrs_sync.integrations.rabbitmq.errors import delivery_error, is_permanent, quiet_pika
from cqrs_sync.retry import exponential_delay

logger: logging.Logger = logging.getLogger(__name__)

#: pika without this hook works as well, message by message through its own encoder.
CAN_EMIT = hasattr(select_connection.SelectConnection, "_adapter_emit_data")

#: Seconds between heartbeats, unless the URL sets them.
_HEARTBEAT = 30
#: Seconds of one attempt to connect: the next attempt may find a path that works.
_ATTEMPT = 5.0
#: Seconds before the second attempt; doubled and jittered for each further one.
_BACKOFF = 0.05
_BACKOFF_MAX = 2.0
_PLAIN = "_AsyncPlaintextTransport"
_READ = 65536
_HEADER_FRAME = 2

OnDeliveries = Callable[[list[RawDelivery]], None]


def connection_parameters(url: str | Parameters) -> Parameters:
    """
    Return the parameters of a connection, with our defaults.

    Raises ConfigurationError for anything that is neither an AMQP URL nor pika's parameters.
    """
    if isinstance(url, str):
        parameters = _parse_url(url)
    elif isinstance(url, Parameters):
        # pika cannot deepcopy a TLS context; everything else in it is a value.
        parameters = copy.copy(url)
    else:
        raise ConfigurationError(f"a RabbitMQ broker takes a URL or pika's parameters, not {type(url).__qualname__}")
    if parameters.heartbeat is None:
        parameters.heartbeat = _HEARTBEAT
    # The connection thread retries itself: it knows whether a caller still waits.
    parameters.connection_attempts = 1
    parameters.socket_timeout = min(parameters.socket_timeout or _ATTEMPT, _ATTEMPT)
    parameters.stack_timeout = min(parameters.stack_timeout or _ATTEMPT, _ATTEMPT)
    parameters.client_properties = {"connection_name": "cqrs-sync", **(parameters.client_properties or {})}
    return parameters


def address_of(parameters: Parameters) -> str:
    """Return host and port, without credentials."""
    return f"{parameters.host}:{parameters.port}"


def _parse_url(url: str) -> Parameters:
    scheme, separator, _ = url.partition("://")
    if scheme not in {"amqp", "amqps"}:
        given = f"{scheme}:// is not RabbitMQ" if separator else "the URL has no scheme"
        raise ConfigurationError(f"{given}: the URL of a RabbitMQ broker is amqp://host:port, or amqps:// for TLS")
    try:
        return pika.URLParameters(url)
    except Exception:  # noqa: BLE001 -- the parser's error may quote the password
        raise ConfigurationError(
            "this is not the URL of a RabbitMQ broker; write amqp://user:password@host:port/vhost?heartbeat=30, "
            "with special characters in user, password and vhost as %XX"
        ) from None


class PikaConnection(select_connection.SelectConnection):  # type: ignore[misc]
    """
    pika's connection; the only class that reaches below pika's public surface.

    It takes encoded frames, and gives deliveries to `on_deliveries` undecoded. Without that callback pika decodes
    them. The I/O loop belongs to the caller and outlives the connection.
    """

    #: Data may bypass pika's buffer on a plain socket; None under TLS.
    _socket: socket.socket | None = None

    def __init__(self, parameters: Parameters, *, on_deliveries: OnDeliveries | None = None, **options: Any) -> None:
        self._on_deliveries = on_deliveries
        super().__init__(parameters, **options)

    def tune(self) -> None:
        """
        Read once per wake-up.

        pika reads until the kernel has no more data. Each of these calls releases the interpreter lock and
        waits for it again, behind every thread that computes.
        """
        transport: Any = getattr(self, "_transport", None)
        if type(transport).__name__ == _PLAIN:
            transport._MAX_RECV_BYTES = _READ  # noqa: SLF001
            transport._MAX_CONSUME_BYTES = 1  # noqa: SLF001
            self._socket = getattr(transport, "_sock", None)

    def emit(self, data: bytes) -> None:
        """Send encoded frames in one write, at once if the kernel takes them: pika would need three system calls."""
        if self._socket is not None and self._transport is not None and self._transport.get_write_buffer_size() == 0:
            try:
                sent = self._socket.send(data)
            except OSError:
                # The buffer is full or the connection broken: pika handles both.
                sent = 0
            data = data[sent:]
        if data:
            self._adapter_emit_data(data)

    def abort(self, reason: Exception) -> None:
        """End the connection without waiting for the broker's answer."""
        if hasattr(self, "_terminate_stream"):
            self._terminate_stream(reason)
        elif not (self.is_closing or self.is_closed):
            self.close()

    def drop_socket(self) -> None:
        """
        Close the descriptor and send nothing.

        In a forked child, a regular close would end the parent's connection, and an open
        descriptor would keep that connection alive after the parent's death.
        """
        transport = getattr(self, "_transport", None)
        sock = getattr(transport, "_sock", None)
        if sock is not None and sock.fileno() >= 0:
            os.close(sock.detach())

    def _on_data_available(self, data_in: bytes) -> None:
        if self._on_deliveries is None:
            super()._on_data_available(data_in)
            return
        self._frame_buffer += data_in
        while self._frame_buffer:
            deliveries, length = cut_deliveries(self._frame_buffer)
            if deliveries:
                self._trim_frame_buffer(length)
                self._on_deliveries(deliveries)
                continue
            consumed, frame_value = self._read_frame()
            if not frame_value:
                break
            self._trim_frame_buffer(consumed)
            self._process_frame(frame_value)

    def _read_frame(self) -> tuple[int, Any]:
        """Read the next frame. Headers that pika cannot decode become none: they would end every new connection."""
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


class ChannelListener(Protocol):
    """What a connection thread tells the user of its channel: a confirm channel or a subscription."""

    def on_connected(self, connection: PikaConnection) -> None:
        """Note a new connection; its channel opens next."""

    def on_channel_open(self, channel: Channel) -> None:
        """Set up a new channel and call `mark_ready` when that is done."""

    def on_channel_lost(self, error: Exception) -> None:
        """Note that a ready channel is gone: nothing in flight on it gets an answer."""

    def on_refused(self, error: DeliveryError) -> None:
        """Report an error that another attempt at once does not change, to all who wait."""

    def needs_channel(self) -> bool:
        """Tell whether a channel is still needed."""


class ConnectionThread:
    """
    A daemon thread with one connection and one channel, opened when needed and opened again after a failure.

    The thread starts with the first `call_soon`. Attempts to connect back off with jitter while the
    listener needs a channel. pika answers heartbeats on this thread, however long handlers run. All
    calls of the listener, and of `on_deliveries`, come from this thread.
    """

    def __init__(
        self, parameters: Parameters, name: str, listener: ChannelListener, on_deliveries: OnDeliveries | None = None
    ) -> None:
        self.ready: bool = False
        #: Why there is no channel.
        self.last_error: DeliveryError | None = None
        self.address: str = address_of(parameters)
        self.connection: PikaConnection | None = None
        self._parameters = parameters
        self._name = name
        self._listener = listener
        self._on_deliveries = on_deliveries
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: Any = None
        self._channel: Channel | None = None
        self._retry: object = None
        self._attempts = 0
        self._closing = False

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` on this thread. Any thread may ask for it. Raises RuntimeError if no thread can start."""
        if self._thread is None:
            self._start()
        if self._loop is not None:
            self._loop.add_callback_threadsafe(callback)

    def call_later(self, delay: float, callback: Callable[[], None]) -> object:
        """Call `callback` in `delay` seconds. Only for this thread."""
        return self._loop.call_later(delay, callback)

    def connect(self) -> None:
        """Open connection and channel, unless an attempt runs or backs off. Only for this thread."""
        if self.ready or self._closing or self._retry is not None:
            return
        if self.connection is None:
            self.connection = PikaConnection(
                self._parameters,
                on_deliveries=self._on_deliveries,
                on_open_callback=self._on_open,
                on_open_error_callback=self._on_close,
                on_close_callback=self._on_close,
                custom_ioloop=self._loop,
            )
        elif self._channel is None and self.connection.is_open:
            self._open_channel()

    def mark_ready(self) -> None:
        """Note that the listener has set up the channel."""
        self.ready = True
        self.last_error = None
        self._attempts = 0

    def reconnect(self, error: Exception) -> None:
        """Drop the connection without waiting for the broker, and make a new one if the listener needs it."""
        if self.connection is not None:
            self.connection.abort(error)

    def close(self, timeout: float) -> None:
        """Close the connection, regularly within `timeout` seconds, else by force, and end the thread."""
        with self._lock:
            self._closing = True
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        self._loop.add_callback_threadsafe(self._close)
        thread.join(max(0.0, timeout))
        if thread.is_alive():
            self._loop.add_callback_threadsafe(self._abort)
            thread.join(0.5)

    def leave_to_parent(self) -> None:
        """Give up the parent's connection in a forked child, without touching it."""
        if self.connection is not None:
            self.connection.drop_socket()
        # The garbage collector must not finalize what belongs to the parent.
        _left_to_parent.append(self)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closing:
                self._loop = IOLoop()
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()
                self._thread = thread

    @quiet_pika()
    def _run(self) -> None:
        finished = False
        while not finished:
            loop = self._loop
            try:
                loop.start()
                finished = True
            except Exception as error:
                # Callers would wait in vain if this thread died.
                logger.warning(
                    "the I/O thread of RabbitMQ at %s failed and reconnects: %s", self.address, error, exc_info=True
                )
                self._start_over(error)
            loop.close()

    def _start_over(self, error: Exception) -> None:
        """Take a new loop and a new connection: the state of the old ones is unknown."""
        connection, self.connection, self._channel = self.connection, None, None
        if connection is not None:
            connection.drop_socket()
        self._loop, self._retry = IOLoop(), None
        self.ready = True
        self._on_lost(error)

    def _on_open(self, connection: PikaConnection) -> None:
        if self._closing:
            connection.close()
        else:
            connection.tune()
            self._listener.on_connected(connection)
            self._open_channel()

    def _on_close(self, connection: PikaConnection, error: Exception) -> None:
        if connection is self.connection:
            self.connection = self._channel = None
            self._on_lost(error)

    def _open_channel(self) -> None:
        assert self.connection is not None
        self._channel = self.connection.channel(CHANNEL, on_open_callback=self._on_channel_open)
        self._channel.add_on_close_callback(self._on_channel_closed)

    def _on_channel_open(self, channel: Channel) -> None:
        if not self._closing:
            self._listener.on_channel_open(channel)

    def _on_channel_closed(self, channel: Channel, error: Exception) -> None:
        if channel is not self._channel or self.connection is None or not self.connection.is_open:
            # The connection closes as well, and its own callback reports it.
            return
        self._channel = None
        if self.ready:
            self.ready = False
            self._listener.on_channel_lost(error)
            # pika forgets the channel only after this callback.
            self.call_later(0, self._connect_if_needed)
        else:
            self.last_error = delivery_error(error, self.address)
            self._listener.on_refused(self.last_error)

    def _on_lost(self, error: Exception) -> None:
        was_ready, self.ready = self.ready, False
        if self._closing:
            self._loop.stop()
            return
        self.last_error = delivery_error(error, self.address)
        if was_ready:
            logger.info("lost the connection to RabbitMQ, connecting again if it is needed: %s", self.last_error)
            self._listener.on_channel_lost(error)
        if is_permanent(error):
            self._listener.on_refused(self.last_error)
        else:
            self._attempts += 1
            self._retry = self.call_later(exponential_delay(self._attempts, _BACKOFF, _BACKOFF_MAX), self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._connect_if_needed()

    def _connect_if_needed(self) -> None:
        if self._listener.needs_channel():
            self.connect()
        else:
            self._attempts = 0

    def _close(self) -> None:
        if self.connection is None:
            self._loop.stop()
        elif self.connection.is_open:
            self.connection.close()
        elif not (self.connection.is_closing or self.connection.is_closed):
            # pika cannot close a connection that is not open yet.
            self.connection.abort(ConnectionAbortedError("closed before it was open"))

    def _abort(self) -> None:
        if self.connection is None:
            self._loop.stop()
        else:
            self.connection.abort(ConnectionAbortedError("the broker did not answer while closing"))


_left_to_parent: list[ConnectionThread] = []


class LivenessProbe:
    """
    Drops a connection that is silent for `timeout` seconds while an answer is due.

    Heartbeats would need a minute. After half the time the probe opens a second channel, which a live broker
    grants at once. A broker that is only slow to confirm keeps its connection: a reconnect would send every
    message again. Only for the connection thread.
    """

    def __init__(self, thread: ConnectionThread, timeout: float, answer_due: Callable[[], bool]) -> None:
        self._thread = thread
        self._timeout = timeout
        self._answer_due = answer_due
        self._watched: PikaConnection | None = None
        self._heard_at = 0.0
        self._heard_bytes = 0
        self._asked = False

    def start(self) -> None:
        """Watch the current connection while answers are due."""
        connection = self._thread.connection
        if connection is not None and connection is not self._watched and self._answer_due():
            self._watched = connection
            self._note_activity(connection)
            self._thread.call_later(self._timeout / 4, partial(self._check, connection))

    def _check(self, connection: PikaConnection) -> None:
        if connection is not self._watched:
            return
        if connection is not self._thread.connection or not self._answer_due():
            self._watched = None
            return
        if connection.bytes_received != self._heard_bytes:
            self._note_activity(connection)
        silence = time.monotonic() - self._heard_at
        # This check may come late, when other threads had the interpreter: the broker is always asked first.
        if silence >= self._timeout and self._asked:
            self._watched = None
            self._thread.reconnect(TimeoutError("no answer"))
            return
        if silence >= self._timeout / 2 and not self._asked:
            self._asked = True
            # A broker that allows a single channel is watched without a question.
            with contextlib.suppress(exceptions.AMQPError):
                connection.channel(on_open_callback=lambda channel: channel.close())
        self._thread.call_later(self._timeout / 4, partial(self._check, connection))

    def _note_activity(self, connection: PikaConnection) -> None:
        self._heard_at, self._heard_bytes = time.monotonic(), connection.bytes_received
        self._asked = False
