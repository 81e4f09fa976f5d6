"""Where Kafka is, and what both clients do with options."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, unquote

import attrs

from cqrs_sync.errors import ConfigurationError

Options: TypeAlias = "Mapping[str, Any]"

#: Kafka's security protocols, without and with credentials.
_SECURITY = {"kafka": ("PLAINTEXT", "SASL_PLAINTEXT"), "kafkas": ("SSL", "SASL_SSL")}


@attrs.frozen
class KafkaAddress:
    """Servers, and what a URL says besides."""

    servers: tuple[str, ...]
    security_protocol: str | None = None
    #: User and password.
    credentials: tuple[str, str] | None = attrs.field(default=None, repr=False)
    #: Options of the client, as text; they may hold passwords.
    options: tuple[tuple[str, str], ...] = attrs.field(default=(), repr=False)

    @classmethod
    def of(cls, url: str | Sequence[str]) -> KafkaAddress:
        """
        Read `"host:port,host:port"`, a list of `"host:port"`, or `kafka://user:password@host:port?option=value`.

        Raises ConfigurationError for another scheme, a URL without a host, and what names no server.
        """
        scheme, separator, rest = url.partition("://") if isinstance(url, str) else ("", "", "")
        if not separator:
            return cls(_servers(url))
        if scheme not in _SECURITY:
            raise ConfigurationError(f"{scheme}:// is not Kafka: write kafka://host:port, or kafkas:// for TLS")
        authority, _, query = rest.partition("?")
        secret, _, hosts = authority.rstrip("/").rpartition("@")
        if not hosts:
            raise ConfigurationError(f"{scheme}:// names no host: write {scheme}://host:port")
        plain, authenticated = _SECURITY[scheme]
        user, _, password = secret.partition(":")
        return cls(
            tuple(hosts.split(",")),
            authenticated if secret else plain,
            (unquote(user), unquote(password)) if secret else None,
            tuple(parse_qsl(query)),
        )


def _servers(listed: str | Sequence[str]) -> tuple[str, ...]:
    servers = listed.split(",") if isinstance(listed, str) else listed
    if not isinstance(servers, (list, tuple)) or not servers:
        raise ConfigurationError(
            'the url of a Kafka broker is "kafka://host:9092", "host:9092", or a list of "host:9092"'
        )
    for server in servers:
        if not isinstance(server, str) or not server.strip() or "/" in server or "@" in server:
            # It may have a password.
            raise ConfigurationError("each server in a list of Kafka servers is host:9092: write a URL as one string")
    return tuple(server.strip() for server in servers)


@attrs.frozen
class KafkaSettings:
    """Where the brokers are, and the complete options for both kinds of client."""

    servers: tuple[str, ...]
    # They may hold passwords.
    producer: Options = attrs.field(repr=False)
    consumer: Options = attrs.field(repr=False)
    #: The largest record, in bytes, that can be published.
    largest_record: int


def refuse_reserved(name: str, reserved: Mapping[str, str]) -> None:
    """Raise ConfigurationError for an option that users cannot set, with the reason."""
    if name in reserved:
        raise ConfigurationError(f"the option {name!r} cannot be set: {reserved[name]}")


def unknown_option(client: str, name: str, known: Iterable[str]) -> ConfigurationError:
    """Return the error for an option that the client does not have, with a near name."""
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f", did you mean {near[0]!r}" if near else ""
    return ConfigurationError(f"{client} has no option {name!r}{hint}")


def milliseconds(seconds: float) -> int:
    """Return seconds as the clients want them."""
    return round(seconds * 1000)
