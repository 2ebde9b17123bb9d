"""A pool as a `concurrent.futures.Executor`: `submit`, `map` and `shutdown`, for any thread.

What is submitted reaches the pool through an `Inbox`. Nothing is accepted once `shutdown` was called, and everything
that was accepted before ends. `PoolFace` is what `ExecutorPool.as_executor` returns; `domains.PoolExecutor` brings a
pool of its own.
"""

from __future__ import annotations

import contextvars
import inspect
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from domains.pool.calls import call_chunk, call_chunk_async
from domains.pool.checks import checked_weight
from domains.pool.executor_errors import as_executors_raise
from domains.pool.futures import Call, JobFuture
from domains.pool.inbox import Inbox

if TYPE_CHECKING:
    from domains.pool.executor import ExecutorPool

P = ParamSpec("P")
T = TypeVar("T")


class ExecutorFace(Executor):
    """What every executor of ours does."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._lock = threading.RLock()  # pickling in this thread may come back here
        self._is_shut_down = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Let `fn(*args, **kwargs)`, plain or `async`, run in one of the domains. May be called from any thread.

        The future's `cancel` reaches the job even while it runs. A job whose domain dies fails with an error that is
        a DomainDied and a BrokenProcessPool, and nothing else does. Raises RuntimeError after the shutdown.
        """
        future = JobFuture(self._inbox, Call(fn, args, kwargs, contextvars.copy_context()))
        with self._lock:
            self._check_open()
            self._inbox.start(future)
        return future

    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[T]:
        """The results of `fn` for the items of the iterables, in their order; these are read to the end at once.

        Sent in chunks of `chunksize`. The first failure is raised, TimeoutError if a result is not there `timeout`
        seconds after the call; then, and when the iterator is dropped, what has not ended is cancelled.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        call: Callable[..., Any] = call_chunk_async if inspect.iscoroutinefunction(fn) else call_chunk
        chunks = _chunks(zip(*iterables, strict=False), chunksize)
        return _flatten(super().map(partial(call, fn), chunks, timeout=timeout))

    @abstractmethod
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept nothing more, and let the rest end; with `wait`, return when it has.

        With `cancel_futures`, what no domain has begun is cancelled.
        """

    def _check_open(self) -> None:
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if (closed := self._inbox.closed) is not None:
            error = as_executors_raise(closed)
            if isinstance(error, RuntimeError):
                raise error
            raise RuntimeError(f"cannot schedule new futures after shutdown: {closed}") from closed


class PoolFace(ExecutorFace):
    """An open pool, used by `concurrent.futures`' rules. Ends with its pool at the latest."""

    def __init__(self, pool: ExecutorPool, weight: float) -> None:
        super().__init__(Inbox(checked_weight(weight)))
        self._inbox.open(pool)
        pool._references.outsiders.add(self._inbox)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept nothing more; the pool goes on. With `wait`, return when all that was submitted here has ended.

        With `cancel_futures`, what no domain has begun is cancelled. Raises RuntimeError instead of waiting in the
        thread of the pool's event loop, which could not go on meanwhile.
        """
        with self._lock:
            self._is_shut_down = True
        would_deadlock = threading.get_ident() == self._inbox.thread and not self._inbox.is_idle
        if cancel_futures:
            self._inbox.cancel_those_not_begun()
        if not wait:
            return
        if would_deadlock:
            raise RuntimeError(
                "this thread runs the event loop of the pool, which cannot go on while it waits: use "
                "`shutdown(wait=False)`, since the pool's own `async with` block waits for its jobs"
            )
        if threading.get_ident() != self._inbox.thread:
            ended = threading.Event()
            self._inbox.tell_when_idle(ended.set)
            ended.wait()


def _chunks(items: Iterable[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def _flatten(chunks: Iterator[list[T]]) -> Iterator[T]:
    """The items one by one, without holding on to what was yielded."""
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()
