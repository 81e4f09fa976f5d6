"""Where Kafka is."""

from __future__ import annotations

from cqrs_sync.kafka.settings import KafkaAddress


def test_what_is_secret_in_a_url_is_in_no_repr():
    address = KafkaAddress.of("kafkas://me:hidden%21@one:1,two:2?ssl_password=hidden%21")

    assert ("one:1", "two:2") == address.servers
    assert ("me", "hidden!") == address.credentials
    assert (("ssl_password", "hidden!"),) == address.options
    assert "hidden" not in repr(address)


def test_servers_without_a_url_say_nothing_else():
    assert KafkaAddress(("one:1", "two:2")) == KafkaAddress.of("one:1, two:2") == KafkaAddress.of(["one:1", "two:2"])
