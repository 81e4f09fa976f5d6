"""Where event handlers run: on a bounded pool of threads, or in the caller's thread."""

from cqrs_sync.threads.executor import Call, CallSource, Executor
from cqrs_sync.threads.pool import SameThread, ThreadPool

__all__ = ["Call", "CallSource", "Executor", "SameThread", "ThreadPool"]
