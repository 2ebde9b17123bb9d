"""The executor pool: runs weighted jobs in long-lived domains, for the length of an `async with` block.

This is the face that users see: what a call means, and the pool's life. Which domain gets which job is decided in
`domains.pool.dispatch`. Every job that was submitted ends exactly once. Used from the thread of its event loop.
What only a pool at home needs is imported when there is one, for each domain imports this file.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, TypeVarTuple, overload

from domains.errors import Closed, DomainDied
from domains.interruption import GRACE_SECONDS
from domains.job import Job
from domains.pool.checks import checked_priority, checked_retry, checked_seconds, checked_weight
from domains.retry import RetryOn
from domains.scheduler import fiber
from domains.scheduler.cancel import timeout as time_limit
from domains.scheduler.promise import Promise
from domains.scheduler.switch import Switch

if TYPE_CHECKING:
    from domains.domain_manager import DomainManager
    from domains.pool.dispatch import Dispatcher, Submissions
    from domains.pool.mapping import MapResults
    from domains.pool.progress import PoolProgress, ProgressWatch
    from domains.pool.stats import PoolStats

T = TypeVar("T")
X = TypeVar("X")
Ts = TypeVarTuple("Ts")

_NOT_OPEN_YET = "the executor pool is not open yet: submit inside its `async with` block"


class ExecutorPool(AbstractAsyncContextManager["ExecutorPool"]):
    """Runs jobs in domains of its own, for the length of an `async with` block.

    Leaving the block waits for the jobs that were submitted; leaving it by an exception or a cancellation cancels
    them. `await switch.enter(pool)` ties it to a switch instead.

    There are `domain_count` domains, by default the number of cores that this process may use; or `min_domains` at
    first, more up to `max_domains` while jobs wait, and fewer again when some were idle for `idle` seconds. Each calls
    `initializer(*initargs)`, plain or `async`, before its first job. A domain is replaced after it was given `max_jobs`
    jobs, or when it holds more than `max_memory` bytes after a job; what it runs still ends there. A cancelled job may
    keep its domain from everything else for `grace` seconds, then that is killed and replaced. With `heartbeat_seconds`
    a domain is asked for a sign of life that often, which a running Python job gives as well, and is killed and
    replaced when it gives none until the next time: it was stopped, or is stuck in C code.

    Raises TypeError and ValueError for options that make no sense, NotPicklable for such an initializer.
    """

    def __init__(
        self,
        domain_mgr: DomainManager,
        *,
        domain_count: int | None = None,
        min_domains: int | None = None,
        max_domains: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        max_jobs: int | None = None,
        max_memory: int | None = None,
        idle: float = 10.0,
        grace: float = GRACE_SECONDS,
        heartbeat_seconds: float | None = None,
    ) -> None:
        from domains.pool.options import checked_options

        self._options = checked_options(
            domain_count,
            domain_mgr.default_count,
            min_domains,
            max_domains,
            initializer,
            tuple(initargs),
            max_jobs,
            max_memory,
            idle,
            grace,
            heartbeat_seconds,
        )
        self._manager = domain_mgr
        self._catalogue = domain_mgr.catalogue
        self._references = domain_mgr.references
        self._count = self._options.max_domains
        self._dispatch: Submissions | None = None

    async def __aenter__(self) -> ExecutorPool:
        fiber.check()
        if self._dispatch is not None:
            raise RuntimeError("an executor pool can be entered only once")
        from domains.pool.dispatch import Dispatcher

        self._dispatch = Dispatcher(self._manager, self._options)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        dispatch = self._at_home()
        if error is None:
            try:
                await dispatch.all_ended()
            except asyncio.CancelledError as cancelled:
                await dispatch.abandon(cancelled)
                raise
            await dispatch.finish()
        else:
            await dispatch.abandon(error)

    async def ready(self) -> None:
        """Wait until the pool's first domains run and are initialized, so that no job waits for that.

        Raises DomainUnavailable if they cannot start, Closed after the end of the pool.
        """
        fiber.check()
        await self._at_home().ready()

    async def drain(self) -> None:
        """Take no new jobs, wait for those that there are, and end the domains.

        Jobs that wait or run may still submit jobs of their own. Cancelling it cancels them all.
        """
        fiber.check()
        dispatch = self._at_home()
        dispatch.refuse()
        await self.__aexit__(None, None, None)

    async def close(self) -> None:
        """Cancel all jobs, and end the domains at once, or after `grace` seconds those that do not listen.

        Each caller gets Cancelled with Closed as its reason. Cannot be cancelled.
        """
        await self._at_home().abandon(Closed("the executor pool was closed"))

    def _at_home(self) -> Dispatcher:
        from domains.pool.dispatch import Dispatcher

        dispatch = self._dispatch
        if not isinstance(dispatch, Dispatcher):
            raise RuntimeError("only where an executor pool was entered can this be done to it, and only after that")
        return dispatch

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
        retry_on: RetryOn = DomainDied,
        backoff: float = 0.05,
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
        retry_on: RetryOn = DomainDied,
        backoff: float = 0.05,
    ) -> T: ...
    async def submit(  # type: ignore[misc]  # mypy does not match Any with a TypeVarTuple
        self,
        f: Callable[..., Any],
        *args: Any,
        weight: float,
        timeout: float | None = None,
        retries: int = 0,
        priority: int = 0,
        retry_on: RetryOn = DomainDied,
        backoff: float = 0.05,
    ) -> Any:
        """Run `f(*args)`, plain or `async`, in one of the domains, and return its result.

        `weight` is the share of a core that it is expected to use, 0.0 to 1.0. After `timeout` seconds it is cancelled
        and TimeoutError raised. If it fails with an exception in `retry_on`, by default only if its domain dies, it is
        run again, up to `retries` times, after about `backoff` seconds, and twice as long each time. Of two jobs that
        wait, the one with the higher `priority` starts first.

        Raises what the job raises, with the remote traceback; DomainDied if its domain dies; NotPicklable; Closed
        after the end of the pool; ValueError or TypeError for an argument that makes no sense. Cancelling
        it cancels the job where it runs, and waits until it has ended.
        """
        fiber.check()
        dispatch = self._open()
        seconds = None if timeout is None else checked_seconds("timeout", timeout)
        job: Job[Any] = Job(
            self._catalogue.add(f),
            args,
            self._references,
            checked_weight(weight),
            dispatch,
            checked_priority(priority),
            None if retries == 0 else checked_retry(retries, retry_on, backoff),
        )
        if seconds is None:
            dispatch.push(job)
            return await job.outcome()
        with time_limit(seconds, what=f"job {job.function.name!r}"):
            dispatch.push(job)
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

        The switch waits for the job, and cancels it when it is cancelled; on one that was cancelled before, nothing
        runs. Raises at once what is wrong with the call.
        """
        switch.check_open()
        dispatch = self._open()
        function, share = self._catalogue.add(f), checked_weight(weight)
        if switch.is_cancelled:
            return switch.fork_promise(f, *args)  # which does not run it
        job: Job[Any] = Job(function, args, self._references, share, dispatch)
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
    ) -> MapResults[T]:
        """The results of `f` for each of `xs`, which may be of any length and is read only as far as needed.

        `f` is plain or `async`; a plain one may return what is to be awaited, if it does so for all of `xs`.
        Iterate over them with `async for`, or `await` all of them as a list.

        An async iterable is read by a task of its own: a result can be taken before there is another item.
        In the order of `xs`, or as they finish if not `ordered`. At most `buffer` items, by default as many as keep
        the domains busy, are under way or waiting to be taken at a time. Items go in groups of `chunk`, or of a size
        that follows how long they take. The first failure is raised, and cancels the rest; so does leaving the loop
        early.
        """
        from domains.pool.mapping import map_over

        dispatch = self._open()
        return map_over(
            dispatch, self._catalogue, self._references, f, xs, checked_weight(weight), ordered, buffer, chunk
        )

    def as_executor(self, weight: float = 1.0) -> Executor:
        """The pool as a `concurrent.futures.Executor`, for other threads and for `loop.run_in_executor`.

        Each of its jobs has this weight. Raises Closed, and ValueError or TypeError for a weight that is none.
        """
        from domains.pool.face import PoolFace  # it brings multiprocessing along

        return PoolFace(self, weight)

    def stats(self) -> PoolStats:
        """What the pool is doing at this moment. Raises Closed after its end, RuntimeError in other domains."""
        return self._open().stats()

    def watch(self, callback: Callable[[PoolProgress], object], *, interval: float = 0.1) -> ProgressWatch:
        """`with pool.watch(callback):` call `callback(progress)` at most every `interval` seconds, and at the end.

        Progress counts what was submitted, has ended and has failed since the block began, whoever submitted it.
        `domains.pool.progress_bar` draws it.
        """
        from domains.pool.progress import ProgressWatch

        return ProgressWatch(self._at_home().count, callback, checked_seconds("interval", interval))

    def _open(self) -> Submissions:
        """The dispatcher, while jobs may be submitted; raises Closed otherwise."""
        dispatch = self._dispatch
        if dispatch is None:
            raise Closed(_NOT_OPEN_YET)
        if (refusal := dispatch.refusal) is not None:
            raise refusal
        return dispatch

    def _open_within(self) -> Dispatcher:
        """The same for jobs that are submitted by jobs: they may while the pool is being drained."""
        if self._dispatch is None:
            raise Closed(_NOT_OPEN_YET)  # it may be handed to other domains before it is entered
        dispatch = self._at_home()
        if (closed := dispatch.closed) is not None:
            raise closed
        return dispatch
