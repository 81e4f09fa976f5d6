"""Nothing in a message is ever imported, unpickled or run, whatever it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys, threading
from cqrs_sync.consumer import OnUnknownType
from tests.consumer.conftest import Noticed, Workshop
from tests.storms.consumer.storms import _hostile
from tests.waiting import eventually

workshop = Workshop()
consumer = workshop.consumer(Noticed, on_unknown=OnUnknownType.DEAD_LETTER)
group = consumer.group


def receive(messages, dead):
    workshop.broker.defer(messages, group, after=0)
    eventually(lambda: consumer.counts.dead >= dead, timeout=60)


messages = [message for message in _hostile(510)]
consumer.start()
workshop.publish(Noticed(1))
workshop.wait_for(1)
# What errors need is imported by the first of each kind.
receive(messages[:10], 10)
seen = []
watched = {"import", "exec", "compile", "pickle.find_class", "marshal.loads", "os.system", "subprocess.Popen"}
sys.addaudithook(lambda name, arguments: name in watched and seen.append((name, str(arguments[:1]))))
receive(messages[10:], 510)
workshop.publish(Noticed(2))
workshop.wait_for(2, timeout=1)
noted, handled = list(seen), consumer.counts.handled
print(json.dumps({"seen": noted, "handled": handled}))
workshop.close()
"""


def test_no_message_makes_anything_be_imported_or_unpickled():
    """
    Watched by an audit hook; the next good message is handled within a second.
    """
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert {"seen": [], "handled": 2} == json.loads(done.stdout.splitlines()[-1])
