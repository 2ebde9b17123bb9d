"""Which domain gets which job, and when.

Invariants: jobs of one priority are sent in the order of their submission; a domain is sent jobs while the weights
of those it has add up to less than 1.0, and, when jobs are short, some more ahead of time; what was sent ahead is
taken back as soon as another domain could start it, or a job of a higher priority comes. A domain that dies is
replaced, and what it had not begun goes to others. Every job ends exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from domains.domain import CANCELLING_SECONDS, FINISHING_SECONDS, DomainHandle
from domains.errors import Cancelled, Closed, DomainsError, DomainUnavailable
from domains.job import Job, JobState
from domains.pool.queue import JobQueue
from domains.pool.stats import DomainStats, PoolStats
from domains.protocol import FULL_WEIGHT
from domains.scheduler.cancel import protect
from domains.scheduler.promise import Promise
from domains.scheduler.switch import Switch

if TYPE_CHECKING:
    from domains.domain_manager import DomainManager

_AHEAD_SECONDS = 0.002
"""How much work is sent ahead to a busy domain: more than a turn of the parent's loop takes."""

_MOST_AHEAD = 1024
"""The same as a number of jobs; well below `domains.ipc.claims.MOST_OFFERED`."""

_MOST_FALSE_STARTS = 3
"""After so many domains in a row that ended before they were ready, the pool gives up."""


class Submissions(Protocol):
    """Where a pool's jobs go: the `Dispatcher` at its home, or what stands for that elsewhere."""

    size: int

    @property
    def closed(self) -> DomainsError | None:
        """Why no job may be submitted any more, or None."""

    def push(self, job: Job[Any], /) -> None: ...
    def cancel(self, job: Job[Any], reason: BaseException, /) -> None: ...
    def job_ended(self, job: Job[Any], /) -> None: ...
    def stats(self) -> PoolStats: ...


class _Member:
    """One place in the pool: the domain that holds it now, and the weights of all jobs which that domain has."""

    __slots__ = ("batch", "handle", "lent", "load", "waiting")

    def __init__(self, handle: DomainHandle) -> None:
        self.handle = handle
        self.load = 0
        self.batch: list[Job[Any]] = []  # chosen for it in this dispatch
        self.lent: set[Job[Any]] = set()  # those whose weight is not in the load, while they wait for others
        self.waiting: Callable[[], None] | None = None  # withdraws our wait for its congested link

    @property
    def jobs(self) -> int:
        return len(self.handle.jobs) + len(self.batch)


class Dispatcher:
    """The queue of a pool and its domains. Starts the domains at once; belongs to the running loop."""

    def __init__(self, manager: DomainManager, count: int, grace: float) -> None:
        self.size = count
        self._grace = grace
        self._manager = manager
        self._loop = asyncio.get_running_loop()
        self._queue = JobQueue()
        self._members: dict[DomainHandle, _Member] = {}
        self._closed: DomainsError | None = None
        self._unfinished = 0
        self._when_idle: list[Callable[[], object]] = []
        self._scheduled = False
        self._job_seconds: float | None = None
        self._sent_priority = 0
        self._false_starts = 0
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._kill_members)
            for _ in range(count):
                self._recruit()
            on_failure.pop_all()

    @property
    def closed(self) -> DomainsError | None:
        """Why no job may be submitted any more, or None."""
        return self._closed

    def push(self, job: Job[Any]) -> None:
        """Queue a job of which this is the owner; the pool must not be closed."""
        assert self._closed is None
        self._unfinished += 1
        self._queue.push(job)
        if not self._scheduled:
            self._schedule()

    def cancel(self, job: Job[Any], reason: BaseException) -> None:
        """End a job that nobody wants any more: at once if it waits here, else where it is."""
        if job.state is JobState.SENT and job.weight:
            # It may wait behind a long job in a domain that reads nothing: try to have it back first.
            self._take_back(self._members[job.holder])
        if job.state is JobState.QUEUED:
            job.fail(Cancelled(reason))
            self._queue.cancelled()
        elif job.state is JobState.SENT:
            job.holder.cancel(job, reason)

    def stats(self) -> PoolStats:
        domains = tuple(
            DomainStats(handle.name, handle.pid, member.jobs, member.load / FULL_WEIGHT)
            for handle, member in self._members.items()
        )
        running = sum(domain.jobs for domain in domains)
        return PoolStats(len(self._queue), running, sum(domain.weight for domain in domains), domains)

    # The pool's end

    async def all_ended(self) -> None:
        """Wait until no job waits or runs."""
        if self._unfinished:
            idle, resolver = Promise[None].create("the end of a pool's jobs")
            self._when_idle.append(lambda: resolver.try_resolve(None))
            await idle

    async def finish(self) -> None:
        """Close the domains once their jobs have ended."""
        self._close()
        await self._close_members(FINISHING_SECONDS)

    async def abandon(self, reason: BaseException) -> None:
        """Cancel every job and close the domains; those that do not come to an end are killed."""
        self._close()
        if isinstance(reason, Cancelled) and reason.reason is not None:
            reason = reason.reason
        for job in self._queue.clear():
            job.fail(Cancelled(reason))
        for handle in self._members:
            handle.cancel_jobs(reason)
        await self._close_members(CANCELLING_SECONDS)

    def _close(self) -> None:
        self._closed = Closed("the executor pool is closed: submit inside its `async with` block")

    async def _close_members(self, seconds: float) -> None:
        with protect():
            async with Switch(name="closing a pool") as switch:
                for handle in list(self._members):
                    switch.fork(handle.close, seconds)

    def _kill_members(self) -> None:
        self._close()
        for handle in list(self._members):
            handle.kill()

    # Domains come and go

    def _recruit(self) -> None:
        handle = self._manager.open()
        handle.grace_seconds = self._grace
        self._members[handle] = _Member(handle)
        handle.conversation.after_frame(self._dispatch_after_answers)
        handle.when_answered(self._answered)
        handle.when_lent(self._weight_lent)
        handle.when_ended(self._domain_ended)

    def _domain_ended(self, handle: DomainHandle) -> None:
        member = self._members.pop(handle)
        if member.waiting is not None:
            member.waiting()
        for job in handle.jobs.values():
            job.holder = None
        if self._closed is not None:
            return
        self._queue.put_back(handle.recover())
        self._false_starts = 0 if handle.was_ready else self._false_starts + 1
        if self._false_starts >= _MOST_FALSE_STARTS:
            self._give_up(handle)
            return
        try:
            self._recruit()
        except DomainsError as error:
            self._break(error)
        self._schedule()

    def _give_up(self, handle: DomainHandle) -> None:
        failure = DomainUnavailable(
            f"the pool's domains cannot start: {_MOST_FALSE_STARTS} in a row ended before they were ready; "
            f"the last: {handle.error()}"
        )
        failure.__cause__ = handle.error()
        self._break(failure)

    def _break(self, failure: DomainsError) -> None:
        """Nothing can be run any more, unless a domain still lives: those who wait are told why."""
        if not self._members:
            self._closed = failure
            for job in self._queue.clear():
                job.fail(failure)

    # Jobs come and go

    def job_ended(self, job: Job[Any]) -> None:
        self._unfinished -= 1
        if not self._unfinished:
            callbacks, self._when_idle = self._when_idle, []
            for callback in callbacks:
                callback()

    def _answered(self, job: Job[Any], seconds: float) -> None:
        member = self._members[job.holder]
        if member.lent and job in member.lent:
            member.lent.discard(job)
        else:
            member.load -= job.weight
        job.holder = None
        if job.weight == FULL_WEIGHT:
            known = self._job_seconds
            self._job_seconds = seconds if known is None else known + (seconds - known) / 16

    def _weight_lent(self, job: Job[Any], lent: bool) -> None:
        member = self._members[job.holder]
        if lent:
            member.lent.add(job)
            member.load -= job.weight
        else:
            member.lent.discard(job)
            member.load += job.weight

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch_now)

    def _dispatch_now(self) -> None:
        self._scheduled = False
        self._dispatch_after_answers()

    def _dispatch_after_answers(self) -> None:
        """Send what can be sent; called when jobs were submitted and when domains have answered."""
        queue = self._queue
        if not len(queue):
            self._rebalance()
            return
        available = [m for m in self._members.values() if m.handle.takes_jobs and not self._is_congested(m)]
        ahead = self._jobs_ahead()
        while available and (job := queue.first()) is not None:
            if job.priority > self._sent_priority:
                self._take_back_what_is_ahead()
                self._sent_priority = job.priority
                continue
            weight = job.weight
            member = available[0]
            for other in available:
                if other.load < member.load or (not weight and other.jobs < member.jobs):
                    member = other
            excess = member.load - FULL_WEIGHT
            if weight and excess >= 0 and (excess >= ahead * weight or member.jobs >= _MOST_AHEAD):
                break  # all are busy, and it is not worth being sent ahead
            queue.pop()
            self._sent_priority = job.priority
            member.load += weight
            job.holder = member.handle
            member.batch.append(job)
        for member in available:
            if member.batch:
                batch, member.batch = member.batch, []
                member.handle.start(batch)
                member.handle.link.flush()

    def _jobs_ahead(self) -> int:
        """How many jobs to send to a domain beyond what it can start now."""
        seconds = self._job_seconds
        if seconds is None:
            return 1
        return min(_MOST_AHEAD, int(_AHEAD_SECONDS / max(seconds, 1e-7)))

    def _is_congested(self, member: _Member) -> bool:
        if not member.handle.link.is_congested:
            return False
        if member.waiting is None:

            def writable() -> None:
                member.waiting = None
                self._schedule()

            member.waiting = member.handle.link.when_writable(writable)
        return True

    def _rebalance(self) -> None:
        """Nothing waits here: if a domain could start what another was sent ahead, take that back and send it."""
        members = self._members.values()
        if any(m.load < FULL_WEIGHT and m.handle.takes_jobs for m in members) and any(
            m.load > FULL_WEIGHT and m.jobs > 1 for m in members
        ):
            self._take_back_what_is_ahead()
            if len(self._queue):
                self._dispatch_after_answers()

    def _take_back_what_is_ahead(self) -> None:
        for member in self._members.values():
            if member.load > FULL_WEIGHT:
                self._take_back(member)

    def _take_back(self, member: _Member) -> None:
        """Have what this domain was sent and has not begun back in the queue."""
        if taken := member.handle.take_back():
            for job in taken:
                member.load -= job.weight
                job.holder = None
            self._queue.put_back(taken)
            self._schedule()
