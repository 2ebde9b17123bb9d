"""A domain as its parent holds it: its process, the talk with it, the jobs that it was sent, and how it ended.

States: Open -> Finishing -> Finished, in order; Open or Finishing -> Dead. A domain has ended once its process has, and
everything that it said before is heard: then, and only then, what it still owed fails with `DomainDied`.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from domains.cancelling import Cancelling
from domains.conversation import Buffers, Conversation
from domains.errors import Cancelled, Closed, ConnectionLost, DomainDied, DomainsError, DomainUnavailable
from domains.failures import pack_failure
from domains.functions import SentFunctions
from domains.identity import current
from domains.ipc.claims import OfferedClaims
from domains.ipc.interrupts import SentInterrupts
from domains.job import Job, JobState
from domains.launcher.provider import DomainProcess, Ending
from domains.logs import handle_record
from domains.protocol import (
    CancelHeard,
    CancelJob,
    DefineFunction,
    Finish,
    ForgetFunctions,
    JobRaised,
    JobReturned,
    LendWeight,
    LogRecord,
    MemoryExceeded,
    Ready,
    RegainWeight,
    RevokeJobs,
    WatchMemory,
)
from domains.scheduler.cancel import to_the_end
from domains.scheduler.promise import Promise

_LAST_WORDS_SECONDS = 1.0
"""After a domain's process has ended, its link may stay open so long, in case a child of its holds it."""

_MOST_LOST = 3
"""After so many domains that died instead of beginning it, a job is taken for why they did."""

FINISHING_SECONDS = 5.0
"""How long a domain that was asked to finish may take over its exit handlers before it is killed."""

CANCELLING_SECONDS = 1.0
"""How long a domain whose jobs were cancelled may take over its end before it is killed."""


class DomainState(enum.Enum):
    OPEN = "open"
    FINISHING = "finishing"
    FINISHED = "finished"
    DEAD = "dead"


_OPEN = DomainState.OPEN  # to look up an enum's member takes long


class DomainHandle:
    """The parent's side of one domain. All its methods belong to the loop's thread."""

    def __init__(
        self,
        number: int,
        name: str,
        process: DomainProcess,
        conversation: Conversation,
        claims: OfferedClaims,
        interrupts: SentInterrupts,
    ) -> None:
        self.id = number
        self.name = name
        self.claims = claims
        self.interrupts = interrupts
        self.cancelling = Cancelling(self, interrupts)
        self.conversation = conversation
        self.link = conversation.link
        self.state = DomainState.OPEN
        self.was_ready = False
        self.jobs: dict[int, Job[Any]] = {}
        self.ending: Ending | None = None
        self.ended, self._end = Promise[Ending].create(f"the end of domain {name}")
        self._process = process
        self._link_open = True
        self._functions = SentFunctions()
        self._send = conversation.send
        self._when_answered: Callable[[Job[Any], float], None] | None = None
        self._when_lent: Callable[[Job[Any], bool], None] | None = None
        self._when_ended: list[Callable[[DomainHandle], None]] = []
        self._last_words: asyncio.TimerHandle | None = None
        self._why_killed: str | None = None
        self._when_ready: Callable[[], object] | None = None
        conversation.handle(Ready, self._ready)
        conversation.handle(JobReturned, self._answered)
        conversation.handle(JobRaised, self._answered)
        conversation.handle(CancelHeard, lambda message, _: self.cancelling.heard(message.job))
        conversation.handle(LendWeight, lambda message, _: self._weight_lent(message.job, True))
        conversation.handle(RegainWeight, lambda message, _: self._weight_lent(message.job, False))
        conversation.when_gone(self._link_gone)
        conversation.handle(LogRecord, self._log)
        conversation.start()
        process.when_ended(self._process_ended)

    def __repr__(self) -> str:
        return f"<domain {self.name!r}, process {self.pid}, {self.state.value}>"

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def takes_jobs(self) -> bool:
        """Whether `start` has a point: it is neither asked to finish nor known to be gone."""
        return self.state is _OPEN and self.link.is_open

    @property
    def has_ended(self) -> bool:
        return self.state is DomainState.FINISHED or self.state is DomainState.DEAD

    @property
    def was_killed(self) -> bool:
        """Whether it was killed here, for a reason."""
        return self._why_killed is not None

    def when_answered(self, callback: Callable[[Job[Any], float], None]) -> None:
        """Call `callback(job, seconds)` for each job that this domain answers."""
        assert self._when_answered is None
        self._when_answered = callback

    def when_lent(self, callback: Callable[[Job[Any], bool], None]) -> None:
        """Call `callback(job, True)` when a running job's weight is lent, and with False when it is back."""
        assert self._when_lent is None
        self._when_lent = callback

    def start(self, jobs: Sequence[Job[Any]], *, at_once: bool = False) -> Sequence[Job[Any]]:
        """Send jobs, having offered the tickets of those with a weight. Raises Closed or DomainDied.

        Or without an offer, so that they start `at_once`: for a domain that has no others. Returns the last of them,
        queued as before, if there is no room to offer so many.
        """
        if self.state is not _OPEN:
            if self.state is DomainState.DEAD:
                raise self.error()
            raise Closed(f"domain {self.name!r} is closed: it was asked to finish")
        messages = []
        tickets = []
        for job in jobs:
            message = job.message(job.weight > 0 and not at_once)
            messages.append(message)
            self.jobs[message.job] = job
            if message.offered:
                tickets.append(message.job)
        if not self.link.is_open:
            return ()  # it is as good as dead; how it ended, and with that what to tell the jobs, will be known soon
        unoffered: Sequence[Job[Any]] = ()
        # The offer comes first: a domain looks for it when the message arrives, and only then.
        if tickets and (offered := self.claims.offer(tickets)) < len(tickets):
            unoffered = self._hand_back([message.job for message in messages if message.job >= tickets[offered]])
            del messages[-len(unoffered) :]
        function = None
        send = self._send
        try:
            for job, message in zip(jobs, messages, strict=False):
                if job.lost:
                    self.link.flush()  # what comes before it is received, whatever becomes of it
                if job.function is not function:
                    function = job.function
                    if self._functions.is_new(function):
                        send(DefineFunction(function.number, function.code))
                        if surplus := self._functions.forget_surplus(job.function for job in self.jobs.values()):
                            send(ForgetFunctions(surplus))
                send(message, job.buffers)
        except ConnectionLost:
            pass  # one of these messages has ended the link: the jobs are told with all others that are here
        return unoffered

    def cancel(self, job: Job[Any], reason: BaseException) -> None:
        """Ask for the end of a job that was sent here; its answer still comes."""
        assert job.state is JobState.SENT
        job.state = JobState.CANCELLING
        self.cancelling.ask(job, reason)
        if self.link.is_open:
            packed = pack_failure(reason, self.conversation.pickling, f"domain {current().name!r}")
            message = CancelJob(job.ticket, packed.data, len(packed.buffers))
            self.conversation.send(message, packed.buffers)

    def job_ended(self, job: Job[Any]) -> None:
        """A job that this domain was called with has ended: there is nothing to account for."""

    def try_again(self, job: Job[Any]) -> None:
        raise AssertionError("a call is not retried")

    def take_back(self) -> list[Job[Any]]:
        """The jobs that were sent and not begun; those among them that nobody cancelled are queued again."""
        tickets = self.claims.take_back()
        if not tickets:
            return []
        if self.link.is_open:
            self.conversation.send(RevokeJobs(tickets))
        return self._hand_back(tickets)

    def when_ended(self, callback: Callable[[DomainHandle], None]) -> None:
        """Call this once when the domain has ended, before those who wait for its jobs are told."""
        self._when_ended.append(callback)

    def when_ready(self, callback: Callable[[], object]) -> None:
        """Call this once when the domain runs."""
        assert self._when_ready is None
        self._when_ready = callback

    def watch_memory(self, most_bytes: int, callback: Callable[[], None]) -> None:
        """Call this once when the domain holds more resident memory than so much, after a job that begins later."""
        self.conversation.handle(MemoryExceeded, lambda message, _: callback())
        if self.link.is_open:
            self.conversation.send(WatchMemory(most_bytes))

    def _hand_back(self, tickets: Iterable[int]) -> list[Job[Any]]:
        jobs = []
        for ticket in tickets:
            job = self.jobs.get(ticket)
            if job is not None and job.state is JobState.SENT:
                del self.jobs[ticket]
                job.handed_back()
                jobs.append(job)
        return jobs

    def recover(self) -> list[Job[Any]]:
        """At the end: the jobs that never began, queued once more; but for one that seems to be why none did."""
        assert self.has_ended
        last = self.claims.last_started()
        tickets = [ticket for ticket, job in self.jobs.items() if job.weight and ticket > last]
        if tickets and self.was_ready and len(tickets) == len(self.jobs):
            # It may have died of what it was sent, as for want of memory to receive that. The first is to blame, once
            # they are sent one by one.
            suspect, *others = (self.jobs[ticket] for ticket in tickets)
            suspect.lost += 1
            for job in others:
                job.lost = job.lost or 1
            if suspect.lost >= _MOST_LOST:
                del tickets[0]
        return self._hand_back(tickets)

    def hand_back(self, which: Callable[[Job[Any]], bool]) -> list[Job[Any]]:
        """At the end: the jobs of which this is true, queued once more, though they may have begun."""
        assert self.has_ended
        return self._hand_back([ticket for ticket, job in self.jobs.items() if which(job)])

    def error(self, job: Job[Any] | None = None) -> DomainsError:
        """What the end of this domain means for one who depended on it."""
        ending = self.ending
        assert ending is not None
        if ending.why is not None and not self.was_ready:
            return DomainUnavailable(f"domain {self.name!r} could not be started: {ending.why}")
        what = "" if job is None else f"before job {job.function.name!r} had ended"
        if job is not None and job.retry is not None:
            what += f" at its attempt {job.retry.attempt}"
        if job is not None and job.lost >= _MOST_LOST:
            what += f", which none of {job.lost} domains could begin"
        if why := self._why_killed or ending.why:
            what = f"because {why}, {what}".rstrip(", ")
        elif ending.signal == signal.SIGKILL:
            what = f"{what} (not by this program; it may have been the system, for want of memory)".lstrip()
        return DomainDied(self.name, ending.exitcode, ending.signal, ending.crash, what or None)

    def finish(self) -> None:
        """No more jobs will come: the domain ends once those that run have ended."""
        if self.state is DomainState.OPEN:
            self.state = DomainState.FINISHING
            if self.link.is_open:
                self.conversation.send(Finish())

    def kill(self, why: str) -> None:
        """End its process at once; `why` is for those whose jobs end with it."""
        self._why_killed = self._why_killed or why
        self._process.kill()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def idle(self) -> None:
        """Wait until every job that was sent here has been answered, or the domain has ended."""
        for job in list(self.jobs.values()):
            try:
                await job.promise
            except BaseException:
                if not job.promise.is_resolved:
                    raise  # it is this wait that was cancelled; a job's own failure is its submitter's

    async def close(self, seconds: float) -> None:
        """Finish, and kill what has not ended after so many seconds. Waits to the end, whatever comes.

        Somebody's `task.cancel()` that comes meanwhile, as that of an `asyncio.timeout`, is raised then.
        """
        self.finish()
        why = f"it had not ended {seconds:g} s after it was asked to"
        overdue = asyncio.get_running_loop().call_later(seconds, self.kill, why)
        try:
            await to_the_end(lambda: self.ended)
        finally:
            overdue.cancel()

    def cancel_jobs(self, reason: BaseException) -> None:
        """Ask for the end of everything that was sent here. If a cancellation is why, what began that is the reason."""
        if isinstance(reason, Cancelled) and reason.reason is not None:
            reason = reason.reason
        for job in list(self.jobs.values()):
            job.cancel(reason)

    def _log(self, message: LogRecord, buffers: Buffers) -> None:
        handle_record(self.name, message, buffers, self.conversation.pickling)

    def _ready(self, message: Ready, _: Buffers) -> None:
        self.was_ready = True
        if self._when_ready is not None:
            self._when_ready()
        if self._process.pid is None:
            self._process.pid = message.pid  # the launcher says it too, but that may come later than the first answers

    def _weight_lent(self, ticket: int, lent: bool) -> None:
        if self._when_lent is not None:
            self._when_lent(self.jobs[ticket], lent)

    def _answered(self, message: JobReturned | JobRaised, buffers: Buffers) -> None:
        ticket = message.job
        job = self.jobs.pop(ticket)
        why_cancelled = self.cancelling.answered(ticket) if self.cancelling.requests else None
        opened_by = self.conversation.address if message.opened else None
        try:
            if self._when_answered is not None:
                self._when_answered(job, message.seconds)
            if isinstance(message, JobReturned):
                job.returned(message, buffers, opened_by)
            else:
                job.raised(message, buffers, opened_by, why_cancelled)
        except BaseException:
            if job.state is JobState.SENT or job.state is JobState.CANCELLING:
                self.jobs[ticket] = job  # this is about to end the link, and that fails the jobs that are here
            raise

    def _link_gone(self, reason: ConnectionLost | None) -> None:
        self._link_open = False
        if self.ending is not None:
            self._ended()
        elif reason is not None and reason.__cause__ is not None and not isinstance(reason.__cause__, ConnectionError):
            self.kill(str(reason))  # what it says is not to be trusted
        elif reason is not None:
            # It has died, as the launcher is about to tell; or it has cut the link, and says why as it ends by itself.
            self._kill_later(_LAST_WORDS_SECONDS, "it has cut the link to its parent")
        elif self.state is DomainState.OPEN or self.jobs:
            # Somebody told it to end, and it said goodbye: it may run its exit handlers, and then the launcher tells.
            # One that was asked to finish, and has nothing left to answer, is `close`'s to wait for.
            self._kill_later(FINISHING_SECONDS, "it has said goodbye and does not end")

    def _kill_later(self, seconds: float, why: str) -> None:
        self._last_words = asyncio.get_running_loop().call_later(seconds, self.kill, why)

    def _process_ended(self, ending: Ending) -> None:
        self.ending = ending
        if self._link_open:
            # What it said before it died is still in the link; its end-of-file follows.
            loop = asyncio.get_running_loop()
            lost = ConnectionLost(f"domain {self.name!r} has ended and its link stays open")
            self._last_words = loop.call_later(_LAST_WORDS_SECONDS, self.link.abort, lost)
        else:
            self._ended()

    def _ended(self) -> None:
        if self._last_words is not None:
            self._last_words.cancel()
        assert self.ending is not None
        in_order = self.state is DomainState.FINISHING and self.ending.exitcode == 0
        self.state = DomainState.FINISHED if in_order else DomainState.DEAD
        self.cancelling.close()
        with contextlib.ExitStack() as steps:  # all are taken, also if one raises: nobody waits for ever
            steps.callback(self._end.resolve, self.ending)
            steps.callback(self.interrupts.close)
            steps.callback(self.claims.close)
            steps.callback(self._fail_jobs)
            for callback in reversed(self._when_ended):
                steps.callback(callback, self)

    def _fail_jobs(self) -> None:
        jobs, self.jobs = self.jobs, {}
        for ticket, job in jobs.items():
            job.fail_undelivered(self.error(job), self.cancelling.failure_of(ticket))
