"""Where the broker is and how to get in: a URL or pika's parameters become ours."""

from __future__ import annotations

import copy

import pika
from pika.connection import Parameters

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
