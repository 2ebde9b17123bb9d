"""Interrupts the plain job that keeps a domain busy: the half of that which lives in the domain.

A plain job runs in the domain's main thread, under its loop, so a message that cancels it is not read before it ends.
A signal, which names the job by way of `domains.ipc.interrupts`, raises `Cancelled` in it instead: once for each
request, and only where the interrupted frame lies under the job's own and none in between is ours, so that neither
the scheduler nor what a job calls of ours is ever cut in two. A job that runs an event loop of its own is first asked
by cancelling that loop's tasks. Whatever cannot be interrupted now hears of it when the signal comes again.
"""

from __future__ import annotations

import asyncio
import contextvars
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from domains.errors import Cancelled
from domains.ipc.interrupts import NOBODY, ReceivedInterrupts
from domains.lending import current_loan

INTERRUPT_SIGNAL = signal.SIGURG
"""A signal that is ignored where nobody handles it, so that one which comes too early or too late does no harm."""

GRACE_SECONDS = 2.0
"""How long a cancelled job may keep its domain from doing anything else before the domain is killed."""

_OURS = "domains."
_MARK = "RUNS_USER_CODE"
"""A module of ours with this name in it only calls what users wrote, and may be interrupted."""


class Interruptions:
    """Runs a domain's plain jobs, one at a time, so that they can be interrupted. Belongs to the main thread."""

    def __init__(self, received: ReceivedInterrupts) -> None:
        self.busy_with = received.busy_with
        self._received = received
        self._asked: dict[int, int] = {}  # job -> how often
        self._job = NOBODY
        self._loop: asyncio.AbstractEventLoop | None = None
        self._raised = 0
        self._loop_was_asked = False

    def install(self) -> None:
        """Begin to listen for the signal."""
        signal.signal(INTERRUPT_SIGNAL, self._on_signal)

    def serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """Jobs will be called under this loop, which runs now."""
        self._loop = loop

    def call(self, job: int, context: contextvars.Context, f: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Call a plain job as if no event loop ran in this thread, so that it may run one of its own."""
        asyncio._set_running_loop(None)
        self._job = job
        try:
            return _run_job(self, context, f, arguments)
        finally:
            self._job = NOBODY
            asyncio._set_running_loop(self._loop)
            if self._asked:
                self._raised = 0
                self._loop_was_asked = False

    @property
    def is_busy(self) -> bool:
        """Whether a plain job runs, and waits for other domains while messages are read."""
        return self._job != NOBODY

    def forget(self, job: int) -> None:
        """The message that cancels this job has arrived: the request that came before it has no more use."""
        self._read()
        self._asked.pop(job, None)

    def raise_if_asked(self) -> None:
        if self._asked.get(self._job, 0) > self._raised:
            self._raised += 1
            raise Cancelled

    def _read(self) -> None:
        for job in self._received.read():
            self._asked[job] = self._asked.get(job, 0) + 1

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        loan = current_loan()  # this is called in the context of what was interrupted
        self.busy_with[1] = NOBODY if loan is None else loan.job
        self._read()
        if self._asked.get(self._job, 0) <= self._raised:
            return
        ours = False
        while frame is not None and frame.f_code is not _JOB_CODE:
            names = frame.f_globals
            ours = ours or (str(names.get("__name__")).startswith(_OURS) and _MARK not in names)
            frame = frame.f_back
        if frame is None:
            return  # the job is not there yet, or not any more
        loop = asyncio._get_running_loop()
        if loop is self._loop:
            return  # in a call of ours that waits for another domain; the signal comes again
        if loop is not None and not self._loop_was_asked:
            self._loop_was_asked = True
            loop.call_soon_threadsafe(_cancel_tasks, loop)
        elif not ours:
            self.raise_if_asked()


def _run_job(
    interruptions: Interruptions, context: contextvars.Context, f: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    """The frame under which a job's frames lie; wherever it is interrupted, the job has failed and nothing else."""
    if interruptions._asked:
        interruptions.raise_if_asked()
    return context.run(f, *arguments)


_JOB_CODE = _run_job.__code__


def _cancel_tasks(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
