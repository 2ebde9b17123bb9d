"""The futures of an executor whose jobs run in domains.

A future carries its call until the job is made on the pool's loop, then the job until that has ended, then nothing.
Its outcome and its cancellation compete for one transition, under the future's own lock: once `cancel` has returned
True there is no result, and `concurrent.futures.wait` tells of it when the job has ended where it ran.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED
from typing import Any, NamedTuple, Protocol

from domains.job import Job, JobState
from domains.pool.executor_errors import as_executors_raise
from domains.scheduler.promise import Result, Returned

_logger = logging.getLogger("domains")


class Call(NamedTuple):
    """What was submitted, as it was submitted."""

    f: Callable[..., Any]
    args: tuple[Any, ...]
    keywords: dict[str, Any]
    variables: contextvars.Context


class Way(Protocol):
    """A future's way to the loop of its pool."""

    thread: int | None

    def cancel(self, future: JobFuture, /) -> None: ...


class JobFuture(Future[Any]):
    """A future of `concurrent.futures`, whose `cancel` reaches a running job too. All methods are for any thread."""

    def __init__(self, way: Way, call: Call) -> None:
        super().__init__()
        self._way = way
        self._carries: Call | Job[Any] | None = call

    def cancel(self) -> bool:
        """Cancel the job, be it queued or running; False if it has ended already. Does not wait for its end."""
        with self._condition:
            if self._state == FINISHED:
                return False
            if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
                return True
            self._state = CANCELLED
            self._condition.notify_all()
        self._way.cancel(self)
        self._invoke_callbacks()  # type: ignore[attr-defined]  # typeshed does not know it
        return True

    def running(self) -> bool:
        """Whether a domain has begun the job, nobody has cancelled it, and it is not known to have ended."""
        carried = self._carries
        return isinstance(carried, Job) and not self.done() and has_begun(carried)

    def result(self, timeout: float | None = None) -> Any:
        """As in `concurrent.futures`. Raises RuntimeError where waiting would stop the loop that it waits for."""
        self._check_may_wait(timeout)
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As in `concurrent.futures`. Raises RuntimeError where waiting would stop the loop that it waits for."""
        self._check_may_wait(timeout)
        return super().exception(timeout)

    def _check_may_wait(self, timeout: float | None) -> None:
        if threading.get_ident() == self._way.thread and not self.done() and (timeout is None or timeout > 0):
            raise RuntimeError(
                "this thread runs the event loop of the pool, which cannot go on while it waits for a future: "
                "use `await asyncio.wrap_future(future)` or `await pool.submit(...)`"
            )

    # Called on the pool's loop

    def take_call(self) -> Call | None:
        """What to make the job of, once; None if it is not wanted any more."""
        call, self._carries = self._carries, None
        assert isinstance(call, Call)
        if self._state == CANCELLED:  # if it becomes that in this moment, a letter follows that says so
            self.set_running_or_notify_cancel()
            return None
        return call

    def carry(self, job: Job[Any]) -> None:
        assert self._carries is None
        self._carries = job

    @property
    def job(self) -> Job[Any] | None:
        """The job while it is under way."""
        return self._carries if isinstance(self._carries, Job) else None

    def job_ended(self) -> None:
        self._carries = None

    def cancel_on_loop(self) -> None:
        """As `cancel`; whatever callbacks raise stays here."""
        try:
            self.cancel()
        except BaseException:  # such as a callback's SystemExit: it must not end the loop
            _logger.exception("a callback of %r failed", self)

    def settle(self, outcome: Result[Any]) -> None:
        """Tell the outcome to whoever waits, unless the future was cancelled before; runs the callbacks."""
        assert self._carries is None
        try:
            if isinstance(outcome, Returned):
                self.set_result(outcome.value)
            elif isinstance(outcome.error, asyncio.CancelledError):
                super().cancel()  # the job was, whoever did it
                self.set_running_or_notify_cancel()
            else:
                self.set_exception(as_executors_raise(outcome.error.with_traceback(outcome.traceback)))
        except InvalidStateError:
            if self.cancelled():
                self.set_running_or_notify_cancel()
        except BaseException:
            _logger.exception("a callback of %r failed", self)


def has_begun(job: Job[Any]) -> bool:
    """Whether a domain has begun a job, rather than being sent it ahead of time. Exact a moment ago."""
    if job.state is JobState.QUEUED:
        return False
    holder = job.holder
    if holder is None or not job.weight:
        return True  # what weighs nothing begins when it arrives
    try:
        return bool(holder.claims.last_started() >= job.ticket)
    except ValueError:  # the domain has just ended
        return False
