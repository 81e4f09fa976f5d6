"""pika's connection, and the few places where we reach below its public surface."""

from __future__ import annotations

# Resolving a host name imports it: a child forked meanwhile would wait for that import for ever.
import encodings.idna  # noqa: F401
import os
import socket
from typing import Any

import pika
from pika import frame, spec
from pika.adapters import select_connection

from cqrs_sync.integrations.rabbitmq.reading import Receiver, cut

#: A pika without this hook still works, message by message through its public `basic_publish`.
CAN_EMIT = hasattr(select_connection.SelectConnection, "_adapter_emit_data")

_PLAIN = "_AsyncPlaintextTransport"
_READ = 65536
_HEADER = 2


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
            if data[0] != _HEADER:
                raise
            channel, size = int.from_bytes(data[1:3], "big"), int.from_bytes(data[3:7], "big")
            body_size = int.from_bytes(data[11:19], "big")
            header = frame.Header(channel, body_size, pika.BasicProperties())
            return size + spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE, header
