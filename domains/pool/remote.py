"""A pool in other domains than its home: jobs that are submitted there travel to the home, and their outcomes back.

A handle is an `ExecutorPool` whose dispatcher is a `RemoteDispatcher`, which sends each job on instead of queueing it.
At home the job is queued like any other, as a `RelayedJob`: what it was pickled to, and what it comes to, passes
through unopened. A submitter that dies takes its jobs with it; when the home ends, all that it owed fails.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from domains.conversation import Buffers, Conversation
from domains.errors import Cancelled, Closed, DomainsError, NotPicklable, copy_of
from domains.failures import pack_failure, unpack_failure
from domains.functions import Function, FunctionCatalogue
from domains.identity import current
from domains.job import Job, JobState
from domains.lending import Loan, current_loan
from domains.pool.executor import ExecutorPool
from domains.protocol import CancelSubmitted, JobRaised, JobReturned, SubmitJob, SubmittedEnded
from domains.references.kind import Export, Kind
from domains.references.registry import References
from domains.retry import Retry
from domains.scheduler.promise import Raised, Returned


class RemoteDispatcher:
    """Where a handle's jobs go: to the pool's home. `size` is the number of the pool's domains.

    Its jobs keep it, and so the handle: a home whose last handle is gone takes what was submitted by it for given up.
    """

    def __init__(self, handle: PoolReference, references: References, home: int, number: int, size: int) -> None:
        self.handle = handle
        self.size = size
        self._home_gone: DomainsError | None = None
        self._references = references
        self._loop = asyncio.get_running_loop()
        self._home = home
        self._number = number
        self._pending: dict[int, tuple[Job[Any], Loan | None]] = {}
        self._reasons: dict[int, BaseException] = {}

    @property
    def refusal(self) -> DomainsError | None:
        return None if self._home_gone is None else copy_of(self._home_gone)

    def push(self, job: Job[Any]) -> None:
        if asyncio._get_running_loop() is not self._loop:
            self._references.call_on_own_thread(self._references.discharge, job.holds)
            raise RuntimeError(
                "a job submits to a pool from its domain's own event loop only: make the submitting job `async`"
            )
        references = self._references
        retries, retry = 0, b""
        if job.retry is not None:
            retries = job.retry.left
            try:
                retry = references.pickling.dumps_function(partial(Retry, on=job.retry.on, backoff=job.retry.backoff))
                if not retry:
                    raise NotPicklable("retry_on", "it refers to an object with a home, such as a stream")
            except BaseException as error:  # NotPicklable, or whatever a user's code raises
                job.fail(error)
                return
            job.retry = None  # it is run again from its home
        references.calls.settle(self._home)
        message = job.message(False)
        loan = current_loan()
        self._pending[message.job] = job, loan
        if loan is not None:
            loan.submitted()
        function = job.function
        submit = SubmitJob(
            self._home,
            references.address,
            self._number,
            message.job,
            function.code,
            function.name,
            function.is_async,
            message.data,
            message.weight,
            job.priority,
            retries,
            retry,
            message.variables,
            message.buffers,
        )
        references.send(submit, job.buffers)

    def cancel(self, job: Job[Any], reason: BaseException) -> None:
        assert job.state is JobState.SENT
        job.state = JobState.CANCELLING
        self._reasons[job.ticket] = reason
        references = self._references
        packed = pack_failure(reason, references.pickling, f"domain {current().name!r}")
        message = CancelSubmitted(
            self._home, references.address, self._number, job.ticket, packed.data, len(packed.buffers)
        )
        references.send(message, packed.buffers, packed.holds)

    def job_ended(self, job: Job[Any]) -> None:
        """Accounted for where its outcome arrives."""

    def try_again(self, job: Job[Any]) -> NoReturn:
        raise AssertionError("jobs are run again from their pool's home")

    def count_items(self, submitted: int, ended: int) -> None:
        """At the pool's home each group of a map that comes from elsewhere counts as one."""

    def stats(self) -> NoReturn:
        raise RuntimeError("a pool's stats are known in its home domain only")

    def ended(self, message: SubmittedEnded, buffers: Buffers) -> None:
        """The home says what one of the jobs has come to."""
        job, loan = self._pending.pop(message.job)
        reason = self._reasons.pop(message.job, None)
        if loan is not None:
            loan.ended()  # before whoever waits for it runs on
        if message.undelivered:
            error = unpack_failure(message.data, buffers, self._references.pickling)
            assert isinstance(error, DomainsError)
            job.fail_undelivered(error, None if reason is None else Cancelled(reason))
        elif message.failed:
            raised = JobRaised(message.job, message.data, message.seconds, 0)
            job.raised(raised, buffers, message.opened_by, reason)
        else:
            returned = JobReturned(message.job, message.data, message.seconds, 0)
            job.returned(returned, buffers, message.opened_by)

    def home_gone(self, error: DomainsError) -> None:
        """The pool is no more: neither what was submitted nor what will be has an outcome."""
        self._home_gone = error
        pending, self._pending = self._pending, {}
        reasons, self._reasons = self._reasons, {}
        for ticket, (job, loan) in pending.items():
            if loan is not None:
                loan.ended()
            reason = reasons.get(ticket)
            job.fail_undelivered(copy_of(error), None if reason is None else Cancelled(reason))


class PoolReference(ExecutorPool):
    """A pool whose home is another domain: submits to it, and cannot be entered."""

    def __init__(self, references: References, catalogue: FunctionCatalogue, home: int, number: int, size: int) -> None:
        self.home = home
        self.number = number
        self._references = references
        self._catalogue = catalogue
        self._count = size
        self._remote = RemoteDispatcher(self, references, home, number, size)
        self._dispatch = self._remote

    async def __aenter__(self) -> NoReturn:
        raise RuntimeError("this executor pool was opened in another domain, which closes it: just submit to it")

    def home_gone(self, error: DomainsError) -> None:
        self._remote.home_gone(error)


_FAILED = Raised(DomainsError("what a job from another domain has raised is its submitter's"), None)
"""What such a job comes to where it is only relayed: enough to count it."""


class RelayedJob(Job[None]):
    """A job that another domain has submitted here, with what answers that domain."""

    __slots__ = ("_answer", "_opened_by")

    def __init__(
        self,
        function: Function,
        message: SubmitJob,
        buffers: Sequence[Any],
        references: References,
        owner: Any,
        answer: Callable[..., None],
    ) -> None:
        retry = references.pickling.loads(message.retry, ())(message.retries) if message.retries else None
        super().__init__(function, (), references, message.weight, owner, message.priority, retry)
        self.data = message.data
        self.buffers = buffers
        self.variables = message.variables
        self._answer = answer
        self._opened_by: int | None = None  # as `raised` was told, for `fail`

    def _take_along(self, context: contextvars.Context) -> None:
        """The variables are its submitter's, not those of who hears of it here."""

    def handed_back(self) -> None:
        super().handed_back()
        self._opened_by = None

    def returned(self, message: JobReturned, buffers: Buffers, opened_by: int | None) -> None:
        self._answer(False, message.data, message.seconds, buffers, opened_by=opened_by)
        self._end(Returned(None))

    def raised(
        self, message: JobRaised, buffers: Buffers, opened_by: int | None, reason: BaseException | None = None
    ) -> None:
        if self.retry is not None:
            self._opened_by = opened_by
            super().raised(message, buffers, opened_by, reason)  # only then it matters which failure it is
        else:
            self._answer(True, message.data, message.seconds, buffers, opened_by=opened_by)
            self._end(_FAILED)

    def fail(self, error: BaseException) -> None:
        packed = pack_failure(error, self._references.pickling, f"domain {current().name!r}")
        self._answer(True, packed.data, 0.0, packed.buffers, opened_by=self._opened_by)
        self._end(_FAILED)

    def fail_undelivered(self, error: DomainsError, failure: BaseException | None = None) -> None:
        packed = pack_failure(error, self._references.pickling, f"domain {current().name!r}")
        self._answer(True, packed.data, 0.0, packed.buffers, undelivered=True)
        self._end(_FAILED)


class PoolKind(Kind):
    """How pools travel."""

    name = "pool"
    classes: tuple[type, ...] = (ExecutorPool, PoolReference)

    def __init__(self) -> None:
        self._catalogue: FunctionCatalogue | None = None
        self._relayed: dict[tuple[int, int], RelayedJob] = {}  # by the submitter's address and its number there

    def label_of(self, target: ExecutorPool) -> int:
        return target._count

    def make_reference(self, references: References, home: int, number: int, label: Any) -> PoolReference:
        if self._catalogue is None:
            self._catalogue = FunctionCatalogue(references.pickling)
        return PoolReference(references, self._catalogue, home, number, label)

    def holder_gone(self, export: Export, error: DomainsError) -> None:
        """Its jobs are cancelled one by one."""

    def converse(self, references: References, conversation: Conversation) -> None:
        if self._domain_gone not in references.when_domain_gone:
            references.when_domain_gone.append(self._domain_gone)
        references.handle(conversation, SubmitJob, partial(self._submit, references))
        references.handle(conversation, CancelSubmitted, partial(self._cancel, references))
        references.handle(conversation, SubmittedEnded, partial(_submitted_ended, references))

    def _submit(self, references: References, message: SubmitJob, buffers: Buffers) -> None:
        key = message.sender, message.job

        def answer(
            failed: bool,
            data: bytes,
            seconds: float,
            buffers: Buffers,
            *,
            undelivered: bool = False,
            opened_by: int | None = None,
        ) -> None:
            self._relayed.pop(key, None)
            ended = SubmittedEnded(
                message.sender,
                references.address,
                message.number,
                message.job,
                failed,
                undelivered,
                data,
                seconds,
                len(buffers),
                opened_by,
            )
            references.send(ended, buffers)

        def refuse(error: DomainsError) -> None:
            packed = pack_failure(error, references.pickling, f"domain {current().name!r}")
            answer(True, packed.data, 0.0, packed.buffers)

        export = references.exports.get(message.number)
        try:
            if export is None or not isinstance(export.target, ExecutorPool):
                raise Closed("the executor pool that this handle belongs to is gone")
            pool = export.target
            dispatch = pool._open_within()
        except DomainsError as closed:
            refuse(closed)
            return
        function = pool._catalogue.add_pickled(message.code, message.name, message.is_async)
        try:
            job = RelayedJob(function, message, buffers, references, dispatch, answer)
        except NotPicklable as error:  # classes in `retry_on` that are not known here
            refuse(error)
            return
        self._relayed[key] = job
        dispatch.push(job)

    def _cancel(self, references: References, message: CancelSubmitted, buffers: Buffers) -> None:
        job = self._relayed.get((message.sender, message.job))
        if job is not None:  # otherwise it has ended, and the answer is on its way
            job.cancel(unpack_failure(message.reason, buffers, references.pickling))

    def _domain_gone(self, address: int, error: DomainsError) -> None:
        for (submitter, _), job in list(self._relayed.items()):
            if submitter == address:
                job.cancel(error)


def _submitted_ended(references: References, message: SubmittedEnded, buffers: Buffers) -> None:
    pool = references.reference(message.sender, message.number)
    if isinstance(pool, PoolReference):
        pool._remote.ended(message, buffers)
