"""The executor pool: runs weighted jobs in long-lived domains, for the length of an `async with` block.

This is the face that users see: what a call means, and the pool's life. Which domain gets which job is decided in
`domains.pool.dispatch`. Every job that was submitted ends exactly once. Used from the thread of its event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, TypeVarTuple, overload

from domains.domain import GRACE_SECONDS
from domains.errors import Closed
from domains.job import Job
from domains.pool.dispatch import Dispatcher, Submissions
from domains.pool.mapping import map_over
from domains.pool.stats import PoolStats
from domains.pool.weight import checked_seconds, checked_weight
from domains.scheduler import fiber
from domains.scheduler.cancel import timeout as time_limit
from domains.scheduler.promise import Promise
from domains.scheduler.switch import Switch

if TYPE_CHECKING:
    from domains.domain_manager import DomainManager

T = TypeVar("T")
X = TypeVar("X")
Ts = TypeVarTuple("Ts")


class ExecutorPool(AbstractAsyncContextManager["ExecutorPool"]):
    """Runs jobs in `domain_count` domains of its own, for the length of an `async with` block.

    Leaving the block waits for the jobs that were submitted; leaving it by an exception or a cancellation cancels
    them. Raises ValueError for a `domain_count` below 1; the default is the number of cores that this process may use.
    """

    def __init__(
        self, domain_mgr: DomainManager, *, domain_count: int | None = None, grace: float = GRACE_SECONDS
    ) -> None:
        if domain_count is None:
            domain_count = domain_mgr.default_count
        if type(domain_count) is not int:
            raise TypeError(f"domain_count must be an int, not {type(domain_count).__name__} {domain_count!r}")
        if domain_count < 1:
            raise ValueError(f"domain_count must be at least 1, but is {domain_count}")
        self._manager = domain_mgr
        self._catalogue = domain_mgr.catalogue
        self._references = domain_mgr.references
        self._count = domain_count
        self._grace = checked_seconds("grace", grace)
        self._dispatch: Submissions | None = None

    async def __aenter__(self) -> ExecutorPool:
        fiber.check()
        if self._dispatch is not None:
            raise RuntimeError("an executor pool can be entered only once")
        self._dispatch = self._home_dispatch = Dispatcher(self._manager, self._count, self._grace)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        dispatch = self._home_dispatch
        if error is None:
            try:
                await dispatch.all_ended()
            except asyncio.CancelledError as cancelled:
                await dispatch.abandon(cancelled)
                raise
            await dispatch.finish()
        else:
            await dispatch.abandon(error)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an executor pool travels only between domains: as a job's argument or result, or inside one")

    # Submitting

    @overload
    async def submit(
        self,
        f: Callable[[*Ts], Awaitable[T]],
        *args: *Ts,
        weight: float,
        timeout: float | None = None,
        retries: int = 0,
        priority: int = 0,
    ) -> T: ...
    @overload
    async def submit(
        self,
        f: Callable[[*Ts], T],
        *args: *Ts,
        weight: float,
        timeout: float | None = None,
        retries: int = 0,
        priority: int = 0,
    ) -> T: ...
    async def submit(  # type: ignore[misc]  # mypy does not match Any with a TypeVarTuple
        self,
        f: Callable[..., Any],
        *args: Any,
        weight: float,
        timeout: float | None = None,
        retries: int = 0,
        priority: int = 0,
    ) -> Any:
        """Run `f(*args)`, plain or `async`, in one of the domains, and return its result.

        `weight` is the share of a core that it is expected to use, 0.0 to 1.0. After `timeout` seconds it is cancelled
        and TimeoutError raised. If its domain dies it is run again, up to `retries` times. Of two jobs that wait, the
        one with the higher `priority` starts first.

        Raises what the job raises, with the remote traceback; DomainDied if its domain dies; NotPicklable; Closed
        after the end of the pool; ValueError or TypeError for a weight that is none. Cancelling it cancels the job
        where it runs, and waits until it has ended.
        """
        fiber.check()
        dispatch = self._open()
        job: Job[Any] = Job(
            self._catalogue.add(f), args, self._references, checked_weight(weight), dispatch, priority, retries
        )
        dispatch.push(job)
        if timeout is None:
            return await job.outcome()
        with time_limit(timeout):
            return await job.outcome()

    @overload
    def submit_fork(
        self, switch: Switch, f: Callable[[*Ts], Awaitable[T]], *args: *Ts, weight: float
    ) -> Promise[T]: ...
    @overload
    def submit_fork(self, switch: Switch, f: Callable[[*Ts], T], *args: *Ts, weight: float) -> Promise[T]: ...
    def submit_fork(  # type: ignore[misc]  # mypy does not match Any with a TypeVarTuple
        self, switch: Switch, f: Callable[..., Any], *args: Any, weight: float
    ) -> Promise[Any]:
        """Submit a job that belongs to a switch, without waiting: its outcome comes to the promise.

        The switch waits for the job, and cancels it when it is cancelled. Raises at once what is wrong with the call.
        """
        switch.check_open()
        dispatch = self._open()
        job: Job[Any] = Job(self._catalogue.add(f), args, self._references, checked_weight(weight), dispatch)
        dispatch.push(job)
        job.belong_to(switch)
        return job.promise

    def map(
        self,
        f: Callable[[X], Awaitable[T]] | Callable[[X], T],
        xs: Iterable[X] | AsyncIterable[X],
        *,
        weight: float,
        ordered: bool = True,
        buffer: int | None = None,
        chunk: int | Literal["auto"] = "auto",
    ) -> AsyncIterator[T]:
        """The results of `f` for each of `xs`, which may be of any length and is read only as far as needed.

        In the order of `xs`, or as they finish if not `ordered`. At most `buffer` items are under way or waiting to
        be taken at a time. Items go in groups of `chunk`, or of a size that follows how long they take. The first
        failure is raised, and cancels the rest; so does leaving the loop early.
        """
        dispatch = self._open()
        return map_over(
            dispatch, self._catalogue, self._references, f, xs, checked_weight(weight), ordered, buffer, chunk
        )

    def stats(self) -> PoolStats:
        """What the pool is doing at this moment."""
        return self._open().stats()

    def _open(self) -> Submissions:
        """The dispatcher, while jobs may be submitted; raises Closed otherwise."""
        if self._dispatch is None:
            raise Closed("the executor pool is not open yet: submit inside its `async with` block")
        if self._dispatch.closed is not None:
            raise self._dispatch.closed
        return self._dispatch
