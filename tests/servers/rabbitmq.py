"""RabbitMQ for tests: a running server, and a node of our own that tests stop, kill and starve."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest

from cqrs_sync.broker import Group
from tests.servers import answers, free_port, missing
from tests.servers.proxy import TcpProxy
from tests.waiting import eventually

# pytest loads this file even if only the core is installed.
with contextlib.suppress(ImportError):
    import pika
    from pika.adapters.blocking_connection import BlockingChannel

    from cqrs_sync.integrations.rabbitmq.topology import topology_of

_HOW = (
    "set CQRS_TEST_RABBITMQ_URL, start one on 127.0.0.1:5672 (guest/guest), "
    "or install the rabbitmq-server package for a node of our own"
)
#: Distributions keep the scripts where only root looks.
_PLACES = os.pathsep.join(("/usr/lib/rabbitmq/bin", "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"))
_BOOT = 90.0


@pytest.fixture(scope="session")
def rabbitmq_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a RabbitMQ that others may be using as well."""
    url = os.environ.get("CQRS_TEST_RABBITMQ_URL")
    if url:
        yield url
    elif answers("127.0.0.1", 5672):
        yield "amqp://guest:guest@127.0.0.1:5672/"
    elif _installed("rabbitmq-server") is None:
        missing("RabbitMQ", _HOW)
    else:
        with OwnRabbitMQ(tmp_path_factory.mktemp("rabbitmq")) as node:
            yield node.url


@pytest.fixture(scope="session")
def own_rabbitmq_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRabbitMQ]:
    """The node behind `own_rabbitmq`, booted once."""
    if _installed("rabbitmq-server") is None:
        missing("an installed rabbitmq-server", "install the rabbitmq-server package")
    with OwnRabbitMQ(tmp_path_factory.mktemp("own-rabbitmq")) as node:
        yield node


@pytest.fixture
def own_rabbitmq(own_rabbitmq_node: OwnRabbitMQ) -> OwnRabbitMQ:
    """A RabbitMQ that no other process uses; running, whatever the test before did to it."""
    own_rabbitmq_node.start()
    return own_rabbitmq_node


@pytest.fixture
def exchange(rabbitmq_url: str) -> Iterator[str]:
    """The name of an exchange for one test."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    with opened(rabbitmq_url) as channel:
        channel.exchange_delete(name)


class OwnRabbitMQ:
    """
    A RabbitMQ node of its own name, ports and data directory, to be stopped, started and killed.

    It takes messages up to `max_bytes`. Data survives a stop and a kill.
    """

    max_bytes = 2 * 1024 * 1024

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        tls_port = free_port()
        self.tls_url = f"amqps://guest:guest@localhost:{tls_port}/"
        #: The certificate to trust for `tls_url`.
        self.authority = str(directory / "certificate.pem")
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        (directory / "rabbitmq.conf").write_text(
            f"listeners.tcp.local = 127.0.0.1:{self.port}\n"
            f"max_message_size = {self.max_bytes}\n"
            "disk_free_limit.absolute = 10MB\n"
            f"listeners.ssl.local = 127.0.0.1:{tls_port}\n"
            f"ssl_options.certfile = {self.authority}\n"
            f"ssl_options.keyfile = {directory / 'key.pem'}\n"
        )
        _certify(directory)
        self._environment = {
            **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
            # The cookie is in HOME: with its own cookie, this node talks to no other.
            "HOME": str(directory),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"cqrs-{uuid.uuid4().hex[:8]}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_PID_FILE": str(directory / "pid"),
        }

    def start(self) -> None:
        """Boot the node unless it runs, and wait until it answers."""
        if self._process is not None and self._process.poll() is None:
            return
        server = _installed("rabbitmq-server")
        assert server is not None
        with (self._directory / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [server], env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        eventually(self._boots, _BOOT)

    def stop(self) -> None:
        """End the node as an operator does, and wait until it is gone."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the node as a power cut does."""
        self._end(signal.SIGKILL)

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl` on this node and return its output."""
        command = _installed("rabbitmqctl")
        assert command is not None
        done = subprocess.run(
            [command, "--quiet", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def close_all_connections(self) -> None:
        """Have the server close every connection."""
        self.ctl("close_all_connections", "closed by a test")

    def suspend_queue(self, queue: str) -> None:
        """Let a queue confirm nothing until it is resumed."""
        self._tell_queue(queue, "suspend")

    def resume_queue(self, queue: str) -> None:
        """Let a queue go on."""
        self._tell_queue(queue, "resume")

    def _tell_queue(self, queue: str, order: str) -> None:
        name = f'rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)'
        self.ctl("eval", f"{{ok, Q}} = rabbit_amqqueue:lookup({name}), sys:{order}(amqqueue:get_pid(Q)).")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _boots(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the node did not start: {(self._directory / 'output').read_text()[-2000:]}")
        if not answers("127.0.0.1", self.port):
            return False
        with contextlib.suppress(pika.exceptions.AMQPError), opened(self.url):
            return True
        return False

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        process.wait(_BOOT)
        # The script may end before the machine it started: then the port is still taken.
        eventually(lambda: not answers("127.0.0.1", self.port), _BOOT)


def via(proxy: TcpProxy, url: str) -> str:
    """The URL of the same broker, behind a proxy."""
    parts = urlsplit(url)
    credentials, _, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{credentials}@127.0.0.1:{proxy.port}").geturl()


def proxied(url: str) -> TcpProxy:
    """A proxy in front of a broker."""
    parts = urlsplit(url)
    return TcpProxy(parts.hostname or "127.0.0.1", parts.port or 5672)


@contextlib.contextmanager
def opened(url: str) -> Iterator[BlockingChannel]:
    """A channel of the plainest kind, to arrange and to look."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        yield connection.channel()
    finally:
        if connection.is_open:
            connection.close()


@contextlib.contextmanager
def bound_queue(url: str, exchange: str, *topics: str) -> Iterator[str]:
    """A durable queue bound to these topics. Exchange and queue are deleted afterwards."""
    queue = f"{exchange}.{uuid.uuid4().hex[:6]}"
    with opened(url) as channel:
        channel.exchange_declare(exchange, exchange_type="topic", durable=True)
        channel.queue_declare(queue, durable=True)
        for topic in topics:
            channel.queue_bind(queue, exchange, topic)
    try:
        yield queue
    finally:
        with opened(url) as channel:
            channel.queue_delete(queue)
            channel.exchange_delete(exchange)


def forget(url: str, exchange: str, *groups: Group) -> None:
    """Remove everything that groups have on a broker."""
    with opened(url) as channel:
        for group in groups:
            needed = topology_of(group, exchange, {})
            for queue in (needed.queue, needed.dead, *needed.retries.values()):
                channel.queue_delete(queue.name)
            channel.exchange_delete(needed.aside.name)
        channel.exchange_delete(exchange)


def drained(url: str, queue: str) -> list[tuple[pika.BasicProperties, bytes]]:
    """Take everything out of a queue."""
    taken: list[tuple[pika.BasicProperties, bytes]] = []
    with opened(url) as channel:
        channel.basic_qos(prefetch_count=500)
        # A queue that delivers nothing for a while may only be slow: its own count says when it is empty.
        while waiting := channel.queue_declare(queue, passive=True).method.message_count:
            for method, properties, body in channel.consume(queue, inactivity_timeout=60):
                assert method is not None, f"{waiting} messages of {queue} are not delivered"
                taken.append((properties, body))
                channel.basic_ack(method.delivery_tag)
                waiting -= 1
                if waiting == 0:
                    break
            channel.cancel()
    return taken


def _certify(directory: Path) -> None:
    """Make a self-signed certificate for localhost."""
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run(
        [*command.split(), "-keyout", directory / "key.pem", "-out", directory / "certificate.pem"],
        check=True,
        capture_output=True,
        timeout=60,
    )


def _installed(name: str) -> str | None:
    found = shutil.which(name) or shutil.which(name, path=_PLACES)
    if found is None:
        return None
    script = Path(found).resolve()
    # Debian's wrapper runs the script as the user rabbitmq, who may not read our directories.
    if script.name == "rabbitmq-script-wrapper":
        script = script.with_name(name)
    return str(script)
