"""
T5: Pools are closed at exit, within a time limit, and lose nothing on the way.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

import pytest

from tests.promises.threads_fixtures import PREAMBLE, answer_of, program
from tests.source import ROOT

SIZES = [1, 2, 16]

LEAVE = """
print("leaving", flush=True)
"""


def seconds_to_leave(source, *, timeout=30):
    """Run a program; return how long it took from the end of its last line to its exit, its status and its stderr."""
    process = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(source) + LEAVE],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stdout:
            if line == "leaving\n":
                break
        begin = time.monotonic()
        _, errors = process.communicate(timeout=timeout)
        return time.monotonic() - begin, process.returncode, errors
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("size", SIZES)
def test_t5_an_idle_pool_leaves_at_once_and_says_nothing(size):
    """
    A program that forgot to close its mediator ends within a second, with nothing on stderr.
    """
    took, status, errors = seconds_to_leave(f"""
        mediator = mediator_of({size}, (Happened, lambda event: None))
        mediator.send(happenings(20))
        mediator.send(happenings(20), timeout=10)
    """)

    assert (0, "") == (status, errors)
    assert took < 4.5


def test_t5_many_idle_pools_leave_at_once():
    """
    They are closed one after the other, none of which takes time.
    """
    took, status, errors = seconds_to_leave("""
        mediators = [mediator_of(4, (Happened, lambda event: None)) for _ in range(20)]
        for mediator in mediators:
            mediator.send(happenings(20), timeout=10)
    """)

    assert (0, "") == (status, errors)
    assert took < 4.5


@pytest.mark.parametrize("size", SIZES)
def test_t5_a_handler_that_hangs_for_ever_does_not_keep_the_interpreter(size):
    """
    The program leaves within the pool's limit for it, and says what it left.
    """
    took, status, errors = seconds_to_leave(f"""
        pool = cqrs.ThreadPool({size}, exit_timeout=0.5)
        mediator = mediator_of(pool, (Happened, lambda event: threading.Event().wait()))
        try:
            mediator.send(happenings(1), timeout=0.1)
        except cqrs.EventsFailed:
            pass
    """)

    assert 0 == status
    assert 0.4 < took < 4.5
    assert "1 handler(s) still ran 0.5 s after close()" in errors
    assert "Traceback" not in errors


def test_t5_a_handler_that_hangs_does_not_keep_a_program_whose_threads_were_slow_to_start():
    """
    `concurrent.futures` notes a thread after starting it: however late that is, it does not join ours.
    """
    took, status, _ = seconds_to_leave("""
        start = threading.Thread.start

        def start_slowly(thread):
            start(thread)
            threading.Event().wait(0.1)

        threading.Thread.start = start_slowly
        pool = cqrs.ThreadPool(3, exit_timeout=0.5)
        mediator = mediator_of(pool, (Happened, lambda event: threading.Event().wait()))
        try:
            mediator.send(happenings(1), timeout=1)
        except cqrs.EventsFailed:
            pass
    """)

    assert 0 == status
    assert took < 4.5


def test_t5_a_handler_that_finishes_in_time_is_waited_for():
    """
    What runs when the program ends is finished, within the limit.
    """
    done = program("""
        def finish(event):
            begun.set()
            threading.Event().wait(0.3)
            print(json.dumps("finished"), flush=True)

        begun = threading.Event()
        mediator = mediator_of(2, (Happened, finish))
        try:
            mediator.send(happenings(1), timeout=0.05)
        except cqrs.EventsFailed:
            pass
        assert begun.wait(10)
    """)

    assert "finished" == answer_of(done)


def test_t5_a_pool_that_cannot_be_closed_does_not_keep_others_open():
    """
    Each is closed at exit, whatever becomes of the others; the errors are logged.
    """
    done = program("""
        from cqrs_sync.lifecycle import close_at_exit

        class Closing:
            def __init__(self, number):
                self.number = number

            def close_at_exit(self):
                print(self.number, flush=True)
                raise OSError("cannot be closed")

        them = [Closing(number) for number in range(5)]
        for one in them:
            close_at_exit(one)
    """)

    assert 0 == done.returncode
    assert ["0", "1", "2", "3", "4"] == sorted(done.stdout.split())
    assert 5 == done.stderr.count("could not be closed at exit")


def test_t5_the_exit_hook_is_registered_once():
    """
    A program that makes and forgets many pools does not collect hooks.
    """
    done = program("""
        import gc

        register, registered = atexit.register, []
        atexit.register = lambda *arguments: (registered.append(arguments), register(*arguments))
        for _ in range(20):
            with cqrs.ThreadPool(1) as pool:
                pool.run(Calls((int,)), may_help=False)
            del pool
            gc.collect()
        print(json.dumps([hook.__module__ for hook, *_ in registered if "weakref" not in hook.__module__]))
    """)

    assert ["cqrs_sync.lifecycle"] == answer_of(done)


# Nothing is lost


def counting(threads, *, nested=None):
    """Begin a program whose handlers count: nine for each request with three events."""
    return f"""
lock, handled = threading.Lock(), [0]

def count(event):
    with lock:
        handled[0] += 1

def count_and_send(event):
    count(event)
    mediator.send(Go((Followed(), Followed())), timeout={nested})

def no_more_threads():
    try:
        with ThreadPoolExecutor(1) as executor:
            executor.submit(int).result()
    except RuntimeError:
        return True
    return False

from concurrent.futures import ThreadPoolExecutor
from tests.waiting import eventually

mediator = mediator_of({threads}, (Happened, count_and_send), (Followed, count))
atexit.register(lambda: print(json.dumps(handled[0]), flush=True))
"""


WAITS = pytest.mark.parametrize("timeout", [None, 10], ids=["helping", "waiting"])
USED = pytest.mark.parametrize("used", [False, True], ids=["first used then", "used before"])


@pytest.mark.parametrize("threads", ["cqrs.SameThread()", *SIZES])
@WAITS
@USED
def test_t5_what_an_exit_hook_sends_is_handled(threads, timeout, used):
    """
    Hooks registered before the pool was used run after it is closed, those registered later before.
    """
    done = program(
        counting(threads)
        + f"""
atexit.register(mediator.send, happenings(3), timeout={timeout})
if {used}:
    mediator.send(happenings(3), timeout={timeout})
atexit.register(mediator.send, happenings(3), timeout={timeout})
"""
    )

    assert 2 * 9 + (9 if used else 0) == answer_of(done)
    assert "" == done.stderr


@pytest.mark.parametrize("size", SIZES)
@WAITS
@USED
def test_t5_what_threads_send_after_the_main_thread_has_ended_is_handled(size, timeout, used):
    """
    The interpreter waits for them; by then it gives no more threads, and nothing is lost for that.
    """
    done = program(
        counting(size, nested=timeout)
        + f"""
def send():
    eventually(no_more_threads)
    for _ in range(5):
        mediator.send(happenings(3), timeout={timeout})

if {used}:
    mediator.send(happenings(3), timeout=10)
for _ in range(4):
    threading.Thread(target=send).start()
"""
    )

    assert 4 * 5 * 9 + (9 if used else 0) == answer_of(done)
    assert "" == done.stderr


def test_t5_whoever_leaves_a_full_pool_at_exit_makes_what_others_wait_for():
    """
    No thread can be woken any more: a caller that only waits is served by the one that had the last place.
    """
    done = program(
        counting(1)
        + """
class Hold(cqrs.DomainEvent):
    pass

def hold(event):
    entered.set()
    assert waiting.wait(20)

entered, waiting = threading.Event(), threading.Event()
pool = cqrs.ThreadPool(1)
holding = mediator_of(pool, (Hold, hold))
patient = mediator_of(pool, (Followed, count))

def help():
    eventually(no_more_threads)
    holding.send(Go((Hold(),)))

def wait():
    assert entered.wait(20)
    patient.send(Go((Followed(), Followed(), Followed())), timeout=10)

def release_connection():
    eventually(lambda: pool.queued_count == 1, timeout=20)
    waiting.set()

pool.run(Calls((int,)), may_help=False)
eventually(lambda: pool.busy_count == 0)
for function in (help, wait, release_connection):
    threading.Thread(target=function).start()
"""
    )

    assert 3 == answer_of(done)
    assert "" == done.stderr


def test_t5_a_deadline_needs_no_watchdog_where_no_thread_can_be_had():
    """
    As at exit: the request is handled all the same.
    """
    done = program(
        counting("cqrs.SameThread()")
        + """
start = threading.Thread.start

def refuse(thread):
    if thread.name == "cqrs-watchdog":
        raise RuntimeError("can't create new thread at interpreter shutdown")
    start(thread)

threading.Thread.start = refuse
atexit.register(mediator.send, happenings(1), timeout=5)
"""
    )

    assert 3 == answer_of(done)
    assert "" == done.stderr


def test_t5_sys_exit_in_a_handler_reaches_the_caller():
    """
    SystemExit of a handler on the pool ends the program that sent the command, with its status.
    """
    done = program("""
        mediator = mediator_of(2, (Happened, lambda event: sys.exit(7)))
        mediator.send(happenings(3), timeout=10)
    """)

    assert 7 == done.returncode
    assert "" == done.stderr
