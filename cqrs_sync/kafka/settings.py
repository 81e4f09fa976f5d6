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
    def of(cls, servers_or_url: str | Sequence[str]) -> KafkaAddress:
        """
        Read `"host:port,host:port"`, a list of `"host:port"`, or `kafka://user:password@host:port?option=value`.

        Raises ConfigurationError for another scheme, or a URL without a host.
        """
        if not isinstance(servers_or_url, str):
            return cls(tuple(servers_or_url))
        scheme, separator, rest = servers_or_url.partition("://")
        if not separator:
            return cls(tuple(server.strip() for server in servers_or_url.split(",")))
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
