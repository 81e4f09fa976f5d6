"""
T6: A deadline given to `send` reaches handlers, brokers and waits; a handler that overruns is
reported with its stack, never killed.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
import threading
import time
from collections import Counter

import pytest
from attrs import frozen

import cqrs_sync as cqrs
from cqrs_sync.memory import MemoryBroker, MemoryTransactions
from tests.promises.threads_fixtures import (
    BOUND,
    Followed,
    Gate,
    Gauge,
    Go,
    Happened,
    Told,
    answer_of,
    collections_of_the_watchdog,
    happenings,
    in_thread,
    in_threads,
    mediator_of,
    program,
)
from tests.waiting import eventually

SIZES = [1, 2, 16]

#: What a busy machine may add to a wait.
SLACK = 1.5


@frozen
class Ask(cqrs.Query[object]):
    """Answered by what the test binds to it."""

    timeout: float | None = None


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open()


def hang_in_the_database(gate):
    """What a stack is to show."""
    gate.wait()


# It reaches handlers


@pytest.mark.parametrize("timeout", [5, 2.5])
def test_t6_handlers_see_how_much_time_is_left(threads, timeout):
    """
    The request's handler and those of its events, inline ones and follow-ups included.
    """
    seen = []

    def ask(request):
        seen.append(cqrs.time_left())
        cqrs.raise_event(Happened())

    def note(event):
        seen.append(cqrs.time_left())

    def note_and_follow(event):
        note(event)
        cqrs.raise_event(Followed())

    requests, events = cqrs.RequestMap(), cqrs.EventMap()
    requests.bind(Ask, ask)
    events.bind(Happened, note_and_follow)
    events.bind(Happened, note, phase=cqrs.Phase.INLINE)
    events.bind(Followed, note)
    with cqrs.bootstrap(requests, events, threads=threads) as mediator:
        mediator.send(Ask(), timeout=timeout)

    assert 4 == len(seen)
    assert all(timeout - SLACK < left <= timeout for left in seen)


def test_t6_without_a_deadline_there_is_no_time_left_to_speak_of(threads):
    """
    Neither where none was given, nor after a send that had one.
    """
    seen = []
    with mediator_of(threads, (Happened, lambda event: seen.append(cqrs.time_left()))) as mediator:
        mediator.send(happenings(2))
        mediator.send(happenings(2), timeout=BOUND)
        mediator.send(happenings(2))

    assert [None, None] == seen[:2]
    assert None not in seen[2:4]
    assert [None, None] == seen[4:]
    assert cqrs.time_left() is None


def test_t6_an_event_sent_without_a_request_has_a_deadline_too(threads):
    """
    `mediator.publish` takes one as `mediator.send` does.
    """
    seen = []
    with mediator_of(threads, (Happened, lambda event: seen.append(cqrs.time_left()))) as mediator:
        mediator.publish(Happened(), timeout=5)

    assert 5 - SLACK < seen[0] <= 5


@pytest.mark.parametrize(("outer", "inner", "expected"), [(2, 10, 2), (10, 2, 2), (2, None, 2), (None, 2, 2)], ids=str)
def test_t6_nested_sends_have_the_nearest_deadline(threads, outer, inner, expected):
    """
    Its own deadline or that of the waiting caller, whichever comes first; afterwards the outer one counts again.
    """
    seen = []

    def send(event):
        before = cqrs.time_left()
        mediator.send(Ask(), timeout=inner)
        after = cqrs.time_left()
        assert (before is None) == (after is None) == (outer is None)
        assert after is None or 0 <= before - after < SLACK

    def ask(request):
        seen.append(cqrs.time_left())
        cqrs.raise_event(Followed())

    with mediator_of(
        threads, (Happened, send), (Ask, ask), (Followed, lambda event: seen.append(cqrs.time_left()))
    ) as mediator:
        mediator.send(happenings(1), timeout=outer)

    assert 2 == len(seen)
    assert all(expected - SLACK < left <= expected for left in seen)


def test_t6_a_handler_with_no_time_left_is_told_so():
    """
    `time_left` raises when the deadline is over, so that a handler that asks gives up.
    """
    gave_up = threading.Event()

    def work_in_steps(event):
        try:
            while True:
                threading.Event().wait(min(0.02, cqrs.time_left()))
        except cqrs.DeadlineExceeded:
            gave_up.set()
            raise

    with (
        mediator_of(2, (Happened, work_in_steps)) as mediator,
        pytest.raises(cqrs.EventsFailed),
    ):
        mediator.send(happenings(1), timeout=0.1)

    assert gave_up.wait(BOUND)


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf, 1e12])
def test_t6_a_deadline_that_is_no_number_of_seconds_is_refused(threads, timeout):
    """
    Before anything is done.
    """
    called = []
    with mediator_of(threads, (Ask, called.append), (Happened, called.append)) as mediator:
        with pytest.raises(ValueError, match="a number of seconds above 0"):
            mediator.send(Ask(), timeout=timeout)
        with pytest.raises(ValueError, match="a number of seconds above 0"):
            mediator.publish(Happened(), timeout=timeout)

    assert [] == called


def test_t6_a_deadline_in_a_century_is_as_good_as_none(threads):
    """
    The longest wait a lock can take is longer than anybody's patience.
    """
    gauge = Gauge()

    def count(event):
        with gauge.handling():
            pass

    with mediator_of(threads, (Happened, count)) as mediator:
        for _ in range(3):
            mediator.send(happenings(5), timeout=threading.TIMEOUT_MAX)

    assert 15 == gauge.begun


# It reaches brokers


class NotingBroker(MemoryBroker):
    """Notes the time it is given."""

    def __init__(self):
        super().__init__()
        self.timeouts = []

    def publish(self, messages, /, *, timeout=None):
        self.timeouts.append(timeout)
        super().publish(messages, timeout=timeout)


def test_t6_the_broker_is_given_what_is_left(threads):
    """
    Of the deadline of the send, None where there is none.
    """
    broker = NotingBroker()
    with mediator_of(threads, (Happened, lambda event: None), broker=broker) as mediator:
        mediator.send(Go((Told(), Happened())))
        mediator.send(Go((Told(), Happened())), timeout=5)

    assert broker.timeouts[0] is None
    assert 5 - SLACK < broker.timeouts[1] <= 5


def test_t6_time_is_kept_for_publishing(gate):
    """
    Handlers that take all the time they are given leave a tenth of it to the broker.
    """
    broker = NotingBroker()
    with mediator_of(2, (Happened, lambda event: gate.wait()), broker=broker) as mediator:
        with pytest.raises(cqrs.EventsFailed):
            mediator.send(Go((Told(), Happened())), timeout=1)
        gate.open()

    assert 0.05 < broker.timeouts[0] <= 0.1 + 0.05
    assert 1 == len(broker.published)


def test_t6_the_broker_is_given_a_moment_when_nothing_is_left():
    """
    What was committed by a handler that took longer than the deadline is announced all the same.
    """
    broker = NotingBroker()

    def take_too_long(request):
        threading.Event().wait(0.3)
        cqrs.raise_event(Told())

    with mediator_of(cqrs.SameThread(), (Ask, take_too_long), broker=broker) as mediator:
        mediator.send(Ask(), timeout=0.1)

    assert 1 == len(broker.published)
    assert 0 < broker.timeouts[0] <= 0.1


# It reaches waits


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("timeout", [0.2, 0.6])
def test_t6_a_send_returns_at_its_deadline_and_names_the_handler_that_hangs(size, timeout, gate):
    """
    With the stack it was seen with; the answer of the request is not lost with it.
    """

    def hang(event):
        hang_in_the_database(gate)

    with mediator_of(size, (Happened, hang)) as mediator:
        begin = time.monotonic()
        with pytest.raises(cqrs.EventsFailed) as caught:
            mediator.send(happenings(1), timeout=timeout)
        took = time.monotonic() - begin
        gate.open()

    (failure,) = caught.value.failures
    assert timeout <= took < timeout + SLACK
    assert "gone" == caught.value.response
    assert failure.handler.endswith("hang")
    assert Happened(0) == failure.event
    assert isinstance(failure.error, cqrs.HandlerOverran)
    assert "hang was still handling Happened at the deadline" in str(failure.error)
    assert "hang_in_the_database" in str(failure.error)
    assert __file__ in str(failure.error)


@pytest.mark.parametrize("size", SIZES)
def test_t6_siblings_of_a_handler_that_hangs_have_run_and_notifications_are_published(size, gate):
    """
    At the deadline, what could be done is done: only the handler that hangs is missing.
    """
    broker = MemoryBroker()
    gauge = Gauge()

    def hang(event):
        gate.wait()

    def count(event):
        with gauge.handling():
            cqrs.raise_event(Told(event.number))

    # The one that hangs comes last: a pool of one gets no further than that.
    events = (*(Followed(number) for number in range(4)), Told(-1), Happened())
    with mediator_of(size, (Happened, hang), (Followed, count), broker=broker) as mediator:
        with pytest.raises(cqrs.EventsFailed) as caught:
            mediator.send(Go(events), timeout=0.5)
        published = len(broker.published)
        gate.open()

    assert ["hang"] == [failure.handler.rpartition(".")[2] for failure in caught.value.failures]
    assert 4 == gauge.begun
    assert 1 + 4 == published


@pytest.mark.parametrize("size", [2, 16])
def test_t6_a_handler_that_hangs_first_does_not_keep_the_others(size, gate):
    """
    Its siblings run on the other threads, and each handler that hangs is named.
    """
    gauge = Gauge()

    def hang(event):
        gate.wait()

    def count(event):
        with gauge.handling():
            pass

    events = (*[Happened(number) for number in range(size - 1)], *map(Followed, range(20)))
    with mediator_of(size, (Happened, hang), (Followed, count)) as mediator:
        with pytest.raises(cqrs.EventsFailed) as caught:
            mediator.send(Go(events), timeout=0.5)
        gate.open()

    assert 20 == gauge.begun
    assert list(range(size - 1)) == sorted(failure.event.number for failure in caught.value.failures)


@pytest.mark.parametrize("size", [2, 16])
def test_t6_a_nested_send_keeps_its_own_deadline(size, gate):
    """
    A handler that sends with a deadline continues at that deadline if another thread can do the work.
    """
    took = []

    def send(event):
        begin = time.monotonic()
        try:
            mediator.send(Go((Followed(),)), timeout=0.2)
        except cqrs.EventsFailed as error:
            took.append((time.monotonic() - begin, [type(failure.error) for failure in error.failures]))

    with mediator_of(size, (Happened, send), (Followed, lambda event: gate.wait())) as mediator:
        mediator.send(happenings(1))
        gate.open()

    assert [[cqrs.HandlerOverran]] == [errors for _, errors in took]
    assert 0.2 <= took[0][0] < 0.2 + SLACK


# Never killed


@pytest.mark.parametrize("size", SIZES)
def test_t6_a_handler_that_overran_goes_on_and_what_it_raises_is_dispatched(size, gate):
    """
    Its follow-up events are handled and its notifications published, once, although no caller waits.
    """
    broker = NotingBroker()
    followed = threading.Event()

    def overrun(event):
        gate.wait()
        cqrs.raise_event(Followed(event.number))
        cqrs.raise_event(Told(event.number))

    with mediator_of(size, (Happened, overrun), (Followed, lambda event: followed.set()), broker=broker) as mediator:
        with pytest.raises(cqrs.EventsFailed):
            mediator.send(happenings(1), timeout=0.1)
        assert not followed.is_set()
        gate.open()
        assert followed.wait(BOUND)
        eventually(lambda: broker.published)

    assert 1 == len(broker.published)
    # It has the broker's own limit: that of the caller is long over.
    assert [None] == broker.timeouts


@pytest.mark.parametrize("size", SIZES)
def test_t6_what_a_handler_that_overran_raises_in_the_end_is_logged(size, gate, caplog):
    """
    With its traceback, because no caller is left to catch it.
    """

    def overrun(event):
        gate.wait()
        raise [ValueError("failed in the end"), SystemExit(3)][event.number]

    with mediator_of(size, (Happened, overrun)) as mediator:
        for number in (0, 1):
            with pytest.raises(cqrs.EventsFailed):
                mediator.send(Go((Happened(number),)), timeout=0.1)
        gate.open()
        eventually(lambda: {ValueError, SystemExit} <= {record.exc_info[0] for record in errors(caplog)})


def errors(caplog):
    return [record for record in caplog.records if record.levelno >= logging.ERROR and record.exc_info]


@pytest.mark.parametrize("size", SIZES)
def test_t6_handlers_queued_behind_a_full_pool_at_the_deadline_run_later(size, gate):
    """
    They are counted as not begun, and made once as soon as there is a place.
    """
    gauge = Gauge()
    seen = []

    def hold(event):
        with gauge.handling():
            gate.wait()

    mediator = mediator_of(size, (Happened, hold), (Followed, lambda event: seen.append(event.number)))
    with mediator, in_thread(mediator.send, happenings(size)):
        gauge.wait_until(lambda gauge: gauge.running == size)
        with pytest.raises(cqrs.EventsFailed) as caught:
            mediator.send(Go(tuple(Followed(number) for number in range(5))), timeout=0.1)
        assert [] == seen
        gate.open()
        eventually(lambda: len(seen) == 5)

    (failure,) = caught.value.failures
    assert isinstance(failure.error, cqrs.DeadlineExceeded)
    assert "5 event handler(s) had not started at the deadline" in str(failure.error)
    assert [0, 1, 2, 3, 4] == sorted(seen)


def test_t6_handlers_queued_behind_one_that_hangs_are_counted(gate):
    """
    On a pool of one: the caller learns which handler hangs, and how many have not begun for it.
    """
    seen = []

    def hang(event):
        gate.wait()

    with mediator_of(1, (Happened, hang), (Followed, lambda event: seen.append(event.number))) as mediator:
        with pytest.raises(cqrs.EventsFailed) as caught:
            mediator.send(Go((Happened(), *map(Followed, range(3)))), timeout=0.2)
        gate.open()
        eventually(lambda: len(seen) == 3)

    assert ["events", "hang"] == sorted(failure.handler.rpartition(".")[2] for failure in caught.value.failures)
    assert any("3 event handler(s) had not started" in str(failure.error) for failure in caught.value.failures)
    assert [0, 1, 2] == sorted(seen)


class Hasty:
    """Sends whose handlers take about as long as their deadline is."""

    def __init__(self, pool):
        self.handled, self.followed, self.outcomes = Counter(), Counter(), Counter()
        self.broker = MemoryBroker()
        self.mediator = mediator_of(
            pool, (Happened, self.take_about_as_long), (Followed, self.follow), broker=self.broker
        )
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._random = random.Random(6)  # noqa: S311 -- no secret is made here

    def take_about_as_long(self, event):
        threading.Event().wait(self._random.uniform(0.0, 0.008))
        with self._lock:
            self.handled[event.number] += 1
        cqrs.raise_event(Followed(event.number))
        cqrs.raise_event(Told(event.number))

    def follow(self, event):
        with self._lock:
            self.followed[event.number] += 1

    def send(self):
        request = Go((Happened(next(self._numbers)), Happened(next(self._numbers))))
        try:
            self.mediator.send(request, timeout=0.006)
        except cqrs.EventsFailed as error:
            self.outcomes.update(type(failure.error) for failure in error.failures)


@pytest.mark.parametrize("size", SIZES)
def test_t6_the_last_instant_belongs_to_somebody(size):
    """
    Whenever handlers end around the deadline, each runs once, what they raise is handled and published once.
    """
    pool = cqrs.ThreadPool(size)
    hasty = Hasty(pool)
    with hasty.mediator:
        in_threads(*[lambda: [hasty.send() for _ in range(40)]] * 2)
        eventually(lambda: len(hasty.followed) == 160)
        eventually(lambda: pool.busy_count == 0)

    assert {1} == set(hasty.handled.values())
    assert {1} == set(hasty.followed.values())
    assert sorted(range(160)) == sorted(int(message.body[10:-1]) for message in hasty.broker.published)
    assert hasty.outcomes.keys() <= {cqrs.HandlerOverran, cqrs.DeadlineExceeded}


def test_t6_a_deadline_ends_with_the_send_not_with_the_transaction(threads):
    """
    Handlers that run at the commit of a surrounding transaction have the time of the thread that commits.
    """
    seen = []
    transactions = MemoryTransactions()
    mediator = mediator_of(threads, (Happened, lambda event: seen.append(cqrs.time_left())), transactions=transactions)
    with mediator, transactions.atomic():
        mediator.send(happenings(2), timeout=0.01)
        threading.Event().wait(0.02)

    assert [None, None] == seen


# In the caller's thread


class Logged(logging.Handler):
    """Waits for a log record."""

    def __init__(self, logger):
        super().__init__()
        self.texts = []
        self._changed = threading.Condition()
        self._logger = logging.getLogger(logger)

    def emit(self, record):
        with self._changed:
            self.texts.append(record.getMessage())
            self._changed.notify_all()

    def wait_for(self, part):
        with self._changed:
            return self._changed.wait_for(lambda: any(part in text for text in self.texts), BOUND)

    def __enter__(self):
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_):
        self._logger.removeHandler(self)


@pytest.fixture
def logged():
    with Logged("cqrs_sync.threads.watchdog") as logged:
        yield logged


def test_t6_in_the_callers_thread_an_overrun_is_logged_while_it_lasts_and_reported_afterwards(logged):
    """
    Nobody else waits there, so another thread logs the stack at the deadline.
    """

    def hang_until_logged(event):
        assert logged.wait_for("hang_until_logged")

    with (
        mediator_of(cqrs.SameThread(), (Happened, hang_until_logged)) as mediator,
        pytest.raises(cqrs.EventsFailed) as caught,
    ):
        mediator.send(happenings(1), timeout=0.1)

    (failure,) = caught.value.failures
    assert isinstance(failure.error, cqrs.HandlerOverran)
    assert failure.handler.endswith("hang_until_logged")
    assert "after the deadline" in str(failure.error)
    assert any(text.startswith("Go has not finished at its deadline") for text in logged.texts)


def test_t6_a_request_handler_that_overruns_is_logged_while_it_lasts(logged, threads):
    """
    It is the caller's thread wherever event handlers run; its answer is given all the same.
    """

    def hang_until_logged(request):
        assert logged.wait_for("hang_until_logged")
        return 42

    with mediator_of(threads, (Ask, hang_until_logged)) as mediator:
        assert 42 == mediator.send(Ask(), timeout=0.1)

    assert any(text.startswith("Ask has not finished at its deadline") for text in logged.texts)


def test_t6_nothing_is_said_of_what_is_in_time(logged, threads):
    """
    Neither raised nor logged, also not when the deadline comes later.
    """
    with mediator_of(
        threads, (Happened, lambda event: None), (Ask, lambda request: logged.wait_for("Ask"))
    ) as mediator:
        for _ in range(50):
            mediator.send(happenings(3), timeout=0.4)
        # When this one is logged, the deadlines of all those before are over.
        assert mediator.send(Ask(), timeout=0.5)

    assert 1 == len(logged.texts)


def test_t6_deadlines_are_watched_by_one_thread_that_forgets_them(logged):
    """
    However many there were: nothing piles up until they come.
    """
    with mediator_of(4, (Happened, lambda event: None)) as mediator:
        in_threads(*[lambda: [mediator.send(happenings(1), timeout=3600) for _ in range(300)]] * 4)

        assert 1 == len([thread for thread in threading.enumerate() if thread.name == "cqrs-watchdog"])
        assert 2 == len(collections_of_the_watchdog())
        assert max(map(len, collections_of_the_watchdog())) < 200


def test_t6_a_log_handler_that_raises_does_not_end_the_watch():
    """
    The next overrun is logged again.
    """

    class Broken(logging.Handler):
        def emit(self, record):
            reached.set()
            raise OSError("no space left")

    logger = logging.getLogger("cqrs_sync.threads.watchdog")
    broken, reached = Broken(), threading.Event()
    logger.addHandler(broken)
    try:
        with mediator_of(cqrs.SameThread(), (Ask, lambda request: reached.wait(BOUND))) as mediator:
            assert mediator.send(Ask(), timeout=0.05)
    finally:
        logger.removeHandler(broken)

    with (
        Logged("cqrs_sync.threads.watchdog") as logged,
        mediator_of(cqrs.SameThread(), (Ask, lambda request: logged.wait_for("Ask"))) as mediator,
    ):
        assert mediator.send(Ask(), timeout=0.05)


def test_t6_a_near_deadline_is_not_missed_for_a_far_one(logged):
    """
    Whichever was set first.
    """
    far, near = threading.Event(), threading.Event()

    def wait(request):
        assert (near if request.timeout < 1 else far).wait(BOUND)

    mediator = mediator_of(cqrs.SameThread(), (Ask, wait))
    with mediator, in_thread(lambda: mediator.send(Ask(60.0), timeout=60)):
        with in_thread(lambda: mediator.send(Ask(0.1), timeout=0.1)):
            assert logged.wait_for("Ask has not finished")
            near.set()
        far.set()

    assert 1 == len(logged.texts)


@pytest.mark.parametrize("answer", [1, "two", None])
def test_t6_a_deadline_changes_no_answer(threads, answer):
    """
    What the handler returns is returned as it is, with a deadline as without.
    """
    with mediator_of(threads, (Ask, lambda request: answer)) as mediator:
        assert answer == mediator.send(Ask(), timeout=BOUND)
        assert "gone" == mediator.send(Go(), timeout=BOUND)


def test_t6_looking_at_stacks_stops_no_process():
    """
    CPython 3.11 deadlocks where garbage is collected while it looks at its threads: it is not, meanwhile.
    """
    done = program("""
        import gc
        from cqrs_sync.threads.watchdog import stacks_of

        def start_threads():
            while True:
                thread = threading.Thread(target=int)
                thread.start()
                thread.join()

        sys.setswitchinterval(1e-6)
        gc.callbacks.append(lambda *arguments: sum(range(50)))
        gc.set_threshold(5)
        for _ in range(3):
            threading.Thread(target=start_threads, daemon=True).start()
        for _ in range(5000):
            assert "stacks_of" in stacks_of([threading.get_ident()])[threading.get_ident()]
        print(json.dumps(gc.isenabled()), flush=True)
        os._exit(0)
    """)

    assert answer_of(done) is True
