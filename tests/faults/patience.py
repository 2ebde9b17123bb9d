"""Tells a program that hangs from one that the machine has no time for.

A program's own time is the time in which none of its threads waited for a core, though it could have run: the kernel
keeps account of that. What has not happened within so much of a program's own time will not happen. States of a thing
that is waited for: Begun -> over, or Begun -> overdue.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Hashable, Iterable
from pathlib import Path

from .program import Program, describe

_DUMPING_SECONDS = 1.0


class OwnTime:
    """How long a program has had. `look` is called often, and takes account of what passed since."""

    def __init__(self, program: Program) -> None:
        self.seconds = 0.0
        self._program = program
        self._looked = time.monotonic()
        self._delays: dict[str, float] = {}

    def look(self) -> float:
        """The program's own time since this was made, in seconds."""
        now = time.monotonic()
        delays = {}
        for pid in {self._program.pid, *self._program.processes()}:
            delays |= _run_delays(pid)
        # A delay is booked when it is over, and may then be longer than the time since the last look.
        waited = max((delay - self._delays.get(thread, 0.0) for thread, delay in delays.items()), default=0.0)
        self.seconds = max(0.0, self.seconds + now - self._looked - waited)
        self._looked = now
        self._delays = delays
        return self.seconds


def _run_delays(pid: int) -> dict[str, float]:
    """How long each thread of a process has waited for a core since it began, in seconds."""
    delays = {}
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            words = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()
            delays[thread] = int(words[1]) / 1e9
    except OSError:
        pass  # it has ended, or this kernel does not tell
    return delays


class Patience:
    """Remembers when each of several things began, in a program's own time."""

    def __init__(self, program: Program, seconds: float) -> None:
        self._clock = OwnTime(program)
        self._seconds = seconds
        self._began: dict[Hashable, float] = {}

    def look(self, running: Iterable[Hashable]) -> list[Hashable]:
        """Those of the things which run now that are overdue; any that is not named has ended."""
        now = self._clock.look()
        self._began = {thing: self._began.get(thing, now) for thing in running}
        return [thing for thing, began in self._began.items() if now - began > self._seconds]


def what_it_does(program: Program, to_first: Iterable[int], to_others: Iterable[int]) -> str:
    """What each process of a program does: its state, where in the kernel it waits, and the stacks that it can write.

    It writes them when its first process, or the others, get these signals.
    """
    pids = [program.pid, *sorted(program.processes())]
    for pid in pids:
        for number in to_first if pid == program.pid else to_others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    time.sleep(_DUMPING_SECONDS)
    text = "\n".join(f"{describe(pid)} waits in {_wait_channel(pid)}\n{_crash_report(pid)}" for pid in pids)
    return f"{text}\nit wrote:\n{program.errors[-20000:]}"


def _wait_channel(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/wchan").read_text() or "nothing"
    except OSError:
        return "nothing that can be told"


def _crash_report(pid: int) -> str:
    """What a domain's fault handler wrote into the file without a name that it has for that."""
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{name}"
            if "memfd:domains-crash" in os.readlink(path):
                return Path(path).read_text(errors="replace")
    except OSError:
        pass
    return ""
