"""What the parent does about the jobs of one domain that it has asked to end.

A request is Asked -> Heard, once its job is known to unwind as a fiber, which may take its time. Whoever keeps the
domain from hearing anything else is asked again by a signal, and after `grace_seconds` the domain is killed; one that
waits behind another job, or for its turn, is not to blame.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from domains.errors import Cancelled
from domains.interruption import GRACE_SECONDS, INTERRUPT_SIGNAL
from domains.ipc.interrupts import NOBODY, SentInterrupts
from domains.job import Job

if TYPE_CHECKING:
    from domains.domain import DomainHandle

_SHORTEST_SECONDS = 0.01
"""However short the grace is, no domain is looked at more often than that."""


class _Request:
    """A job that was asked to end and has not answered."""

    __slots__ = ("asked_since", "is_heard", "is_running", "job", "reason", "since")

    def __init__(self, job: Job[Any], reason: BaseException, since: float, is_running: bool) -> None:
        self.job = job
        self.reason = reason
        self.since = since
        """When it was asked to end, or was seen to run after that: until then it could not have listened."""
        self.is_running = is_running
        self.is_heard = False
        self.asked_since: float | None = None
        """Since when its domain has been asked whose fiber has its turn, and has named no job that is here."""


class Cancelling:
    """The requests to one domain, by ticket. Looks after them by itself for as long as there are any."""

    def __init__(self, domain: DomainHandle, interrupts: SentInterrupts) -> None:
        self.grace_seconds = GRACE_SECONDS
        self._domain = domain
        self._interrupts = interrupts
        self.requests: dict[int, _Request] = {}
        self._watch: asyncio.TimerHandle | None = None

    def ask(self, job: Job[Any], reason: BaseException) -> None:
        """This job is to end: a plain one by a signal, which must come before the message that it would not read."""
        loop = asyncio.get_running_loop()
        is_running = self._interrupts.busy_with[0] == job.ticket
        self.requests[job.ticket] = _Request(job, reason, loop.time(), is_running)
        if not job.function.is_async and self._domain.link.is_open:
            self._interrupt(job.ticket)
        if self._watch is None:
            self._watch = loop.call_later(self.grace_seconds / 4, self.look)

    def heard(self, ticket: int) -> None:
        """It unwinds as a fiber, and may wait for something as it does: that is its business."""
        self.requests[ticket].is_heard = True

    def answered(self, ticket: int) -> BaseException | None:
        """It has ended; returns why it was asked to, if it was."""
        request = self.requests.pop(ticket, None)
        return None if request is None else request.reason

    def failure_of(self, ticket: int) -> Cancelled | None:
        """What a job comes to whose domain has ended before it had: None if nobody had asked it to end."""
        reason = self.answered(ticket)
        return None if reason is None else Cancelled(reason)

    def close(self) -> None:
        """The domain has ended."""
        if self._watch is not None:
            self._watch.cancel()

    def look(self) -> None:
        """See to those that were asked to end and have not: ask again, and in the end kill the domain."""
        self._watch = None
        domain = self._domain
        if domain.has_ended or not self.requests:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        busy_with, found = self._interrupts.busy_with
        in_fiber = busy_with == NOBODY and domain.was_ready
        names_job = found in domain.jobs
        is_asked = False
        for ticket, request in self.requests.items():
            if request.is_heard:
                continue  # it unwinds
            if in_fiber:
                is_asked = True
                asked_since = request.asked_since
                if asked_since is None or names_job:
                    request.asked_since = now
                if asked_since is None:
                    is_to_blame = False
                elif names_job:
                    is_to_blame = found == ticket
                else:  # it may be stuck, but only in time: others may keep it from its core
                    is_to_blame = now - asked_since >= self.grace_seconds
            else:
                request.asked_since = None
                is_to_blame = busy_with == ticket
            if not is_to_blame:
                continue  # it waits behind another job, or for its turn
            if not in_fiber and not request.is_running:
                request.is_running = True
                request.since = now
            age = now - request.since
            if age >= self.grace_seconds:
                domain.kill(f"job {request.job.function.name!r} was cancelled and did not end in {age:.1f} s")
                return
            if busy_with == ticket:
                if age >= self.grace_seconds * 0.7:
                    self._interrupt(ticket)  # the last warning, even if it did notice the first
                else:
                    domain.send_signal(INTERRUPT_SIGNAL)
        if is_asked:  # whose fiber has its turn; if it is no job's that is here, all of them are to blame in time
            self._interrupts.busy_with[1] = NOBODY
            domain.send_signal(INTERRUPT_SIGNAL)
        self._watch = loop.call_later(max(self.grace_seconds / 4, _SHORTEST_SECONDS), self.look)

    def _interrupt(self, ticket: int) -> None:
        if self._interrupts.ask(ticket):
            self._domain.send_signal(INTERRUPT_SIGNAL)
