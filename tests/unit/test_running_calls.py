"""Promises about what is known of the threads that run calls of executors."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

import cqrs_sync as cqrs
from cqrs_sync.testing.contracts.executor import BOUND, Calls
from cqrs_sync.threads.executor import running_calls
from tests.promises.threads_fixtures import Gate, fork, in_thread
from tests.waiting import eventually


@pytest.fixture(params=[None, 1, 2, 16], ids=["same-thread", "1", "2", "16"])
def executor(request):
    if request.param is None:
        yield cqrs.SameThread()
        return
    with cqrs.ThreadPool(request.param) as pool:
        yield pool


def is_running():
    return threading.get_ident() in running_calls.threads()


def test_a_thread_is_known_while_it_runs_a_call_and_no_longer(executor):
    """
    Whether the caller runs it, or a thread of the pool, or a call runs calls itself.
    """
    seen = []

    def call(depth):
        seen.append(is_running())
        if depth:
            executor.run(Calls((call, depth - 1), (call, depth - 1)), may_help=depth % 2 == 0)
        seen.append(is_running())

    executor.run(Calls(*[(call, 3)] * 4))

    assert [True] * 4 * 15 * 2 == seen
    assert set() == running_calls.threads()


def test_threads_are_known_by_the_thread_that_waits_for_their_calls():
    """
    Through calls that wait for others in turn, in pools of their own; not those of other callers.
    """
    gate, threads = Gate(), {}

    def call(name, *others):
        threads[name] = threading.get_ident()
        if others:
            inner.run(Calls(*others), may_help=False)
        gate.wait()

    def caller(name, *calls):
        threads[name] = threading.get_ident()
        outer.run(Calls(*calls), may_help=False)

    with (
        cqrs.ThreadPool(4) as outer,
        cqrs.ThreadPool(4) as inner,
        in_thread(caller, "one", (call, "first"), (call, "second", (call, "third"))),
        in_thread(caller, "other", (call, "fourth")),
    ):
        eventually(lambda: len(threads) == 6)
        helpers = {name: running_calls.helpers_of(thread) for name, thread in threads.items()}
        gate.open()

    assert {threads[name] for name in ("first", "second", "third")} == helpers["one"]
    assert {threads["third"]} == helpers["second"]
    assert {threads["fourth"]} == helpers["other"]
    assert set() == helpers["first"] | helpers["third"] | helpers["fourth"]


def test_a_caller_that_stopped_waiting_has_no_helpers():
    """
    At its deadline; the call still runs.
    """
    gate = Gate()
    work = Calls((gate.wait,))
    with cqrs.ThreadPool(1) as pool:
        assert not pool.run(work, timeout=0.0)
        eventually(running_calls.threads)
        assert set() == running_calls.helpers_of(threading.get_ident())
        gate.open()
        assert work.late.wait(BOUND)
    eventually(lambda: not running_calls.threads())


def test_a_caller_that_is_interrupted_is_forgotten(executor):
    """
    By what its own call raises, such as KeyboardInterrupt.
    """

    def interrupt():
        if threading.current_thread() is caller:
            raise KeyboardInterrupt

    caller = threading.current_thread()
    with suppress(KeyboardInterrupt):
        executor.run(Calls(*[(interrupt,)] * 3))

    eventually(lambda: not running_calls.threads())


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_knows_its_own_thread_only(executor):
    """
    The thread that forked still runs its call; the other threads of the parent are not there.
    """
    gate, status = Gate(), []

    def check():
        assert {threading.get_ident()} == running_calls.threads()
        executor.run(Calls((int,)))
        assert {threading.get_ident()} == running_calls.threads()

    with cqrs.ThreadPool(1) as other, in_thread(other.run, Calls((gate.wait,))):
        eventually(running_calls.threads)
        executor.run(Calls((lambda: status.append(fork(check)),)))
        gate.open()

    assert [0] == status
