"""The consumer worker: handles what other services publish, until it is told to stop or should be replaced."""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import attrs

from cqrs_sync.consumer import Consumer
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.messages import publication_of
from cqrs_sync.workers.health import HealthFile, HealthServer, HealthSnapshot, take_snapshot
from cqrs_sync.workers.purge import purge_of_receipts
from cqrs_sync.workers.watchdogs import IdleWatchdog, SlowHandlerWatchdog, running_message
from cqrs_sync.workers.worker import MARGIN, Display, PeriodicTask, StopReason, Worker, WorkerOptions, log_stacks

logger: logging.Logger = logging.getLogger(__name__)

_STATM = Path("/proc/self/statm")


@attrs.frozen
class ConsumerOptions(WorkerOptions):
    """How a consumer worker runs; durations are seconds."""

    #: Stop after so many messages, or when this process uses so many bytes of memory.
    max_messages: int | None = None
    max_memory: int | None = None
    #: A consumer that finishes nothing for so long is stuck.
    stall: float = 300.0
    health_file: Path | None = None
    health_host: str = "127.0.0.1"
    health_port: int | None = None


@attrs.frozen
class ConsumerProgress:
    """How far a consumer worker is."""

    health: HealthSnapshot
    #: Messages that were settled, over the last seconds.
    per_second: float
    #: Since the worker started.
    seconds: float


class ConsumerWorker(Worker[ConsumerProgress]):
    """
    Consumes until it is told to stop, until a limit is reached, or until it is stuck; then it closes the mediator.

    It waits for a broker that cannot be reached. Exit status: 0; 1 if something was not finished within the grace, or
    if the consumer was stuck; 2 if the broker refuses what the group needs.
    """

    _options: ConsumerOptions
    after_exit = "the broker delivers their messages again"

    def __init__(self, consumer: Consumer, options: ConsumerOptions, display: Display[ConsumerProgress]) -> None:
        super().__init__(options, display)
        self._consumer = consumer
        self._slow_handlers = SlowHandlerWatchdog(consumer, options.stall)
        self._file = None if options.health_file is None else HealthFile(options.health_file, self._snapshot)
        self._is_finished = False

    def _start(self, resources: ExitStack) -> list[PeriodicTask]:
        options, consumer = self._options, self._consumer
        if options.max_memory is not None and (used := resident_bytes()) >= options.max_memory:
            # It would stop before its first message, again and again.
            raise ConfigurationError(
                f"this process uses {used / 2**20:.0f} MiB before it receives anything, and should stop at "
                f"{options.max_memory / 2**20:.0f} MiB: raise --max-memory by what the handlers need"
            )
        if options.health_port is not None:
            server = HealthServer(options.health_host, options.health_port, self._snapshot)
            resources.callback(server.close)
            server.start()
            logger.info("health: %s/live and /ready", server.url)
        if self._file is not None:
            resources.callback(self._file.close)
            self._file.start()
        tasks = [
            PeriodicTask("cqrs-idle-watchdog", IdleWatchdog(consumer, options.stall).check),
            PeriodicTask("cqrs-slow-watchdog", self._slow_handlers.check),
        ]
        if options.purge_after is not None:
            purge = purge_of_receipts(consumer.mediator, options.purge_after, consumer.group.delays)
            purging = PeriodicTask("cqrs-purge", lambda: purge.run(purging.pause), purge.release_connection)
            tasks.append(purging)
        consumer.start()
        logger.info("consuming %s in the group %r", ", ".join(consumer.group.topics), consumer.group.name)
        _warn_of_topics_without_handlers(consumer)
        return tasks

    def _reason_to_stop(self) -> StopReason | None:
        options = self._options
        if self._consumer.fatal_error is not None:
            # The consumer has logged why.
            return StopReason("configuration error", status=2)
        health = self._consumer.health(options.stall)
        if not health.is_alive:
            return StopReason(f"the consumer is stuck: {health.trouble}", status=1, is_stuck=True)
        settled = self._consumer.counts.settled
        if options.max_messages is not None and settled >= options.max_messages:
            return StopReason(f"the limit of messages is reached: {settled}")
        if options.max_memory is not None and (used := resident_bytes()) >= options.max_memory:
            return StopReason(f"the limit of memory is reached: {used / 2**20:.0f} MiB")
        return None

    def _close(self, timeout: float) -> None:
        until = time.monotonic() + timeout
        margin = min(MARGIN, timeout / 2)
        self._is_finished = self._consumer.close(timeout - margin)
        if self._is_finished:
            self._consumer.mediator.close(max(0.1, until - margin / 2 - time.monotonic()))

    def _is_settled(self) -> bool:
        return self._is_finished

    def _in_flight(self) -> str:
        return f"{len(self._consumer.running())} handler(s) running"

    def _finish(self, reason: StopReason, *, is_closed: bool, timeout: float) -> int:  # noqa: ARG002 -- nothing is left
        if not is_closed:
            logger.warning("all messages are settled, but the mediator could not be closed within the grace")
        return reason.status

    def _progress(self) -> ConsumerProgress:
        return ConsumerProgress(self._snapshot(), self._meter.rate(self._consumer.counts.settled), self._meter.seconds)

    def _snapshot(self) -> HealthSnapshot:
        return take_snapshot(
            self._consumer,
            self._options.stall,
            self._slow_handlers,
            is_stopping=self._is_stopping,
            has_stopped=self._has_stopped,
        )

    def _done(self) -> str:
        return f"{self._consumer.counts.handled} handled"

    def _log_unfinished(self) -> None:
        log_unfinished_messages(self._consumer, self._options.stall)

    def _abandon(self) -> None:
        if self._file is not None:
            self._file.close()
        super()._abandon()


def log_unfinished_messages(consumer: Consumer, stall: float) -> None:
    """
    Log which messages were not finished, and the stacks of the threads that run their handlers.

    The receiver's thread is shown if it is at fault: it hangs for more than `stall` seconds, or no handler runs.
    """
    running = consumer.running()
    for item in running:
        message = running_message(consumer, item)
        logger.error(
            "message %r %r was not finished in time, after %.1f s in handling (bound handlers: %s); "
            "the broker delivers it again",
            message.type,
            message.id,
            message.seconds,
            message.handler_names,
        )
    shows_receiver = not running or consumer.health(stall).is_receiver_hung
    log_stacks([item.thread for item in running], ("cqrs-receiver",) if shows_receiver else ())


def _warn_of_topics_without_handlers(consumer: Consumer) -> None:
    """Warn of topics for which there is no handler: the name may be misspelled, or an import may be missing."""
    types = consumer.mediator.wiring.event_map.types.values()
    known = sorted({topic for event in types if (topic := publication_of(event).topic)})
    for topic in consumer.group.topics:
        if topic not in known:
            logger.warning(
                "no event with a handler has the topic %r (known topics: %s): the group receives from it all the same, "
                "and handles only messages of known event types",
                topic,
                ", ".join(map(repr, known)) or "none",
            )


def resident_bytes() -> int:
    """
    Return the bytes of memory that this process uses, or its peak if the system does not tell more.

    Raises ConfigurationError if the system tells neither.
    """
    try:
        return int(_STATM.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource  # noqa: PLC0415 -- not every system has it
    except ImportError as error:
        raise ConfigurationError("this system does not tell how much memory a process uses") from error
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
