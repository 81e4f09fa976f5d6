"""The project with Django and Celery of docs/examples, on a worker with forked processes."""

from __future__ import annotations

import os
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import pytest
from celery import Celery

from tests.integrations.processes import EXAMPLES, environment, run, serving
from tests.servers.proxy import TcpProxy
from tests.servers.rabbitmq import bound_queue, drained
from tests.waiting import eventually

PROJECT = EXAMPLES / "django_celery"

# Applications whose worker processes have one more handler.
HANDLER = """
import os, pathlib, signal, threading
from celery.signals import worker_process_init
from config.celery import app

MARKERS = pathlib.Path(os.environ["MARKERS"])

@worker_process_init.connect
def bind(**_):
    import cqrs_sync as cqrs
    from orders.handlers import events
    from orders.messages import OrderPlaced
"""

DYING = f"""{HANDLER}
    @events.bind
    def die(event: OrderPlaced) -> None:
        if not (MARKERS / "died").exists():
            (MARKERS / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""

SLOW = f"""{HANDLER}
    @events.durable("slow")
    def slow(event: OrderPlaced) -> None:
        (MARKERS / "begun").touch()
        threading.Event().wait(1.5)
        (MARKERS / "finished").touch()
"""

PLACING = """
import os, pathlib
os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
import django
django.setup()
from cqrs_sync.testing.waiting import eventually
from orders.mediator import mediator
from orders.messages import PlaceOrder

with mediator:
    mediator.send(PlaceOrder("ada", "book"))
    backlog = mediator.relay.outbox.backlog
    eventually(lambda: any(each.target == "request-invoice" and each.tried for each in backlog().targets), 30)
    pathlib.Path("refused").touch()
    eventually(lambda: backlog().waiting == 0, 30)
"""


@pytest.fixture
def project(tmp_path, rabbitmq_url, exchange, redis_url):
    """Environment variables of the project, with a database that is migrated and a queue for its events."""
    env = environment(
        PROJECT,
        tmp_path,
        HOME=str(tmp_path),
        MARKERS=str(tmp_path),
        SQLITE_FILE=str(tmp_path / "shop.sqlite3"),
        REDIS_URL=redis_url,
        RABBITMQ_URL=rabbitmq_url,
        RABBITMQ_EXCHANGE=exchange,
    )
    run(["manage.py", "migrate", "-v", "0"], PROJECT, env)
    with bound_queue(rabbitmq_url, exchange, "orders"):
        yield env


@contextmanager
def worker(env, directory, application="config"):
    arguments = ["-m", "celery", "-A", application, "worker", "--pool=prefork", "--concurrency=2", "--loglevel=INFO"]
    arguments += ["--without-mingle", "--without-gossip", "--without-heartbeat"]
    with serving(arguments, directory, env, directory / "log") as server:
        eventually(lambda: server.says("ready."), 30)
        yield server


def called(redis_url, name, *calls):
    """Call a task as often as there are arguments; return what the calls return."""
    with Celery(broker=redis_url, backend=redis_url, set_as_current=False) as app:
        results = [app.send_task(f"orders.tasks.{name}", arguments) for arguments in calls]
        try:
            return [result.get(timeout=30) for result in results]
        finally:
            # Celery leaves the connections that it waits on to the garbage collector, which warns.
            app.backend.result_consumer.stop()
            app.backend.client.connection_pool.disconnect()


def invoices(directory):
    """How many invoices the orders have, by their numbers."""
    with closing(sqlite3.connect(directory / "shop.sqlite3")) as connection:
        return dict(connection.execute("SELECT id, invoices FROM orders_order"))


@pytest.mark.parametrize(("database", "result"), [("sqlite", "OK (skipped=1)"), ("postgresql", "OK")])
def test_the_projects_own_tests_pass(database, result, request, tmp_path):
    """Tasks run eagerly in a test that records; a view does once what is sent with one Idempotency-Key."""
    # Tests must not reach the broker of the settings.
    names = {"SQLITE_FILE": str(tmp_path / "shop.sqlite3"), "RABBITMQ_URL": "amqp://127.0.0.1:1/"}
    if database == "postgresql":
        url = urlsplit(request.getfixturevalue("postgresql_url"))
        # The database need not exist: tests make their own, named after it.
        names |= {"PGHOST": url.hostname, "PGPORT": str(url.port or 5432), "PGUSER": url.username or "postgres"}
        names |= {"PGPASSWORD": url.password or "", "PGDATABASE": f"cqrs_celery_{os.getpid()}"}
    output = run(["-W", "error", "manage.py", "test", "--noinput"], PROJECT, environment(**names))

    assert re.findall(r"^(Ran \d+ tests|OK.*|FAILED.*)", output, re.MULTILINE) == ["Ran 9 tests", result]


@pytest.mark.broker
def test_a_task_places_an_order_and_another_task_invoices_it(project, redis_url, rabbitmq_url, exchange, tmp_path):
    """Notification events reach RabbitMQ, and what is old is purged by a task."""
    with bound_queue(rabbitmq_url, exchange, "orders") as queue:
        with worker(project, tmp_path):
            numbers = called(redis_url, "place_order", *[(f"user-{n}", "book") for n in range(10)])
            eventually(lambda: invoices(tmp_path) == dict.fromkeys(numbers, 1), 30)
            assert called(redis_url, "purge", ()) == [None]
        messages = drained(rabbitmq_url, queue)

    assert len(messages) == 10


@pytest.mark.broker
def test_a_process_that_dies_after_the_commit_does_not_place_an_order_twice(project, redis_url, tmp_path):
    """Celery runs the task again, with the same id; the inbox knows the id, and gives the same number."""
    (tmp_path / "dying.py").write_text(DYING)
    with worker(project, tmp_path, "dying") as server:
        (number,) = called(redis_url, "place_order", ("ada", "book"))
        assert "WorkerLostError" in server.log()

    assert (tmp_path / "died").exists()
    assert list(invoices(tmp_path)) == [number]


@pytest.mark.broker
def test_a_task_is_sent_when_celerys_broker_is_back(project, redis_url, tmp_path):
    """The command does not wait for it, and the durable handler tries again."""
    (tmp_path / "placing.py").write_text(PLACING)
    url = urlsplit(redis_url)
    proxy = TcpProxy(url.hostname, url.port or 6379)
    with proxy, ThreadPoolExecutor(1) as others, worker(project, tmp_path):
        proxy.cut()
        behind = f"redis://127.0.0.1:{proxy.port}{url.path}"
        placing = others.submit(run, ["placing.py"], tmp_path, {**project, "REDIS_URL": behind})
        eventually((tmp_path / "refused").exists, 30)
        assert invoices(tmp_path) == {1: 0}
        proxy.restore()
        placing.result()
        eventually(lambda: invoices(tmp_path) == {1: 1}, 30)


@pytest.mark.broker
def test_a_worker_that_is_told_to_stop_finishes_its_durable_handlers(project, redis_url, tmp_path):
    """`worker_process_shutdown` closes the mediator of each process."""
    (tmp_path / "slow.py").write_text(SLOW)
    with worker(project, tmp_path, "slow"):
        called(redis_url, "place_order", ("ada", "book"))
        eventually((tmp_path / "begun").exists, 30)

    assert (tmp_path / "finished").exists()
