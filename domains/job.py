"""A job as its submitter holds it: what to run, and the promise of its outcome.

States: Queued -> Sent -> Ended, with Cancelling between Sent and Ended when nobody wants the result any more;
Queued -> Ended when it is cancelled before it was sent; Sent -> Queued when its domain hands it back unstarted,
or when it has failed and may be run again.
A job ends exactly once, and its promise is resolved then.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from domains.conversation import Buffers
from domains.errors import Cancelled, DomainsError, NotPicklable
from domains.failures import unpack_failure
from domains.functions import Function
from domains.protocol import JobRaised, JobReturned, StartJob
from domains.references.registry import References
from domains.retry import Retry
from domains.scheduler.cancel import protect
from domains.scheduler.promise import Promise, Raised, Result, Returned
from domains.scheduler.switch import Switch
from domains.variables import pack_variables

T = TypeVar("T")

_RETURNED_NONE: Returned[Any] = Returned(None)

_NO_VARIABLES: dict[bytes, bytes] = {}

_tickets = itertools.count(1)
_sequence = itertools.count()


class JobState(enum.Enum):
    QUEUED = "queued"
    SENT = "sent"
    CANCELLING = "cancelling"
    ENDED = "ended"


_QUEUED, _SENT, _ENDED = JobState.QUEUED, JobState.SENT, JobState.ENDED  # to look up an enum's member takes long


class Owner(Protocol):
    """Who sees to it that a job is run: a pool's dispatcher, or a domain that was called."""

    def cancel(self, job: Job[Any], reason: BaseException, /) -> None:
        """Nobody wants the job's result any more: end it soon, wherever it is."""

    def job_ended(self, job: Job[Any], /) -> None:
        """The job has ended, and its promise has the outcome."""

    def try_again(self, job: Job[Any], /) -> None:
        """The job has failed, and its `retry` allows it to be run again: take it back, or let it fail."""


class Job(Generic[T]):
    """One job. `ticket` numbers its current sending: tickets grow in the order in which a domain gets jobs."""

    __slots__ = (
        "_references",
        "buffers",
        "data",
        "function",
        "holder",
        "holds",
        "lost",
        "on_end",
        "owner",
        "priority",
        "promise",
        "retry",
        "seconds",
        "sequence",
        "state",
        "switch",
        "ticket",
        "variables",
        "weight",
    )

    def __init__(
        self,
        function: Function,
        arguments: tuple[Any, ...],
        references: References,
        weight: int,
        owner: Owner,
        priority: int = 0,
        retry: Retry | None = None,
    ) -> None:
        """Pickles the arguments now, so that the caller may change them afterwards. Raises NotPicklable."""
        self.function = function
        self._references = references
        self.data = b""
        self.buffers: Sequence[Any] = ()
        self.holds: Sequence[int] = ()
        if function.passed is not None:
            arguments = *function.passed, arguments
        if arguments:
            self.data, self.buffers, self.holds = references.pickling.dumps(
                arguments, f"the arguments of job {function.name!r}"
            )
        self.variables = _NO_VARIABLES
        context = contextvars.copy_context()
        if len(context):
            self._take_along(context)
        if self.holds and retry is not None:
            references.keep(self.holds)
        self.weight = weight
        self.owner = owner
        self.priority = priority
        self.retry = retry
        self.sequence = next(_sequence)
        self.switch: Switch | None = None
        self.holder: Any = None  # the domain that has it, where a pool keeps account of that
        self.on_end: Callable[[Job[Any]], None] | None = None
        self.lost = 0  # to how many domains that began nothing of what they were sent, and died
        self.state = _QUEUED
        self.promise: Promise[T] = Promise(function.name)

    def _take_along(self, context: contextvars.Context) -> None:
        self.variables, holds = pack_variables(context, self._references)
        if holds:
            self.holds = [*self.holds, *holds]

    def message(self, offered: bool) -> StartJob:
        """What to send to start it; from now on it is sent, under a new ticket, which may have to be claimed there."""
        assert self.state is _QUEUED
        self.state = _SENT
        self.ticket = next(_tickets)
        return StartJob(
            self.ticket, self.function.number, self.data, self.weight, self.variables, len(self.buffers), offered
        )

    def handed_back(self) -> None:
        """Its domain has not started it, or it has failed there and may be tried again."""
        assert self.state is _SENT
        self.state = _QUEUED
        if self.holds and self.retry is not None:
            self._references.keep(self.holds)

    def returned(self, message: JobReturned, buffers: Buffers, opened_by: int | None) -> None:
        """It has ended well; `opened_by` is the address of the domain that has opened all that it was given, if any."""
        self.seconds = message.seconds
        if self.holds and opened_by is not None:
            self._opened(opened_by)
        if message.data:
            try:
                value = self._references.pickling.loads(message.data, buffers)
            except NotPicklable as error:
                self.fail(NotPicklable(f"the result of job {self.function.name!r}", error.why, error.hint))
                return
            except Exception as error:
                self.fail(error)
                return
            self._end(Returned(value))
        else:
            self._end(_RETURNED_NONE)

    def raised(
        self, message: JobRaised, buffers: Buffers, opened_by: int | None, reason: BaseException | None = None
    ) -> None:
        """It has failed; `reason` is why it was cancelled, if it was, and `opened_by` as in `returned`."""
        error = unpack_failure(message.data, buffers, self._references.pickling)
        if reason is not None and isinstance(error, asyncio.CancelledError) and not isinstance(error, Cancelled):
            # Interrupted in code that knows no reasons, such as asyncio's.
            cancelled = Cancelled(reason)
            cancelled.__cause__ = error
            error = cancelled
        elif reason is not None and isinstance(error, Cancelled) and error.reason is None:
            error.reason = reason
        if self.retry is not None and self.state is _SENT and self.retry.allows(error):
            self.owner.try_again(self)
            return
        if self.holds and opened_by is not None:
            self._opened(opened_by)
        self.fail(error)

    def _opened(self, opened_by: int) -> None:
        """What it was given was opened, and perhaps kept: its end is not the end of that."""
        holds, self.holds = self.holds, ()
        self._references.opened(holds, opened_by)

    def fail_undelivered(self, error: DomainsError, failure: BaseException | None = None) -> None:
        """Nobody can run it, or its domain has died, perhaps before it had opened the arguments.

        What they refer to hears of that; it fails with the same error, or with another `failure`.
        """
        self._references.undelivered(self.holds, error)
        self.fail(failure or error)

    def fail(self, error: BaseException) -> None:
        self._end(Raised(error, error.__traceback__))

    def _end(self, result: Result[T]) -> None:
        assert self.state is not _ENDED
        self.state = _ENDED
        self.data = b""
        self.buffers = ()
        if self.holds:
            self._references.discharge(self.holds)
        self.promise._settle(result)
        self.owner.job_ended(self)
        if self.on_end is not None:
            self.on_end(self)
        if self.switch is not None:
            self.switch.disown(self, self.promise)

    def belong_to(self, switch: Switch) -> None:
        """Let a switch wait for it, and cancel it, without a fiber that does."""
        switch.adopt(self)
        if self.state is _ENDED:  # as it was submitted, or just now, because the switch is cancelled
            switch.disown(self, self.promise)
        else:
            self.switch = switch

    def cancel(self, reason: BaseException | None) -> None:
        """Nobody wants the result: it ends soon, unless it has already. Does not wait."""
        if self.state is _QUEUED or self.state is _SENT:
            self.owner.cancel(self, reason or Cancelled())

    async def outcome(self) -> T:
        """Wait for the job; being cancelled cancels it where it runs, and still waits until it has ended there."""
        try:
            return await self.promise
        except asyncio.CancelledError as cancelled:
            if not self.promise.is_resolved:
                reason = cancelled.reason if isinstance(cancelled, Cancelled) else None
                self.cancel(reason or cancelled)
                await self.ended()
            raise

    async def ended(self) -> None:
        """Wait until the job has ended, however; cannot be cancelled."""
        with protect():
            while not self.promise.is_resolved:
                try:
                    await self.promise
                except GeneratorExit:
                    raise  # this fiber is thrown away: its loop is gone
                except BaseException:
                    continue  # how it ended is for those who want its outcome
