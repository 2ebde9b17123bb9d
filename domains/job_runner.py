"""Runs the jobs that a domain was sent: the half of the executor pool that lives in the domain.

A job of weight 0 starts when it arrives. Any other starts, in the order in which the parent offered them, once it
is claimed, and jobs are claimed only while the weights of the running ones add up to less than 1.0. An `async`
function runs as a fiber; a plain one runs here and now in the domain's main thread, outside of any fiber and as
if no event loop ran, so that even `asyncio.run` works in it.

States of a job: Received -> Claimed -> Running -> Ended; Received or Claimed -> Dropped. Each job that was not
revoked is answered exactly once.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from domains.conversation import Buffers, Conversation
from domains.errors import Cancelled, ConnectionLost, NotPicklable
from domains.failures import pack_failure, unpack_failure
from domains.forked import exit_as_a_script
from domains.functions import ReceivedFunctions, name_of, name_of_call, only_calls
from domains.identity import current
from domains.interruption import Interruptions
from domains.ipc.claims import ReceivedClaims
from domains.ipc.interrupts import NOBODY
from domains.lending import Loan
from domains.lending import begin as begin_loan
from domains.memory import MemoryWatch
from domains.protocol import (
    FULL_WEIGHT,
    CancelHeard,
    CancelJob,
    DefineFunction,
    Finish,
    ForgetFunctions,
    JobRaised,
    JobReturned,
    LendWeight,
    MemoryExceeded,
    RegainWeight,
    RevokeJobs,
    StartJob,
    WatchMemory,
)
from domains.scheduler import fiber
from domains.scheduler.context import Context
from domains.scheduler.signals import ends_at_once
from domains.scheduler.switch import Switch
from domains.variables import unpack_variables

_SLICE_SECONDS = 0.001
"""Plain jobs run back to back for this long before the loop gets a turn."""

_QUICK_SECONDS = 0.0001
"""Results may wait in the batch for the next job while that is expected to take no longer than this."""


_Received = tuple[StartJob, Buffers]
"""A job's message, and the out-of-band buffers that came with it."""


class _Known:
    """A function that jobs use, and how long its runs take: decides when to send the results before it."""

    __slots__ = ("call", "is_async", "name", "seconds")

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call
        self.name = None if only_calls(call) else name_of(call)  # None: each job calls something else
        self.is_async = inspect.iscoroutinefunction(call)
        self.seconds = 1.0  # unknown counts as slow

    def add_run(self, seconds: float) -> None:
        # A slow run counts at once, quick ones only in time.
        self.seconds = seconds if seconds > self.seconds else self.seconds + (seconds - self.seconds) / 4


class JobRunner:
    """All jobs of one domain. `on_finished` is called once the parent said `Finish` and nothing runs any more."""

    def __init__(
        self,
        conversation: Conversation,
        switch: Switch,
        claims: ReceivedClaims,
        interruptions: Interruptions,
        on_finished: Callable[[], object],
    ) -> None:
        self._conversation = conversation
        self._link = conversation.link
        self._pickling = conversation.pickling
        self._switch = switch
        self._claims = claims
        self._interruptions = interruptions
        self._busy_with = interruptions.busy_with
        interruptions.serve(asyncio.get_running_loop())
        self._on_finished = on_finished
        self._functions = ReceivedFunctions(conversation.pickling)
        self._known: dict[int, _Known] = {}
        self._received: dict[int, _Received] = {}
        self._dropped: set[int] = set()  # cancelled before they were claimed
        self._claimed: int | None = None  # claimed, but its message has not arrived
        self._at_once: deque[_Received] = deque()
        self._running: dict[int, Context | None] = {}  # an async job's cancellation context
        self._unheard: dict[int, BaseException] = {}  # why plain jobs that wait for another domain were cancelled
        self._not_all_opened: set[int] = set()  # jobs that will never open some of what they were given
        self._unbegun = 0  # fibers that were forked and have not run yet
        self._postponed: _Received | None = None  # a plain job that would overtake them
        self._weight = 0
        self._lent: set[int] = set()  # running jobs whose weight does not count at the moment
        self._memory: MemoryWatch | None = None
        self._memory_is_due = False  # a job has begun since memory is watched
        self._finishing = False
        self._pump_scheduled = False
        self._base = contextvars.copy_context()
        conversation.handle(DefineFunction, self._define)
        conversation.handle(ForgetFunctions, self._forget)
        conversation.handle(StartJob, self._receive)
        conversation.handle(CancelJob, self._cancel)
        conversation.handle(RevokeJobs, self._revoke)
        conversation.handle(Finish, self._finish)
        conversation.handle(WatchMemory, self._watch_memory)
        conversation.after_frame(self.pump)
        _runners.add(self)

    def _define(self, message: DefineFunction, _: Buffers) -> None:
        self._functions.define(message.function, message.code)

    def _forget(self, message: ForgetFunctions, _: Buffers) -> None:
        self._functions.forget(message.functions)
        for number in message.functions:
            self._known.pop(number, None)

    def _receive(self, message: StartJob, buffers: Buffers) -> None:
        if message.offered:
            self._received[message.job] = message, buffers
        else:
            self._at_once.append((message, buffers))

    def _revoke(self, message: RevokeJobs, _: Buffers) -> None:
        for job in message.jobs:
            # One that was cancelled meanwhile was answered already, and its claim went back with the others.
            if self._received.pop(job, None) is None:
                self._dropped.discard(job)

    def _cancel(self, message: CancelJob, buffers: Buffers) -> None:
        job = message.job
        reason = unpack_failure(message.reason, buffers, self._pickling)
        if job in self._running:
            context = self._running[job]
            if context is None:
                self._unheard[job] = reason  # it is interrupted by the signal, unless it ends before that comes
            else:
                self._cancel_fiber(job, context, reason)
            return
        self._interruptions.forget(job)
        if self._postponed is not None and self._postponed[0].job == job:
            self._postponed = None
        elif job in self._received:
            del self._received[job]
            self._dropped.add(job)
        else:
            waiting = next((waiting for waiting in self._at_once if waiting[0].job == job), None)
            if waiting is None:
                return  # it ended, and the answer is on its way
            self._at_once.remove(waiting)
        self._not_all_opened.add(job)
        self._answer_raised(job, Cancelled(reason), 0.0, "a job that had not started")

    def _cancel_fiber(self, job: int, context: Context, reason: BaseException) -> None:
        self._interruptions.forget(job)
        self._tell(CancelHeard(job))
        context.cancel(reason)

    def _finish(self, message: Finish, _: Buffers) -> None:
        self._finishing = True

    def _watch_memory(self, message: WatchMemory, _: Buffers) -> None:
        self._memory = MemoryWatch(
            message.most_bytes, lambda size_bytes: self._conversation.send(MemoryExceeded(size_bytes))
        )
        self._memory_is_due = False

    def _look_at_memory(self) -> None:
        # One that holds too much from the start has a job all the same, or the pool would replace it for ever.
        if self._memory is not None and self._memory_is_due:
            self._memory.look()

    def pump(self) -> None:
        """Start what may start now; comes back by itself when the loop has had a turn."""
        self._pump_scheduled = False
        if self._interruptions.is_busy or asyncio.current_task() is not None:
            self._schedule_pump()  # this is heard in the midst of a plain job, or of a fiber's turn, which waits
            return
        self._link.hold()
        try:
            self._start_what_may()
        except Exception as error:
            # Some job cannot be answered. A domain that dies owes nobody anything; one that forgets would.
            text = f"domain {current().name!r} ends, because it cannot run jobs any more"
            asyncio.get_running_loop().call_exception_handler({"message": text, "exception": error})
            self._link.abort(ConnectionLost(f"jobs cannot be run any more: {error!r}"))
        finally:
            self._link.flush()  # at once: what there was to do is done, or has its next turn after others

    def _start_what_may(self) -> None:
        slice_end = time.perf_counter() + _SLICE_SECONDS
        while (received := self._next()) is not None:
            self._busy_with[0] = received[0].job
            self._start(received)
            self._busy_with[0] = NOBODY
            if time.perf_counter() > slice_end:
                self._look_at_memory()
                self._schedule_pump()
                return
        self._look_at_memory()
        if self._finishing and not (self._running or self._received or self._at_once or self._postponed):
            self._finishing = False
            self._on_finished()

    def _schedule_pump(self) -> None:
        if not self._pump_scheduled:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self.pump)

    def _next(self) -> _Received | None:
        """The job to start now, if there is one and the parent reads the results."""
        if not (self._at_once or self._received or self._dropped) and self._postponed is None:
            return None
        if not self._link.is_open or self._switch.is_cancelled:
            return None  # this domain has said goodbye or is about to, or its parent is gone
        if self._link.is_congested:
            self._link.when_writable(self._schedule_pump)
            return None
        if self._postponed is not None:
            if self._unbegun:
                self._schedule_pump()
                return None
            postponed, self._postponed = self._postponed, None
            return postponed
        if self._at_once:
            return self._at_once.popleft()
        while self._weight < FULL_WEIGHT:
            if self._claimed is None:
                if not self._received and not self._dropped:
                    return None
                self._claimed = self._claims.claim()
                if self._claimed is None:
                    return None
            received = self._received.pop(self._claimed, None)
            if received is None and self._claimed not in self._dropped:
                return None  # its message is on its way
            self._dropped.discard(self._claimed)
            self._claimed = None
            if received is not None:
                return received
        return None

    def _start(self, received: _Received) -> None:
        message, buffers = received
        known = self._known.get(message.function)
        if self._unbegun and known is not None and not known.is_async:
            self._postponed = received
            return
        if message.weight:
            self._claims.mark_started(message.job)
        try:
            if known is None:
                known = self._known[message.function] = _Known(self._functions.get(message.function))
                if self._unbegun and not known.is_async:
                    self._postponed = received
                    return
            arguments = self._pickling.loads(message.data, buffers) if message.data else ()
            context = self._base.copy()
            if message.variables and not unpack_variables(message.variables, self._pickling, context):
                self._not_all_opened.add(message.job)
        except BaseException as error:
            if known is not None and isinstance(error, NotPicklable):
                what = f"the arguments of job {known.name!r}" if known.name else "a job's function or its arguments"
                error = NotPicklable(what, error.why, error.hint)
            self._not_all_opened.add(message.job)
            self._answer_raised(message.job, error, 0.0, "a job that could not be opened")
            return
        self._memory_is_due = True
        self._running[message.job] = None
        self._weight += message.weight
        if known.is_async:
            self._fork(message, known, known.call, arguments, context)
        else:
            self._call(message, known, arguments, context)

    def _call(self, message: StartJob, known: _Known, arguments: tuple[Any, ...], context: contextvars.Context) -> None:
        if known.seconds > _QUICK_SECONDS:
            self._link.flush()  # nobody's result waits for a long job to end
        started = time.perf_counter()
        try:
            value = self._interruptions.call(message.job, context, known.call, arguments)
        except BaseException as error:  # SystemExit too is the job's failure, not the domain's end
            seconds = time.perf_counter() - started
            known.add_run(seconds)
            self._end(message)
            self._answer_raised(message.job, error, seconds, f"job {name_of_call(known.call, arguments)!r}")
            return
        seconds = time.perf_counter() - started
        known.add_run(seconds)
        if value is not None and inspect.isawaitable(value):
            self._fork(message, known, lambda *_: value, arguments, context)
            return
        self._end(message)
        self._answer_returned(message, value, seconds, known.name or name_of_call(known.call, arguments))

    def _fork(
        self,
        message: StartJob,
        known: _Known,
        call: Callable[..., Any],
        arguments: tuple[Any, ...],
        context: contextvars.Context,
    ) -> None:
        name = known.name or name_of_call(known.call, arguments)
        fork = self._switch.fork_within
        self._unbegun += 1
        try:
            within = fork(self._await, message, known, call, arguments, name=name, context=context)
        except BaseException as error:
            self._unbegun -= 1
            self._end(message)
            self._answer_raised(message.job, error, 0.0, f"job {name!r}")
            return
        self._running[message.job] = within
        if self._unheard and (reason := self._unheard.pop(message.job, None)) is not None:
            self._cancel_fiber(message.job, within, reason)

    async def _await(
        self, message: StartJob, known: _Known, call: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> None:
        self._unbegun -= 1
        begin_loan(Loan(self, message.job, message.weight))
        started = time.perf_counter()
        try:
            fiber.check()
            value = await call(*arguments)
        except BaseException as error:
            self._end(message)
            if isinstance(error, asyncio.CancelledError) and self._switch.is_cancelled:
                return  # nobody cancelled the job: it is its domain that ends, and the parent tells of that
            what = f"job {name_of_call(known.call, arguments)!r}"
            self._answer_raised(message.job, error, time.perf_counter() - started, what)
        else:
            self._end(message)
            name = known.name or name_of_call(known.call, arguments)
            self._answer_returned(message, value, time.perf_counter() - started, name)
        self._schedule_pump()

    def _end(self, message: StartJob) -> None:
        del self._running[message.job]
        if self._unheard:
            self._unheard.pop(message.job, None)
        if message.job in self._lent:
            self._lent.discard(message.job)
        else:
            self._weight -= message.weight

    def lend(self, job: int, weight: int) -> None:
        """A job waits for others that it has submitted."""
        if job not in self._running:
            return  # it was a task that outlives its job
        self._lent.add(job)
        self._weight -= weight
        self._tell(LendWeight(job))
        self._schedule_pump()

    def regain(self, job: int, weight: int) -> None:
        """What it has submitted has ended. If it has ended itself meanwhile, its weight is gone already."""
        if job in self._lent:
            self._lent.discard(job)
            self._weight += weight
            self._tell(RegainWeight(job))

    def _answer_returned(self, message: StartJob, value: object, seconds: float, name: str) -> None:
        if value is None:
            self._tell(JobReturned(message.job, b"", seconds, 0, self._opened_all(message.job)))
            return
        try:
            payload = self._pickling.dumps(value, f"the result of job {name!r}")
        except BaseException as error:  # NotPicklable, no memory for it, or whatever a user's code raises
            self._answer_raised(message.job, error, seconds, f"job {name!r}")
            return
        opened = self._opened_all(message.job)
        self._tell(JobReturned(message.job, payload.data, seconds, len(payload.buffers), opened), payload.buffers)

    def _answer_raised(self, job: int, error: BaseException, seconds: float, what: str) -> None:
        if ends_at_once():  # this domain, that is: the job's caller was told nothing, and hears of a death
            self._link.flush()
            self._link.abort(ConnectionLost("this domain was told to end at once"))
            return
        domain = current()
        where = f"{what} in domain {domain.name!r} (process {domain.pid})"
        payload = pack_failure(error, self._pickling, where)
        opened = self._opened_all(job)
        self._tell(JobRaised(job, payload.data, seconds, len(payload.buffers), opened), payload.buffers)

    def _opened_all(self, job: int) -> bool:
        """Whether this job, which is answered now, has opened all that it was given."""
        if self._not_all_opened and job in self._not_all_opened:
            self._not_all_opened.discard(job)
            return False
        return True

    def _tell(self, message: Any, buffers: Sequence[Any] = ()) -> None:
        try:
            self._conversation.send(message, buffers)
        except ConnectionLost:
            return  # the parent is gone, and with that all this ends: the switch will be told so in a moment


class _ForkedRunner(JobRunner):
    """What a runner becomes in a process that one of its jobs has forked: whatever it would do next ends that."""

    def _next(self) -> NoReturn:
        exit_as_a_script(None)

    def _answer_returned(self, message: StartJob, value: object, seconds: float, name: str) -> NoReturn:
        exit_as_a_script(None)

    def _answer_raised(self, job: int, error: BaseException, seconds: float, what: str) -> NoReturn:
        exit_as_a_script(error)


_runners: weakref.WeakSet[JobRunner] = weakref.WeakSet()


def _forked() -> None:
    for runner in _runners:
        runner.__class__ = _ForkedRunner


os.register_at_fork(after_in_child=_forked)
