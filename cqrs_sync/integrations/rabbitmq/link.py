"""One connection with one channel, kept by a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from pika.adapters.select_connection import IOLoop
from pika.channel import Channel
from pika.connection import Parameters

from cqrs_sync.errors import DeliveryError
from cqrs_sync.integrations.rabbitmq.connection import Connection
from cqrs_sync.integrations.rabbitmq.failures import delivery_error, is_final
from cqrs_sync.integrations.rabbitmq.settings import address_of
from cqrs_sync.retry import exponential_delay

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
