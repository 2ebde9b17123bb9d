"""A backend for joblib, and by it for scikit-learn: after `register()`, `joblib.parallel_config("domains")` uses it.

Needs joblib 1.5 or later, from the extra `joblib`. A backend has one executor, which serves every `Parallel` call of
its `parallel_config` block, and ends when joblib lets go of the backend.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import joblib
from joblib.parallel import AutoBatchingMixin, BatchedCalls, FallbackToBackend, ParallelBackendBase, SequentialBackend

from domains.cores import recommended_domain_count
from domains.joblib_arrays import SharedArrays
from domains.pool_executor import PoolExecutor

__all__ = ["register"]


def register(*, make_default: bool = False) -> None:
    """Make the backend known to joblib as "domains"; with `make_default`, let it be used where none is asked for."""
    joblib.register_parallel_backend("domains", _DomainsBackend, make_default=make_default)


class _DomainsBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """Runs joblib's batches in the domains of one `PoolExecutor`."""

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._executor: PoolExecutor | None = None
        self._workers_wanted = 0
        self._lock = threading.Lock()
        self._futures: set[Future[Any]] = set()
        self._arrays = SharedArrays()
        self._shared_from_bytes = math.inf

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many domains to use: joblib counts from the end if negative, and None is 1."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(recommended_domain_count() + 1 + n_jobs, 1)

    def configure(self, n_jobs: int | None = 1, parallel: Any = None, max_nbytes: float | None = None, **_: Any) -> int:
        """Called by joblib before each `Parallel` call; starts domains where their number has changed.

        Arrays of `max_nbytes` and more are copied once for the whole call.
        """
        workers = self.effective_n_jobs(n_jobs)
        if workers == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        self._shared_from_bytes = math.inf if max_nbytes is None else max_nbytes
        if workers != self._workers_wanted:
            self._end_executor()
            self._executor = PoolExecutor(
                workers, initializer=_set_environment, initargs=(self._prepare_worker_env(n_jobs=workers),)
            )
            self._workers_wanted = workers
        return workers

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Future[Any]:
        """Start one batch. Called by any thread that has been told of an earlier one's end."""
        assert self._executor is not None
        if isinstance(func, BatchedCalls):
            func.items = [
                (
                    f,
                    [self._share(value) for value in args],
                    {name: self._share(value) for name, value in keywords.items()},
                )
                for f, args, keywords in func.items
            ]
        future = self._executor.submit(func)
        with self._lock:
            self._futures.add(future)
        future.add_done_callback(self._forget)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def _share(self, value: Any) -> Any:
        return self._arrays.share(value, self._shared_from_bytes)

    def stop_call(self) -> None:
        """Called after each `Parallel` call, also of those that share a `with` block."""
        self._arrays.forget()

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._futures.discard(future)

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """One batch has failed, or the caller has had enough: cancel the others, where they run too."""
        with self._lock:
            futures = list(self._futures)
        for future in futures:
            future.cancel()

    def terminate(self) -> None:
        """Called after each `Parallel` call: the domains stay for the next one."""
        self.reset_batch_stats()
        self.parallel = None  # it knows us, and would keep us until the garbage collector comes

    def _end_executor(self) -> None:
        executor, self._executor, self._workers_wanted = self._executor, None, 0  # a Ctrl-C may come before the next
        if executor is not None:
            executor.shutdown()


def _set_environment(variables: dict[str, str]) -> None:
    """Tell numeric libraries how many threads they may use, before a job imports them."""
    os.environ.update(variables)
