"""Keep credentials out of kafka-python's log: at DEBUG it writes whatever goes over the wire."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from kafka.protocol.sasl import SaslAuthenticateRequest, SaslBytesRequest

#: The loggers that write requests and frames.
_LOGGERS = ("kafka.net.connection", "kafka.protocol.parser")
_SECRETS = ("sasl_plain_password",)


def keep_secret(options: Mapping[str, Any]) -> None:
    """Censor what these options authenticate with, from now on."""
    if not str(options.get("security_protocol", "")).startswith("SASL"):
        return
    _censor.secrets.update(str(options[name]).encode() for name in _SECRETS if options.get(name))
    for name in _LOGGERS:
        # Adding it a second time does nothing.
        logging.getLogger(name).addFilter(_censor)


class _Censor(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.secrets: set[bytes] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(self._censored(argument) for argument in record.args)
        return True

    def _censored(self, argument: object) -> object:
        if isinstance(argument, (SaslAuthenticateRequest, SaslBytesRequest)):
            return f"<{type(argument).__name__}>"
        if isinstance(argument, (bytes, bytearray)) and self._is_secret(argument):
            return f"<{len(argument)} bytes>"
        return argument

    def _is_secret(self, frame: bytes | bytearray) -> bool:
        # A token is in no option: a frame that authenticates tells it by its third and fourth byte after the length.
        authenticates = int.from_bytes(frame[4:6], "big") == SaslAuthenticateRequest.API_KEY
        return authenticates or any(secret in frame for secret in self.secrets)


_censor = _Censor()
