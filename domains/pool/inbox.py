"""The way of other threads into a pool: what they submit and cancel is done on the pool's loop, in order, in batches.

States: Waiting, while there is no pool yet and letters are kept -> Open -> Refusing, when every letter is answered at
once with why. A letter is a step and its argument; posting one costs an append, and a wake-up of the loop only if it
is not about to read anyway. Each future that was posted is settled exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from domains.errors import Cancelled, Closed
from domains.functions import no_function
from domains.job import Job, JobState
from domains.pool.futures import Call, JobFuture, has_begun
from domains.scheduler.promise import Raised, Result

if TYPE_CHECKING:
    from domains.pool.executor import ExecutorPool

_MOST_AT_ONCE = 256
"""Letters that are read before the loop gets a turn: some milliseconds of pickling."""


class _OpenPool:
    """What an open inbox needs of its pool. Belongs to the loop's thread."""

    def __init__(self, pool: ExecutorPool) -> None:
        self.dispatch = pool._open()
        self._catalogue = pool._catalogue
        self._references = pool._references

    def make_job(self, call: Call, weight: int) -> Job[Any]:
        """Raises what is wrong with the call: NotPicklable, TypeError."""
        f, args, keywords, _ = call
        if keywords:
            if not callable(f):
                raise no_function("a job", f)
            f = functools.partial(f, **keywords)
        return Job(self._catalogue.add(f), args, self._references, weight, self.dispatch)


class Inbox:
    """One executor's letters to its pool, all of whose jobs have the same weight, in millionths."""

    def __init__(self, weight: int) -> None:
        self._weight = weight
        self._letters: deque[tuple[Callable[[Any], object], Any]] = deque()
        self._is_awaited = True  # somebody is about to read
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool: _OpenPool | None = None
        self._refusal: BaseException | None = None
        self._futures: dict[Job[Any], JobFuture] = {}
        self._outcomes: deque[tuple[JobFuture, Result[Any]]] = deque()
        self._when_idle: list[Callable[[], object]] = []
        self._when_ended = self._ended  # one for all jobs
        self.thread: int | None = None
        """The thread that must not wait for a future, since it is the one that settles them."""

    # For any thread

    @property
    def closed(self) -> BaseException | None:
        """Why nothing can be submitted any more, or None."""
        return self._refusal or (None if self._pool is None else self._pool.dispatch.refusal)

    def start(self, future: JobFuture) -> None:
        """Let the future's call become a job; on the pool's own thread before this returns."""
        if threading.get_ident() == self.thread:
            self._start(future)
        else:
            self._post(self._start, future)

    def cancel(self, future: JobFuture) -> None:
        """A future was cancelled: its job is not wanted any more."""
        self._post(self._cancel, future)

    def cancel_those_not_begun(self) -> None:
        """Cancel the futures, among those posted so far, whose jobs no domain has begun or is about to begin."""
        self._post(self._plan_cancelling, _is_waiting)

    def cancel_all(self) -> None:
        """Cancel all futures that were posted so far."""
        self._post(self._plan_cancelling, lambda job: True)

    def tell_when_idle(self, callback: Callable[[], object]) -> None:
        """Call this, on the pool's thread, once all that was posted so far has ended."""
        self._post(self._when_idle_tell, callback)

    def do(self, step: Callable[[], object]) -> None:
        """Do this, on the pool's thread, after all that was posted so far was read."""
        self._post(lambda _: step(), None)

    def _post(self, step: Callable[[Any], object], argument: object) -> None:
        self._letters.append((step, argument))
        # In this order: whoever refuses does so first and reads then, so that one of the two sees the letter.
        if self._refusal is not None:
            self._read_all()
        elif not self._is_awaited:
            self._is_awaited = True
            assert self._loop is not None
            try:
                self._loop.call_soon_threadsafe(self._read)
            except RuntimeError as closed:
                self.loop_ended(closed)
            except BaseException:  # such as Ctrl-C, within what is Python code without uvloop
                self._is_awaited = False  # so that the next letter wakes the loop
                raise

    # For the pool's thread

    @property
    def is_idle(self) -> bool:
        """Whether everything that was posted so far is done, and told."""
        return not (self._letters or self._futures or self._outcomes)

    def open(self, pool: ExecutorPool) -> None:
        """From now on jobs go to this pool, of the running loop. Raises Closed."""
        assert self._pool is None
        self._pool = _OpenPool(pool)
        self._loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self._read()

    def refuse(self, why: BaseException) -> None:
        """Nothing will be done any more: every future that is left, or comes, fails with this."""
        self._refusal = why
        self.thread = None
        self._read_all()
        futures, self._futures = self._futures, {}
        for future in futures.values():  # there are none, unless the loop has ended before its time
            future.job_ended()
            future.settle(Raised(why, None))
        self._deliver()

    def loop_ended(self, closed: RuntimeError | None = None) -> None:
        """Nobody reads any more: neither what comes, nor what was posted when the loop had its last turn."""
        failure = Closed("the event loop of this executor's pool is closed")
        failure.__cause__ = closed
        self.refuse(failure)

    def _read(self) -> None:
        self._is_awaited = False
        letters = self._letters
        for _ in range(_MOST_AT_ONCE):
            if not letters:
                return
            step, argument = letters.popleft()
            step(argument)
        if letters and not self._is_awaited:
            self._is_awaited = True
            assert self._loop is not None
            self._loop.call_soon(self._read)

    def _read_all(self) -> None:
        with contextlib.suppress(IndexError):  # several threads may read what is refused
            while True:
                step, argument = self._letters.popleft()
                step(argument)

    def _start(self, future: JobFuture) -> None:
        call = future.take_call()
        if call is None:
            return
        if (closed := self.closed) is not None:
            future.settle(Raised(closed, None))
            return
        try:
            # Not in those of whoever woke the loop; the pool looks there too, for the weight that a waiting job lends.
            call.variables.run(self._submit, future, call)
        except BaseException as error:  # pickling runs a user's code
            if future.job is not None:
                del self._futures[future.job]
                future.job_ended()
            future.settle(Raised(error, error.__traceback__))

    def _submit(self, future: JobFuture, call: Call) -> None:
        pool = self._pool
        assert pool is not None
        job = pool.make_job(call, self._weight)
        job.on_end = self._when_ended
        future.carry(job)
        self._futures[job] = future
        pool.dispatch.push(job)

    def _cancel(self, future: JobFuture) -> None:
        if (job := future.job) is not None:
            job.cancel(Cancelled())

    def _plan_cancelling(self, chosen: Callable[[Job[Any]], bool]) -> None:
        if self._loop is not None and self._refusal is None:  # otherwise all has ended
            # Domains that are idle get their jobs first: the pool has planned that before.
            self._loop.call_soon(self._cancel_those, chosen)

    def _cancel_those(self, chosen: Callable[[Job[Any]], bool]) -> None:
        for job, future in list(self._futures.items()):
            if chosen(job):
                future.cancel_on_loop()
                job.cancel(Cancelled())  # now, not when the letter comes: it may be begun by then

    def _when_idle_tell(self, callback: Callable[[], object]) -> None:
        self._when_idle.append(callback)
        self._deliver()

    def _ended(self, job: Job[Any]) -> None:
        future = self._futures.pop(job)
        future.job_ended()
        outcome = job.promise.peek()
        assert outcome is not None
        if not self._outcomes:
            # Not at once: callbacks may submit and cancel, and whoever ends jobs is in the midst of something.
            assert self._loop is not None
            self._loop.call_soon(self._deliver)
        self._outcomes.append((future, outcome))

    def _deliver(self) -> None:
        outcomes = self._outcomes
        while outcomes:
            future, outcome = outcomes.popleft()
            future.settle(outcome)
        if not self._futures:
            callbacks, self._when_idle = self._when_idle, []
            for callback in callbacks:
                callback()


def _is_waiting(job: Job[Any]) -> bool:
    """Whether other jobs come before this one, wherever it is."""
    if job.state is JobState.QUEUED:
        return True
    return job.holder is not None and not has_begun(job) and next(iter(job.holder.jobs)) != job.ticket
