"""The domains of a pool: how many there are, when one is started, retired, replaced or given up.

A member is Starting while its initializer runs, then Serving, then Retired, when it is sent nothing more and ends once
its jobs have. There are at least `min_domains` and at most `max_domains` that serve or still have jobs: more are
started when jobs wait, fewer are kept when some were idle for a while. One that dies is replaced, the sooner the fewer
have died lately; after several in a row that died before they could serve, nothing is started any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import enum
import inspect
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from domains.domain import FINISHING_SECONDS, DomainHandle, DomainState
from domains.errors import Closed, DomainsError, DomainUnavailable, copy_of
from domains.job import Job
from domains.pool.initializing import initialize, initialize_async
from domains.pool.options import PoolOptions
from domains.pool.restarts import Restarts
from domains.protocol import FULL_WEIGHT
from domains.scheduler.cancel import protect
from domains.scheduler.promise import Promise, Raised, Resolver
from domains.scheduler.switch import Switch

if TYPE_CHECKING:
    from domains.domain_manager import DomainManager

_BAD_START, _KILLED_START, _BROKEN = 10, 3, 30
"""The pool gives up after three domains in a row that ended before they could serve, unless others still serve; after
ten where they were killed, which is not their own fault, and may stop."""

_SHORTEST_IDLE_SECONDS = 0.05
"""However short `idle` is, idleness is looked at no more often than that."""

_KILLS = (signal.SIGKILL, signal.SIGTERM)


class MemberState(enum.Enum):
    STARTING = "starting"
    SERVING = "serving"
    RETIRED = "retired"


_SERVING = MemberState.SERVING  # to look up an enum's member takes long


class Member:
    """One domain of the pool, and what the pool has given it."""

    __slots__ = ("answered", "batch", "failure", "handle", "lent", "load", "sent", "sent_before", "state", "waiting")

    def __init__(self, handle: DomainHandle, state: MemberState) -> None:
        self.handle = handle
        self.state = state
        self.load = 0
        """The weights of all the jobs that it has, but for those in `lent`."""
        self.lent: set[Job[Any]] = set()
        """Jobs that wait for jobs of their own, so that their weight is free."""
        self.batch: list[Job[Any]] = []
        """Jobs chosen for it in this dispatch."""
        self.sent = 0
        """How many jobs it was given, for good."""
        self.answered = 0
        self.sent_before = -1
        """What `sent` was when idleness was last looked at."""
        self.waiting: Callable[[], object] | None = None
        """Withdraws the wait for its congested link, or for room to offer it more."""
        self.failure: BaseException | None = None
        """What its initializer has raised."""

    @property
    def jobs(self) -> int:
        return len(self.handle.jobs) + len(self.batch)

    @property
    def keeps_jobs_waiting(self) -> bool:
        """Whether it has jobs that another might start sooner."""
        if self.state is not MemberState.RETIRED:
            return self.jobs > 1
        # What is about to begin stays: elsewhere it might be the next that is one too many.
        running = self.handle.jobs.get(self.handle.interrupts.busy_with[0])
        return running is not None and not running.function.is_async

    @property
    def only_waits(self) -> bool:
        """Whether all that it runs waits for jobs of its own, so that it does not end before others have run those."""
        return 0 < self.jobs == len(self.lent)

    @property
    def serves(self) -> bool:
        """Whether it may be sent jobs."""
        return self.state is _SERVING and self.handle.takes_jobs


class Listener(Protocol):
    """The dispatcher, as the members tell it what happens."""

    def answers_came(self) -> None: ...
    def answered(self, member: Member, job: Job[Any], seconds: float, /) -> None: ...
    def weight_lent(self, member: Member, job: Job[Any], lent: bool, /) -> None: ...
    def take_back(self, member: Member, /) -> None: ...
    def lost(self, member: Member, /) -> None: ...
    def changed(self) -> None: ...
    def broken(self, failure: DomainsError, /) -> None: ...
    def stranded(self, failure: DomainsError, /) -> None: ...


class Members:
    """All domains of one pool; starts the first ones at once. Belongs to the running loop."""

    def __init__(self, manager: DomainManager, options: PoolOptions, listener: Listener) -> None:
        self._manager = manager
        self._options = options
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._variables = contextvars.copy_context()
        """What each domain is started in, and its initializer sees, whoever submits what needs one more."""
        self._by_handle: dict[DomainHandle, Member] = {}
        self._planned: dict[object, asyncio.TimerHandle] = {}
        self._restarts = Restarts(2 + options.max_domains)
        self._false_starts = 0
        self._false_start: DomainUnavailable | None = None
        """What the end of the last that did not come to serve will mean, if it was one too many."""
        self._lost_launcher: int | None = None
        self._failure: DomainsError | None = None
        self._turns: list[Resolver[None]] = []
        self._closing = False
        self._shrinking: asyncio.TimerHandle | None = None
        self._heartbeat_seconds = options.heartbeat_seconds
        initializer = options.initializer
        self._initializer = None if initializer is None else manager.catalogue.add(_without_result(initializer))
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.kill)
            for _ in range(options.min_domains):
                self._recruit()
            on_failure.pop_all()

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._by_handle.values()))  # while one looks at them, others may be started

    def __getitem__(self, handle: DomainHandle) -> Member:
        return self._by_handle[handle]

    # Starting

    def grow(self, queued: int) -> None:
        """So many jobs wait, and nobody who serves can take them: start more domains, if there may be more."""
        coming = len(self._planned) + sum(
            member.state is MemberState.STARTING or not member.handle.was_ready for member in self
        )
        for _ in range(min(queued - coming, self._options.max_domains - self._count())):
            if not self._add():
                break
            self._listener.changed()  # it may be sent jobs while it starts

    def _count(self) -> int:
        """Those that serve, or will, and as many as the last jobs of the others keep busy.

        What a retired one has left may take for ever, and may wait for jobs of its own, which need a place to run in.
        """
        loads = [member.load for member in self if member.state is MemberState.RETIRED]
        working = sum(load > 0 for load in loads)
        busy = max(sum(min(load, FULL_WEIGHT) for load in loads) // FULL_WEIGHT, working - self._options.max_domains)
        return len(self._by_handle) - len(loads) + busy + len(self._planned)

    def _restore(self) -> None:
        if self._has_given_up():  # perhaps only now, because the last who served was retired
            assert self._false_start is not None
            self._break_unless_some_serve(self._false_start)
        while self._count() < self._options.min_domains and self._add():
            pass
        self._listener.changed()  # if jobs wait, it calls `grow`

    def _add(self) -> bool:
        """Start a domain, or plan to; False if that is impossible."""
        if self._closing or self._has_given_up():
            return False
        delay = self._restarts.delay()
        if delay:
            plan = object()
            self._planned[plan] = self._loop.call_later(delay, self._start_planned, plan)
            return True
        return self._try_recruit()

    def _start_planned(self, plan: object) -> None:
        del self._planned[plan]
        if self._try_recruit():
            self._listener.changed()

    def _try_recruit(self) -> bool:
        try:
            self._variables.copy().run(self._recruit)
        except DomainsError as error:
            self._break_unless_some_serve(error)
            return False
        return True

    def _recruit(self) -> None:
        options = self._options
        handle = self._manager.open(heartbeat_seconds=self._heartbeat_seconds)
        job: Job[Any] | None = None
        if self._initializer is not None:
            try:
                job = Job(self._initializer, options.initargs, self._manager.references, 0, handle)
            except BaseException:  # they could be pickled once, and have changed since
                handle.kill("what its initializer is to be called with cannot be pickled")
                raise
        state = MemberState.SERVING if job is None else MemberState.STARTING
        member = self._by_handle[handle] = Member(handle, state)
        handle.cancelling.grace_seconds = options.grace
        handle.conversation.after_frame(self._listener.answers_came)
        handle.when_answered(partial(self._listener.answered, member))
        handle.when_lent(partial(self._listener.weight_lent, member))
        handle.when_ready(partial(self._ready, member))
        handle.when_ended(self._ended)
        if job is None:
            self._watch_memory(member)
        else:
            job.on_end = partial(self._initialized, member)
            handle.start([job])
        if self._shrinking is None and self._count() > options.min_domains:
            self._shrinking = self._loop.call_later(options.idle, self._shrink)

    def _watch_memory(self, member: Member) -> None:
        if self._options.max_memory is not None:
            member.handle.watch_memory(self._options.max_memory, partial(self._too_large, member))

    def _initialized(self, member: Member, job: Job[Any]) -> None:
        result = job.promise.peek()
        if not isinstance(result, Raised):
            if member.state is MemberState.STARTING:
                member.state = MemberState.SERVING
                self._watch_memory(member)  # what the initializer takes counts only once a job has begun
                self._began_to_serve()
            self._listener.changed()
        elif not member.handle.has_ended:
            member.failure = result.error
            member.handle.kill(f"its initializer {job.function.name!r} failed with {result.error!r}")

    def _ready(self, member: Member) -> None:
        if member.state is not MemberState.STARTING:
            self._began_to_serve()

    def _began_to_serve(self) -> None:
        """What kept domains from starting, if anything did, is over."""
        had_enough = self._false_starts >= _BROKEN
        self._false_starts = 0
        if not self._closing:
            self._failure = None
            if had_enough:
                self._restore()
        self._turn()

    def _has_given_up(self) -> bool:
        """Whether too many could not start, one after the other, and nobody serves."""
        return self._false_starts >= _BROKEN and not any(member.serves and member.handle.was_ready for member in self)

    def _count_false_start(self, handle: DomainHandle) -> None:
        """Those that a launcher takes with it count as one."""
        ending = handle.ending
        assert ending is not None
        was_killed = ending.launcher is not None or (ending.signal in _KILLS and not handle.was_killed)
        if ending.launcher is None or ending.launcher != self._lost_launcher:
            self._false_starts += _KILLED_START if was_killed else _BAD_START
        self._lost_launcher = ending.launcher

    # Ending

    def retire(self, member: Member) -> None:
        """Send it nothing more; it ends once it has done what it has, and another takes its place."""
        if member.state is not MemberState.RETIRED:
            member.state = MemberState.RETIRED
            member.handle.finish()
            self.relieved(member)

    def relieved(self, member: Member) -> None:
        """A retired member has less to do, or nothing any more."""
        assert member.state is MemberState.RETIRED
        if not member.handle.jobs:
            why = f"it had not ended {FINISHING_SECONDS:g} s after its last job"
            overdue = self._loop.call_later(FINISHING_SECONDS, member.handle.kill, why)
            member.handle.when_ended(lambda _: overdue.cancel())
        if not self._closing:
            self._restore()

    def _too_large(self, member: Member) -> None:
        if member.state is MemberState.SERVING:
            self._listener.take_back(member)
            self.retire(member)

    def _shrink(self) -> None:
        """Retire those beyond the least number that were idle since the last time."""
        surplus = self._count() - self._options.min_domains
        for member in self:
            idle = member.serves and not member.jobs and member.sent == member.sent_before
            if idle and surplus > 0:
                surplus -= 1
                self.retire(member)
            member.sent_before = member.sent
        self._shrinking = None
        if surplus > 0 and not self._closing:
            self._shrinking = self._loop.call_later(max(self._options.idle, _SHORTEST_IDLE_SECONDS), self._shrink)

    def _ended(self, handle: DomainHandle) -> None:
        member = self._by_handle[handle]
        if member.waiting is not None:
            member.waiting()
        self._listener.lost(member)
        del self._by_handle[handle]  # while it had jobs it could be found: a finalizer may cancel one
        if self._closing:
            return
        # One may be retired as soon as it is born, with the only job that it may have; one that was killed as it began,
        # because it had none, says nothing.
        if member.state is not MemberState.RETIRED or not (handle.was_ready or handle.was_killed):
            served = handle.was_ready and member.state is MemberState.SERVING
            if served:
                self._false_starts = 0
            else:
                self._count_false_start(handle)
                self._false_start = _cannot_start(member)
                if self._false_starts >= _BROKEN:
                    self._turn()  # others may serve, but so many as are waited for will not
        if handle.state is DomainState.DEAD and (not handle.was_killed or member.failure is not None):
            self._restarts.record_death()
        self._restore()

    def _break_unless_some_serve(self, failure: DomainsError) -> None:
        self._failure = failure
        self._turn()
        if self._planned or any(member.state is not MemberState.RETIRED for member in self):
            return
        if not isinstance(failure, DomainUnavailable) or self._has_given_up():
            self._listener.broken(failure)
        elif all(member.only_waits for member in self):
            self._listener.stranded(failure)  # what kept a domain from starting, such as a limit, may pass

    def _stop_starting(self) -> None:
        self._closing = True
        self._failure = Closed("the executor pool is closed")
        self._turn()
        for timer in self._planned.values():
            timer.cancel()
        self._planned.clear()
        if self._shrinking is not None:
            self._shrinking.cancel()

    def cancel_jobs(self, reason: BaseException) -> None:
        """Ask for the end of every job, and start no domain any more."""
        self._stop_starting()
        for handle in list(self._by_handle):
            handle.cancel_jobs(reason)

    async def close(self, seconds: float) -> None:
        """End all domains, and kill those that take longer than so many seconds. Waits to the end, whatever comes."""
        self._stop_starting()
        with protect():
            async with Switch(name="closing a pool") as switch:
                for handle in list(self._by_handle):
                    switch.fork(handle.close, seconds)

    def kill(self) -> None:
        """End all domains at once, without waiting for that."""
        self._stop_starting()
        for handle in list(self._by_handle):
            handle.kill("its pool was closed at once")

    async def ready(self) -> None:
        """Wait until the least number of domains serve. Raises why they cannot, though some may, and be tried again."""
        while sum(member.serves and member.handle.was_ready for member in self) < self._options.min_domains:
            if self._failure is not None:
                raise copy_of(self._failure)
            if self._false_starts >= _BROKEN:
                assert self._false_start is not None
                raise copy_of(self._false_start)
            turn, resolver = Promise[None].create("a pool's domains to be ready")
            self._turns.append(resolver)
            await turn

    def _turn(self) -> None:
        """Something has changed in what `ready` waits for."""
        turns, self._turns = self._turns, []
        for resolver in turns:
            resolver.resolve(None)


def _without_result(initializer: Callable[..., object]) -> Callable[..., object]:
    """What it returns, as a lock, need not travel."""
    call: Callable[..., object] = initialize_async if inspect.iscoroutinefunction(initializer) else initialize
    return partial(call, initializer)


def _cannot_start(member: Member) -> DomainUnavailable:
    error = member.handle.error()
    failure = DomainUnavailable(
        f"the pool's domains cannot start: several in a row ended before they could serve; the last: {error}"
    )
    failure.__cause__ = member.failure or error
    return failure
