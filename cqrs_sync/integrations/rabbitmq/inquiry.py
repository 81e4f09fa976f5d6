"""Asking the broker something and waiting for the answer, on a connection that is closed afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from pika import exceptions
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel
from pika.connection import Parameters

from cqrs_sync.errors import BrokerUnavailable
from cqrs_sync.integrations.rabbitmq.connection import Connection
from cqrs_sync.integrations.rabbitmq.failures import words_for
from cqrs_sync.integrations.rabbitmq.places import Answer
from cqrs_sync.integrations.rabbitmq.settings import address_of

#: Seconds for a goodbye.
_GOODBYE = 1.0

#: Asks on the channel; the answer is given to the callback.
Question = Callable[[Channel, Answer], None]


class Inquiry:
    """
    A conversation in the caller's thread that ends by `until`; whoever makes it uses `with`.

    A refusal ends the channel, not the conversation: the next question has a new one.
    Entering and asking raise BrokerUnavailable.
    """

    def __init__(self, parameters: Parameters, until: float) -> None:
        self._parameters = parameters
        self._until = until
        self._loop: Any = IOLoop()
        self._connection: Any = None
        self._channel: Channel | None = None
        self._gone: Exception | None = None

    def ask(self, question: Question) -> Any:
        """Return the answer's method, or pika's ChannelClosedByBroker where the broker refuses."""
        if self._channel is None:
            self._channel = self._open_channel()
        channel, answers = self._channel, []
        channel.add_on_close_callback(lambda _, error: answers.append(error))
        question(channel, answers.append)
        self._run(lambda: bool(answers))
        answer = answers[0]
        if isinstance(answer, Exception):
            self._channel = None
            return answer
        return answer.method

    def __enter__(self) -> Self:
        self._loop.activate_poller()
        try:
            self._connection = Connection(
                self._parameters,
                on_open_error_callback=self._on_gone,
                on_close_callback=self._on_gone,
                custom_ioloop=self._loop,
            )
            self._run(lambda: self._connection.is_open)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self._end()

    def _open_channel(self) -> Channel:
        opened: list[Channel] = []
        self._connection.channel(on_open_callback=opened.append)
        self._run(lambda: bool(opened))
        return opened[0]

    def _run(self, is_done: Callable[[], bool]) -> None:
        """Let pika work until it is done."""
        while not is_done():
            if self._gone is None and time.monotonic() >= self._until:
                self._gone = TimeoutError("no answer")
            if self._gone is not None:
                address = address_of(self._parameters)
                raise BrokerUnavailable(f"{words_for(self._gone)} (RabbitMQ at {address})") from self._gone
            self._turn(self._until)

    def _turn(self, until: float) -> None:
        # The poller waits for timers: this one ends the wait.
        timer = self._loop.call_later(max(0.0, until - time.monotonic()), lambda: None)
        self._loop.poll()
        self._loop.process_timeouts()
        self._loop.remove_timeout(timer)

    def _end(self) -> None:
        until = time.monotonic() + _GOODBYE
        connection = self._connection
        # pika trips over closing what is not open yet.
        if connection is not None and connection.is_open and self._gone is None:
            connection.close()
            while self._gone is None and time.monotonic() < until:
                self._turn(until)
        if connection is not None and not connection.is_closed:
            connection.abort(exceptions.ConnectionClosed(320, "not needed any more"))
            self._turn(time.monotonic())
        self._loop.deactivate_poller()
        self._loop.close()

    def _on_gone(self, _: Any, error: Exception) -> None:
        self._gone = error
