"""Redis for tests: a database of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.servers import answers, free_port, missing
from tests.waiting import eventually

_HOW = (
    "set CQRS_TEST_REDIS_URL, start one on 127.0.0.1:6379, or install the redis-server package for a server of our own"
)
_MARK = "cqrs-sync-tests"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis that others may be using as well."""
    url = os.environ.get("CQRS_TEST_REDIS_URL")
    if url:
        yield url
    elif answers("127.0.0.1", 6379):
        yield "redis://127.0.0.1:6379"
    elif shutil.which("redis-server") is None:
        missing("Redis", _HOW)
    else:
        yield from _started(tmp_path_factory.mktemp("redis"))


@pytest.fixture
def redis_url(redis_server: str) -> Iterator[str]:
    """The URL of a database that was empty, and is emptied again."""
    import redis  # noqa: PLC0415 -- this module is also loaded where no test needs Redis

    for number in range(15, -1, -1):
        url = urlunsplit(urlsplit(redis_server)._replace(path=f"/{number}"))
        with redis.Redis.from_url(url) as database:
            if database.dbsize() == 0 and database.set(_MARK, uuid.uuid4().hex, nx=True):
                try:
                    yield url
                finally:
                    database.flushdb()
                return
    missing("an empty database in Redis", f"empty one of those at {redis_server}")


def _started(directory: Path) -> Iterator[str]:
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        eventually(lambda: answers("127.0.0.1", port))
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
