"""Where event handlers run: a bounded pool of threads, or the caller's thread."""

from cqrs_sync.threads.executor import Call, Executor, Work
from cqrs_sync.threads.pool import SameThread, ThreadPool

__all__ = ["Call", "Executor", "SameThread", "ThreadPool", "Work"]
