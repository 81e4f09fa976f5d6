"""The Django project of docs/examples: its own tests, and its view behind gunicorn."""

from __future__ import annotations

import os
import re
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest

from tests.integrations.processes import EXAMPLES, environment, run, serving
from tests.servers import answers
from tests.servers.rabbitmq import bound_queue, drained
from tests.waiting import eventually

PROJECT = EXAMPLES / "django_project"

# The example needs SQLite only. If there is a PostgreSQL, the tests use it as well: its
# connections and transactions are the real thing.
DATABASES = ["sqlite"]
if find_spec("psycopg") and (answers(os.environ.get("PGHOST", "127.0.0.1"), int(os.environ.get("PGPORT", "5432")))):
    DATABASES.append("postgresql")

# Tests must not reach the broker of the settings.
NO_BROKER = "amqp://127.0.0.1:1/"

WARM = """
from config.wsgi import application
from django.db import connections

from meetings.mediator import mediator
from meetings.messages import JoinMeeting

# With a deadline: its handlers run on the pool of this process, the parent of the workers.
mediator.send(JoinMeeting("the parent", "warm-up"), timeout=10)
mediator.relay.quiesce()
connections.close_all()
"""


def variables(database, directory):
    """Environment variables with the project's database, which no other run uses."""
    if database == "sqlite":
        return {"SQLITE_FILE": str(directory / "meetings.sqlite3")}
    return {
        "PGHOST": os.environ.get("PGHOST", "127.0.0.1"),
        "PGUSER": os.environ.get("PGUSER", "postgres"),
        # It need not exist: tests make their own database, named after it.
        "PGDATABASE": f"cqrs_{os.getpid()}",
    }


@pytest.mark.parametrize("database", DATABASES)
def test_the_projects_own_tests_pass(database, tmp_path):
    """Events leave after the request's transaction has committed, and never after a rollback."""
    arguments = ["-W", "error", "manage.py", "test", "--noinput"]
    output = run(arguments, PROJECT, environment(RABBITMQ_URL=NO_BROKER, **variables(database, tmp_path)))

    assert re.findall(r"^(Ran \d+ tests|OK|FAILED)", output, re.MULTILINE) == ["Ran 9 tests", "OK"]


@pytest.mark.parametrize("database", DATABASES)
def test_the_projects_tests_for_pytest_pass(database, tmp_path):
    """Modules of both kinds share a mediator that is closed before the test database is dropped."""
    arguments = ["-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--create-db"]
    output = run(arguments, PROJECT, environment(RABBITMQ_URL=NO_BROKER, **variables(database, tmp_path)))

    assert "12 passed" in output


@pytest.mark.broker
@pytest.mark.parametrize("application", ["config.wsgi", "warm"])
def test_preloaded_workers_publish_what_they_commit(application, rabbitmq_url, exchange, tmp_path):
    """Two workers forked from one parent announce what they commit, whether or not the parent has used the mediator."""
    (tmp_path / "warm.py").write_text(WARM)
    env = environment(
        tmp_path,
        HOME=str(tmp_path),
        RABBITMQ_URL=rabbitmq_url,
        RABBITMQ_EXCHANGE=exchange,
        DJANGO_SETTINGS_MODULE="config.settings",
        **variables("sqlite", tmp_path),
    )
    run(["manage.py", "migrate", "-v", "0"], PROJECT, env)
    arguments = ["-m", "gunicorn", "--preload", "--workers", "2", "--bind", "127.0.0.1:0", "--access-logfile", "-"]
    arguments += ["--access-logformat", "%(t)s served by %(p)s %(M)s ms", f"{application}:application"]
    with bound_queue(rabbitmq_url, exchange, "meetings") as queue:
        with serving(arguments, PROJECT, env, tmp_path / "log") as server:
            eventually(lambda: server.says("Listening at"), 30)
            url = re.search(r"http://127\.0\.0\.1:\d+", server.log())[0]
            rounds = 0
            workers = set()
            while len(workers) < 2 and rounds < 20:
                rounds += 1
                assert joined(url, f"meeting-{rounds}") == [200, 200, 200, 403]
                workers = set(re.findall(r"served by (\S+)", server.log()))
        # Another process may take what a worker did not finish.
        run(["manage.py", "cqrs_relay", "--drain"], PROJECT, env)
        messages = drained(rabbitmq_url, queue)

    expected = 3 * rounds + (application == "warm")
    assert len(workers) == 2
    assert len({properties.message_id for properties, _ in messages}) == len(messages) == expected
    assert welcomed(tmp_path / "meetings.sqlite3") == expected


def joined(url, meeting_id):
    """Let four users join at once a meeting that has three seats; return the responses."""
    with ThreadPoolExecutor(4) as clients:
        return sorted(clients.map(lambda user_id: post(f"{url}/meetings/{meeting_id}/join", user=user_id), "abcd"))


def post(url, **fields):
    request = urllib.request.Request(url, urllib.parse.urlencode(fields).encode())  # noqa: S310 -- http, to ourselves
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 -- as above
            return response.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def welcomed(file):
    connection = sqlite3.connect(file)
    try:
        return connection.execute("SELECT count(*) FROM meetings_participation WHERE welcomed").fetchone()[0]
    finally:
        connection.close()
