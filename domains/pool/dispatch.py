"""Which domain gets which job, and when.

Invariants: jobs of one priority are sent in the order of their submission; a domain is sent jobs while the weights
of those it has add up to less than 1.0, and, when jobs are short, some more ahead of time; what was sent ahead is
taken back as soon as another domain could start it, or a job of a higher priority comes. What a domain that dies had
not begun goes to others, and what it had begun too, after a while, if it may be run again. Every job ends exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from domains.cores import recommended_domain_count
from domains.domain import CANCELLING_SECONDS, FINISHING_SECONDS
from domains.errors import Cancelled, Closed, DomainDied, DomainsError, copy_of
from domains.job import Job, JobState
from domains.pool.members import Member, Members, MemberState
from domains.pool.options import PoolOptions
from domains.pool.progress import ProgressCount
from domains.pool.queue import JobQueue
from domains.pool.stats import DomainStats, PoolStats
from domains.protocol import FULL_WEIGHT
from domains.scheduler.promise import Promise, Raised

if TYPE_CHECKING:
    from domains.domain_manager import DomainManager

_RETIRED = MemberState.RETIRED

_AHEAD_SECONDS = 0.002
"""How much work is sent ahead to a busy domain: more than a turn of the parent's loop takes."""

_MOST_AHEAD = 2048
"""The same as a number of jobs."""

_MOST_PUSHED = 256
"""After so many submissions in one turn of the loop the first are sent, so that domains begin while more come."""


class Submissions(Protocol):
    """Where a pool's jobs go: the `Dispatcher` at its home, or what stands for that elsewhere."""

    size: int

    @property
    def refusal(self) -> DomainsError | None:
        """Why no job may be submitted any more, or None. Another object each time, for whoever raises it."""

    def push(self, job: Job[Any], /) -> None: ...
    def cancel(self, job: Job[Any], reason: BaseException, /) -> None: ...
    def job_ended(self, job: Job[Any], /) -> None: ...
    def try_again(self, job: Job[Any], /) -> None: ...
    def count_items(self, submitted: int, ended: int, /) -> None: ...
    def stats(self) -> PoolStats: ...


class Dispatcher:
    """The queue of a pool and its domains. Starts the domains at once; belongs to the running loop."""

    def __init__(self, manager: DomainManager, options: PoolOptions) -> None:
        self.size = options.max_domains
        self._loop = asyncio.get_running_loop()
        self._queue = JobQueue()
        self._resting: dict[Job[Any], asyncio.TimerHandle] = {}  # jobs that will be run again, after a while
        self._max_jobs = options.max_jobs or 0
        self._grace_seconds = options.grace
        self._closed: DomainsError | None = None
        """Why nothing can be submitted any more, not even by jobs of this pool, or None."""
        self._drained: DomainsError | None = None
        """Why only jobs of this pool may still submit, or None."""
        self.count = ProgressCount()
        self._unfinished = 0
        self._when_idle: list[Callable[[], object]] = []
        self._scheduled = False
        self._is_dealing = False
        """Whether jobs are just on their way between the queue and domains: what finalizers cancel then is put off."""
        self._pushed = 0
        """How many jobs have come since this was dispatched last."""
        self._job_seconds: float | None = None
        self._sent_priority = 0
        self._idle: dict[Member, None] = {}
        """Domains that have answered their last job; some have got others since."""
        self._has_cores = recommended_domain_count() > 1
        """Whether a domain and this process can run at the same time."""
        self._members = Members(manager, options, self)

    @property
    def refusal(self) -> DomainsError | None:
        why = self._closed or self._drained
        return None if why is None else copy_of(why)

    @property
    def closed(self) -> DomainsError | None:
        """Why not even jobs of this pool may submit any more, or None. Another object each time, as `refusal` is."""
        return None if self._closed is None else copy_of(self._closed)

    def push(self, job: Job[Any]) -> None:
        """Queue a job of which this is the owner; the pool must not be closed."""
        assert self._closed is None
        self._unfinished += 1
        self.count.submitted += 1
        if self._idle and not self._scheduled and self._begin_at_once(job):
            return
        was_dealing, self._is_dealing = self._is_dealing, True  # a finalizer may submit while others are dealt
        try:
            self._queue.push(job)
        finally:
            self._is_dealing = was_dealing
        if not self._scheduled:
            self.changed()
        self._pushed += 1
        if self._pushed == _MOST_PUSHED:
            self.answers_came()

    def _begin_at_once(self, job: Job[Any]) -> bool:
        """Send a job to a domain that has nothing to do, when nothing waits, rather than in the loop's next turn."""
        if self._queue.waiting or self._is_dealing:
            return False
        member, _ = self._idle.popitem()
        handle = member.handle
        if handle.jobs or not member.serves or handle.link.is_congested:
            return False
        self._sent_priority = min(self._sent_priority, job.priority)  # nothing was taken back for this one
        self._is_dealing = True
        try:
            is_last = self._assign(job, member)
            self._send(member, at_once=True)
            if self._unfinished == 1 and self._has_cores:
                handle.link.expect_soon()
        finally:
            self._is_dealing = False
        if is_last:
            self._members.retire(member)
        return True

    def cancel(self, job: Job[Any], reason: BaseException) -> None:
        """End a job that nobody wants any more: at once if it waits here, else where it is."""
        if self._is_dealing:
            self._loop.call_soon(self.cancel, job, reason)  # it may be the one that is on its way
            return
        if job.state is JobState.SENT and job.holder is None:
            return  # its domain has just ended, and is about to say so
        if job.state is JobState.SENT and job.weight:
            # It may wait behind a long job in a domain that reads nothing: try to have it back first.
            self.take_back(self._members[job.holder])
        if job.state is JobState.SENT:
            job.holder.cancel(job, reason)
        elif job in self._resting:
            self._resting.pop(job).cancel()
            job.fail(Cancelled(reason))
        elif job.state is JobState.QUEUED:
            job.fail(Cancelled(reason))
            with self._dealing():
                self._queue.cancelled()

    @contextlib.contextmanager
    def _dealing(self) -> Iterator[None]:
        """Put off what is cancelled meanwhile. Where each job counts it is written out, for that takes less long."""
        was_dealing, self._is_dealing = self._is_dealing, True
        try:
            yield
        finally:
            self._is_dealing = was_dealing

    def count_items(self, submitted: int, ended: int) -> None:
        """Jobs stand for so many more things that a user counts."""
        self.count.submitted += submitted
        self.count.ended += ended

    def stats(self) -> PoolStats:
        domains = tuple(
            DomainStats(member.handle.name, member.handle.pid, member.jobs, member.load / FULL_WEIGHT, member.answered)
            for member in self._members
        )
        running = sum(domain.jobs for domain in domains)
        queued = self._queue.waiting + len(self._resting)
        return PoolStats(queued, running, sum(domain.weight for domain in domains), domains)

    # The pool's life

    async def ready(self) -> None:
        """Wait until the least number of domains can serve."""
        await self._members.ready()

    def refuse(self) -> None:
        """Accept nothing more from outside."""
        self._drained = Closed("the executor pool is being drained: it takes no new jobs")

    async def all_ended(self) -> None:
        """Wait until no job waits or runs."""
        while self._unfinished:
            idle, resolver = Promise[None].create("the end of a pool's jobs")
            self._when_idle.append(partial(resolver.try_resolve, None))
            await idle  # who waited for the last job runs on before this, and may submit more

    async def finish(self) -> None:
        """Close the domains once their jobs have ended."""
        self._close()
        await self._members.close(FINISHING_SECONDS)

    async def abandon(self, reason: BaseException) -> None:
        """Cancel every job and close the domains; those that do not come to an end are killed."""
        self._close()
        if isinstance(reason, Cancelled) and reason.reason is not None:
            reason = reason.reason
        self._fail_waiting(lambda job: job.fail(Cancelled(reason)))
        self._members.cancel_jobs(reason)
        self._fail_waiting(lambda job: job.fail(Cancelled(reason)))  # what was taken back from the domains
        await self._members.close(max(CANCELLING_SECONDS, self._grace_seconds))

    def _close(self) -> None:
        if self._closed is None:
            self._closed = Closed("the executor pool is closed: submit inside its `async with` block")

    def _fail_waiting(self, fail: Callable[[Job[Any]], None]) -> None:
        with self._dealing():
            for job in self._queue.clear():
                fail(job)
            resting, self._resting = self._resting, {}
            for job, timer in resting.items():
                timer.cancel()
                fail(job)

    def broken(self, failure: DomainsError) -> None:
        """Nothing can be run any more: those who wait are told why, and those who come."""
        self._closed = failure
        self.stranded(failure)

    def stranded(self, failure: DomainsError) -> None:
        """Nobody is there to run what waits, and nobody comes: it fails, and what is submitted later may not."""
        self._fail_waiting(lambda job: job.fail_undelivered(copy_of(failure)))

    # What the members tell

    def answered(self, member: Member, job: Job[Any], seconds: float) -> None:
        if job.holder is None:
            return  # not one of the pool's: a domain's initializer
        member.answered += 1
        if member.lent and job in member.lent:
            member.lent.discard(job)
        else:
            member.load -= job.weight
        job.holder = None
        if job.weight == FULL_WEIGHT:
            known = self._job_seconds
            self._job_seconds = seconds if known is None else known + (seconds - known) / 16
        if member.state is _RETIRED:
            self._members.relieved(member)
        elif not member.handle.jobs:
            self._idle[member] = None

    def weight_lent(self, member: Member, job: Job[Any], lent: bool) -> None:
        if lent:
            member.lent.add(job)
            member.load -= job.weight
            if member.state is _RETIRED:
                self._members.relieved(member)
        else:
            member.lent.discard(job)
            member.load += job.weight

    def lost(self, member: Member) -> None:
        """A domain has ended: what it had goes back to the queue, as far as it may."""
        handle = member.handle
        self._idle.pop(member, None)
        with self._dealing():
            self._queue.put_back(self._let_go(handle.recover()))
            if self._closed is None:
                for job in self._let_go(handle.hand_back(_may_be_run_again)):
                    self._rest(job)
            for job in handle.jobs.values():
                job.holder = None

    def changed(self) -> None:
        """Jobs, or domains that could take some, have come: dispatch in the loop's next turn."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch_now)

    # Jobs come and go

    def job_ended(self, job: Job[Any]) -> None:
        self._unfinished -= 1
        self.count.ended += 1
        if type(job.promise._result) is Raised:
            self.count.failed += 1
        if not self._unfinished:
            callbacks, self._when_idle = self._when_idle, []
            for callback in callbacks:
                callback()

    def try_again(self, job: Job[Any]) -> None:
        """A job of this pool has failed in a way that it may be run again after."""
        if self._closed is not None:
            job.fail(copy_of(self._closed))
        else:
            with self._dealing():
                job.handed_back()
                self._rest(job)

    def _rest(self, job: Job[Any]) -> None:
        assert job.retry is not None
        self._resting[job] = self._loop.call_later(job.retry.next_delay(), self._wake, job)

    def _wake(self, job: Job[Any]) -> None:
        with self._dealing():
            del self._resting[job]
            self._queue.put_back([job])
        self.changed()

    def _let_go(self, jobs: list[Job[Any]]) -> list[Job[Any]]:
        for job in jobs:
            job.holder = None
        return jobs

    def _dispatch_now(self) -> None:
        self._scheduled = False
        self.answers_came()

    def answers_came(self) -> None:
        """Send what can be sent; called when jobs were submitted and when domains have answered."""
        self._pushed = 0
        if not self._unfinished or self._is_dealing:
            return
        queue = self._queue
        if not queue.waiting:
            self._rebalance()
            return
        exhausted: list[Member] = []
        self._is_dealing = True
        try:
            available = [m for m in self._members if m.serves and not self._is_congested(m)]
            self._make_way()
            while available and self._deal(available, exhausted):
                self._make_way()
            for member in available:
                if member.batch:
                    self._send(member)
            for member in exhausted:
                self._send(member)
        finally:
            self._is_dealing = False
        for member in exhausted:
            self._members.retire(member)
        if queue.waiting and all(member.load >= FULL_WEIGHT for member in available):
            self._members.grow(queue.waiting)

    def _make_way(self) -> None:
        """Take back what was sent ahead if something more urgent waits, also if it is for want of room to offer it."""
        first = next(self._queue.in_turn(), None)
        if first is not None and first.priority > self._sent_priority:
            self._sent_priority = first.priority
            self._take_back_where(lambda m: m.jobs > 1)  # also what might start, but waits behind a plain job

    def _deal(self, available: list[Member], exhausted: list[Member]) -> bool:
        """Choose who gets the next jobs, as far as it is time for them. True if something more urgent came.

        The least loaded gets the next job. What is only sent ahead is dealt by the hand, for it may be taken back.
        """
        ahead = self._jobs_ahead()
        hand = min(ahead // 8, self._queue.waiting // (4 * len(available)))
        in_hand = 0
        member = available[0]
        for job in self._queue.in_turn():
            if job.priority > self._sent_priority:
                return True  # it was pushed meanwhile
            weight = job.weight
            if not in_hand or not FULL_WEIGHT <= member.load < FULL_WEIGHT + ahead * weight:
                if not available:
                    return False
                member = available[0]
                for other in available:
                    if other.load < member.load or (not weight and other.jobs < member.jobs):
                        member = other
                if weight and member.load >= FULL_WEIGHT:
                    if member.load >= FULL_WEIGHT + ahead * weight or member.jobs >= _MOST_AHEAD:
                        return False  # all are busy, and it is not worth being sent ahead
                    in_hand = hand
            self._sent_priority = job.priority
            in_hand -= in_hand > 0
            if self._assign(job, member):
                available.remove(member)
                exhausted.append(member)
                in_hand = 0
        return False

    def _assign(self, job: Job[Any], member: Member) -> bool:
        """Put a job into a member's batch. True if this is the last that it may have."""
        member.load += job.weight
        job.holder = member.handle
        member.batch.append(job)
        member.sent += 1
        return member.sent == self._max_jobs

    def _send(self, member: Member, *, at_once: bool = False) -> None:
        batch, member.batch = member.batch, []
        link = member.handle.link
        link.hold()
        try:
            unoffered = member.handle.start(batch, at_once=at_once)
        finally:
            link.flush()
        if unoffered:
            self._put_back(member, unoffered)
            if member.handle.takes_jobs:  # sending may have ended the link
                member.waiting = member.handle.claims.when_room(partial(self._takes_more, member))

    def _jobs_ahead(self) -> int:
        """How many jobs to send to a domain beyond what it can start now."""
        seconds = self._job_seconds
        if seconds is None:
            return 1
        return min(_MOST_AHEAD, int(_AHEAD_SECONDS / max(seconds, 1e-7)))

    def _is_congested(self, member: Member) -> bool:
        if member.waiting is None:
            if not member.handle.link.is_congested:
                return False
            member.waiting = member.handle.link.when_writable(partial(self._takes_more, member))
        return True

    def _takes_more(self, member: Member) -> None:
        member.waiting = None
        self.changed()

    def _rebalance(self) -> None:
        """Nothing waits here: if a domain could start what another was sent ahead, take that back and send it."""
        members = self._members
        if any(m.load < FULL_WEIGHT and m.serves for m in members) and any(
            m.load > FULL_WEIGHT and m.jobs > 1 for m in members
        ):
            self._take_back_where(lambda m: m.load > FULL_WEIGHT)
        elif any(m.serves and not m.jobs for m in members):
            # A plain job keeps those behind it from starting, however little it weighs.
            self._take_back_where(lambda m: m.keeps_jobs_waiting)
        if self._queue.waiting:
            self.answers_came()

    def _take_back_where(self, which: Callable[[Member], bool]) -> None:
        for member in self._members:
            if which(member):
                self.take_back(member)

    def take_back(self, member: Member) -> None:
        """Have what this domain was sent and has not begun back in the queue."""
        with self._dealing():
            taken = member.handle.take_back()
            self._put_back(member, taken)
        if taken:
            if member.state is _RETIRED:
                self._members.relieved(member)
            self.changed()

    def _put_back(self, member: Member, jobs: Sequence[Job[Any]]) -> None:
        for job in jobs:
            member.load -= job.weight
            job.holder = None
        member.sent -= len(jobs)
        self._queue.put_back(jobs)


def _may_be_run_again(job: Job[Any]) -> bool:
    return job.retry is not None and job.retry.allows(DomainDied)
