"""Every error that domains itself raises, in one tree.

This file is the one piece below all three rooms: it imports nothing of ours, and every room may import it.
Messages say what happened, to which domain, fiber or job by name, and what to do next.
"""

from __future__ import annotations

import asyncio
import copy
from typing import TypeVar

__all__ = [
    "AlreadyResolved",
    "ArenaFull",
    "Cancelled",
    "Closed",
    "ConnectionLost",
    "Deadlock",
    "DomainDied",
    "DomainUnavailable",
    "DomainsError",
    "NotPicklable",
    "Poisoned",
    "RestartsExceeded",
]


E = TypeVar("E", bound="DomainsError")


class Cancelled(asyncio.CancelledError):
    """The fiber's cancellation context was cancelled; let it pass, after cleaning up.

    Outside the `DomainsError` tree, so that `except Exception` never swallows it. `reason` is the exception
    that began the cancellation, or None where nothing more is known.
    """

    def __init__(self, reason: BaseException | None = None) -> None:
        super().__init__() if reason is None else super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        if self.reason is None:
            return "cancelled"
        text = str(self.reason)
        name = type(self.reason).__name__
        return f"cancelled because of {name}: {text}" if text else f"cancelled because of {name}"


class DomainsError(Exception):
    """The root of all errors of this package but `Cancelled`."""


class Deadlock(DomainsError):
    """Nothing can ever run again; the message names each stuck fiber and what it waits for."""


class AlreadyResolved(DomainsError):
    """A promise was resolved a second time; use `try_resolve` where a race is expected."""


class ArenaFull(DomainsError, MemoryError):
    """There is not so much shared memory left; `size_bytes` were asked for, `limit_bytes` is what there may be."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(size_bytes, limit_bytes)
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes

    def __str__(self) -> str:
        return (
            f"{self.size_bytes} bytes of shared memory cannot be had: what is in use, and the limit of "
            f"{self.limit_bytes} bytes for this process, or the system, leave no room. Let go of shared arrays, and of "
            "data from other domains, that are not needed any more."
        )


class Poisoned(DomainsError):
    """A mutex's critical section failed, so what it protects may be broken; `__cause__` is that failure."""


class Closed(DomainsError):
    """The stream, pool or link was closed before the operation could be done."""


class ConnectionLost(DomainsError):
    """The peer process of a link is gone, or sent something that is not a frame of ours."""


class DomainUnavailable(DomainsError):
    """A domain could not be started, or cannot be reached."""


class DomainDied(DomainsError):
    """A domain ended while something still depended on it.

    `domain` is its name, `exitcode` its exit status or None, `signal` the number of the signal that killed it
    or None, `fatal_traceback` what the interpreter wrote about the crash, where there is anything.
    """

    def __init__(
        self,
        domain: str,
        exitcode: int | None = None,
        signal: int | None = None,
        fatal_traceback: str | None = None,
        what: str | None = None,
    ) -> None:
        super().__init__(domain, exitcode, signal, fatal_traceback, what)
        self.domain = domain
        self.exitcode = exitcode
        self.signal = signal
        self.fatal_traceback = fatal_traceback
        self.what = what

    def __str__(self) -> str:
        if self.signal is not None:
            how = f"was killed by signal {self.signal}{_signal_name(self.signal)}"
        elif self.exitcode is not None:
            how = f"exited with status {self.exitcode}"
        else:
            how = "is gone"
        text = f"domain {self.domain!r} {how}"
        if self.what:
            text += f" {self.what}"
        if self.fatal_traceback:
            text += f"\n{self.fatal_traceback}"
        return text


class RestartsExceeded(DomainsError):
    """A supervisor's services failed more often than allowed; `__cause__` is the last failure."""


class NotPicklable(DomainsError, TypeError):
    """Something could not be sent to, or back from, another domain.

    `what` names the thing and the path inside it that cannot be pickled, `why` is the pickler's complaint,
    `hint` says what to do instead.
    """

    def __init__(self, what: str, why: str, hint: str = "") -> None:
        super().__init__(what, why, hint)
        self.what = what
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.what} cannot be pickled: {self.why}"
        return f"{text}\n{self.hint}" if self.hint else text


def copy_of(error: E) -> E:
    """The same error for one more to raise: its traceback, context and notes are then nobody else's."""
    another = copy.copy(error)
    if error.__cause__ is not None:  # to say that there is none would hide the context
        another.__cause__ = error.__cause__
    if (notes := getattr(error, "__notes__", None)) is not None:
        another.__notes__ = list(notes)
    return another


def _signal_name(number: int) -> str:
    import signal  # only needed for the message

    try:
        return f" ({signal.Signals(number).name})"
    except ValueError:
        return ""
