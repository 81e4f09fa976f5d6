"""The Celery tasks of docs/examples, on a worker with forked processes."""

from __future__ import annotations

import re

import pytest
from celery import Celery

from tests.integrations.processes import EXAMPLES, environment, serving
from tests.servers.rabbitmq import bound_queue, drained
from tests.waiting import eventually

PROJECT = EXAMPLES / "celery_project"

WARM = """
from tasks import *

mediator.send(JoinMeeting("the parent", "warm-up"), timeout=10)
"""


@pytest.mark.broker
@pytest.mark.parametrize("module", ["tasks", "warm"])
def test_a_task_is_done_when_its_events_are_confirmed(module, rabbitmq_url, exchange, redis_url, tmp_path):
    """Both processes of a worker publish, whether or not their parent has used the mediator it made."""
    (tmp_path / "warm.py").write_text(WARM)
    env = environment(PROJECT, tmp_path, REDIS_URL=redis_url, RABBITMQ_URL=rabbitmq_url, RABBITMQ_EXCHANGE=exchange)
    arguments = ["-m", "celery", "-A", module, "worker", "--pool=prefork", "--concurrency=2", "--loglevel=INFO"]
    arguments += ["--without-mingle", "--without-gossip", "--without-heartbeat"]
    with bound_queue(rabbitmq_url, exchange, "meetings") as queue:
        with serving(arguments, tmp_path, env, tmp_path / "log") as server:
            eventually(lambda: server.says("ready."), 30)
            rounds = 0
            processes = set()
            while len(processes) < 2 and rounds < 20:
                rounds += 1
                assert joined(redis_url, f"meeting-{rounds}") == [f"user-{n} is in meeting-{rounds}" for n in range(10)]
                processes = set(re.findall(r"ForkPoolWorker-(\d+)\] Task tasks.join", server.log()))
            # Confirmed means: in the queue by now, not some time later.
            messages = drained(rabbitmq_url, queue)
        late = drained(rabbitmq_url, queue)

    assert len(processes) == 2
    assert len({properties.message_id for properties, _ in messages}) == len(messages)
    assert len(messages) == 10 * rounds + (module == "warm")
    assert late == []


def joined(redis_url, meeting_id):
    """Send ten tasks at once; what they answered."""
    with Celery(broker=redis_url, backend=redis_url, set_as_current=False) as app:
        results = [app.send_task("tasks.join", (f"user-{n}", meeting_id)) for n in range(10)]
        return [result.get(timeout=30) for result in results]
