"""
Where Kafka is, whichever client connects to it.

It is here and not in an integration because two of them need it and they do not know each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qsl, unquote

import attrs

from cqrs_sync.errors import ConfigurationError

#: Kafka's security protocols, without and with credentials.
_SECURITY = {"kafka": ("PLAINTEXT", "SASL_PLAINTEXT"), "kafkas": ("SSL", "SASL_SSL")}


@attrs.frozen
class KafkaAddress:
    """Servers, and what a URL says besides, which is nothing where it was none."""

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

        Raises ConfigurationError for a URL of something else, or of no host.
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
