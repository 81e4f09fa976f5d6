"""Every executor keeps the promises of the socket: the caller's thread, and pools of 1, 2 and 16."""

import pytest

from cqrs_sync.testing.contracts.executor import ExecutorContract, ExecutorFeatures
from cqrs_sync.threads.pool import SameThread, ThreadPool


class TestSameThread(ExecutorContract):
    features = ExecutorFeatures(has_threads=False)

    @pytest.fixture
    def executor(self):
        return SameThread()


class PoolContract(ExecutorContract):
    @pytest.fixture
    def executor(self):
        with ThreadPool(self.features.limit) as pool:
            yield pool


class TestThreadPoolOf1(PoolContract):
    features = ExecutorFeatures(limit=1)


class TestThreadPoolOf2(PoolContract):
    features = ExecutorFeatures(limit=2)


class TestThreadPoolOf16(PoolContract):
    features = ExecutorFeatures(limit=16)
