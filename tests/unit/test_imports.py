"""Promises about importing: it starts nothing, needs nothing optional, and is quick."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from typing import Any

from tests.source import CORE, ROOT

#: What no import of the core may bring along, and asyncio, which nothing may.
OPTIONAL = {
    "asyncio",
    "celery",
    "click",
    "cloudevents",
    "confluent_kafka",
    "crc32c",
    "django",
    "google.protobuf",
    "kafka",
    "msgspec",
    "opentelemetry",
    "pika",
    "pydantic",
    "pytest",
    "rich",
    "sqlalchemy",
}


def run(program: str, *arguments: str, **environment: str) -> Any:
    """Run a program in a new interpreter and return what it printed, read as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


OBSERVED_IMPORT = """
import contextlib, json, logging, os, signal, sys, threading
import attrs, cattrs.preconf.json, punq   # what they do is theirs
with contextlib.suppress(ImportError):
    import orjson

AUDITED = {
    "socket.__new__", "socket.connect", "socket.bind", "subprocess.Popen", "os.fork", "os.putenv", "os.unsetenv",
    "os.system", "os.posix_spawn",
}
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event in AUDITED else None)

def noting(start):
    def wrapper(self):
        seen.append(f"starts {self.name}")
        start(self)
    return wrapper

threading.Thread.start = noting(threading.Thread.start)

def reader():
    frame = sys._getframe(2)
    while frame and frame.f_globals.get("__name__", "") in ("os", "collections.abc", "_collections_abc"):
        frame = frame.f_back
    return frame.f_globals.get("__name__", "") if frame else ""

def observed(read):
    def wrapper(self, key):
        if reader().startswith("cqrs_sync"):
            seen.append(f"reads {key} from the environment")
        return read(self, key)
    return wrapper

type(os.environ).__getitem__ = observed(type(os.environ).__getitem__)

def state():
    loggers = logging.getLogger().manager.loggerDict
    return {
        "threads": threading.active_count(),
        "environment": dict(os.environ),
        "signals": [repr(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "root": [logging.root.level, repr(logging.root.handlers), logging.root.disabled, repr(logging.lastResort)],
        "raise": [logging.raiseExceptions, repr(logging.getLoggerClass()), logging.root.manager.disable],
        "loggers": {
            name: [one.level, repr(one.handlers), one.propagate, one.disabled]
            for name, one in loggers.items()
            if isinstance(one, logging.Logger) and (name in before_names or one.level or one.handlers)
        },
        "directory": [os.getcwd(), sorted(os.listdir("."))],
        "hooks": [repr(sys.excepthook), repr(threading.excepthook), repr(sys.unraisablehook)],
    }

before_names = set(logging.getLogger().manager.loggerDict)
before = state()
loaded = set(sys.modules)
seen.clear()
for name in sys.argv[1:]:
    __import__(name)
done = list(seen)
after = state()
changed = {key: [before[key], after[key]] for key in before if before[key] != after[key]}
print(json.dumps({"done": done, "changed": changed, "loaded": sorted(sys.modules)}))
"""


def test_an_import_starts_nothing():
    """
    T5: Importing the core starts no thread and no process, opens no socket, reads no
    environment variable, and leaves logging, signals and hooks as they were.
    """
    seen = run(OBSERVED_IMPORT, "cqrs_sync", *CORE)

    assert ([], {}) == (seen["done"], seen["changed"])


def test_an_import_brings_no_optional_dependency():
    """`import cqrs_sync` loads neither an optional dependency nor asyncio."""
    loaded = set(run("import cqrs_sync, json, sys; print(json.dumps(sorted(sys.modules)))"))

    assert set() == OPTIONAL & loaded


BLOCKED_IMPORT = """
import json, sys
from importlib.abc import MetaPathFinder

optional = set(sys.argv[1].split(","))

class NotInstalled(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == one or name.startswith(one + ".") for one in optional):
            raise ModuleNotFoundError(f"{name} is optional", name=name)

sys.meta_path.insert(0, NotInstalled())
for name in sys.argv[2:]:
    __import__(name)
print(json.dumps(sys.argv[2:]))
"""


def test_the_core_needs_no_optional_dependency():
    """Every module of the core can be imported where none of the extras is installed."""
    assert run(BLOCKED_IMPORT, ",".join(sorted(OPTIONAL | {"orjson"})), *CORE) == CORE


def test_every_module_can_be_imported_first():
    """
    No module works only because another one was imported before it.

    Whichever is asked for, the package itself comes first, and with it the same modules in the same order. So only
    the other modules can differ: each is imported after the package and nothing else.
    """
    program = """
import cqrs_sync
import importlib, json, sys
common = set(sys.modules)
broken = {}
for name in sys.argv[1:]:
    for loaded in [each for each in sys.modules if each.split(".")[0] == "cqrs_sync" and each not in common]:
        del sys.modules[loaded]
        parent, _, child = loaded.rpartition(".")
        if parent in common:
            delattr(sys.modules[parent], child)
    try:
        importlib.import_module(name)
    except Exception as error:
        broken[name] = repr(error)
print(json.dumps(broken))
"""

    assert run(program, *CORE) == {}


def test_bootstrap_imports_what_the_core_imports_inside_functions():
    """
    T5: After it no thread imports such a module: a child that is forked meanwhile would wait for that without end.

    Commands, tests and workers are not imported in a function of a mediator.
    """
    late = set()
    for name in CORE:
        if name.split(".")[1:2] not in (["cli"], ["demo"], ["testing"], ["workers"]):
            path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
            tree = ast.parse((path if path.exists() else path.with_suffix("") / "__init__.py").read_text())
            for function in ast.walk(tree):
                if isinstance(function, ast.FunctionDef):
                    for node in ast.walk(function):
                        late |= {node.module} if isinstance(node, ast.ImportFrom) else set()
                        late |= {one.name for one in node.names} if isinstance(node, ast.Import) else set()
    program = (
        "import cqrs_sync, json, sys; from cqrs_sync.memory import MemoryOutbox;"
        "cqrs_sync.bootstrap(source='tests', outbox=MemoryOutbox()); print(json.dumps(sorted(sys.modules)))"
    )
    loaded = set(run(program))

    assert {"decimal", "hashlib"} <= late
    assert set() == late - loaded


def test_what_only_some_applications_need_is_imported_later():
    """`import cqrs_sync` loads neither relay nor consumer; `dir` and `from cqrs_sync import *` know their names."""
    program = (
        "import cqrs_sync, json, sys; before = [name for name in sys.modules if name.startswith('cqrs_sync')];"
        "listed = set(cqrs_sync.__all__) - set(dir(cqrs_sync)); from cqrs_sync import *;"
        "print(json.dumps([before, sorted(listed), Consumer.__name__, Relay.__name__]))"
    )
    before, unlisted, *names = run(program)

    assert ([], ["Consumer", "Relay"]) == (unlisted, names)
    assert not [name for name in before if name.startswith(("cqrs_sync.relay", "cqrs_sync.consumer"))]


def test_a_name_that_is_not_there_is_an_attribute_error():
    import cqrs_sync  # noqa: PLC0415 -- other tests here import it in a process of its own

    assert not hasattr(cqrs_sync, "Consumers")
