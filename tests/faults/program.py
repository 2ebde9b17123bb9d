"""Programs run as processes of their own, so that they can be killed: what they say, and what they leave behind.

Every process of a program, however far down, carries the program's mark in its environment, so that none is missed;
and has its temporary directory to itself, so that whatever lies there afterwards was left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .limits import own_mount

PATIENCE_SECONDS = 20.0
"""How long to wait for what is bound to come, on a busy machine."""

GONE_SECONDS = 1.0
"""The promise: so long after a program has died, nothing of it is left."""

_MARK = "DOMAINS_TEST_PROGRAM"

_PRELUDE = """\
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background ignores it
import asyncio, json, threading, time
if "announce" in sys.argv:  # Python loses a Ctrl-C now and then while it imports; while it imports ours, it does not
    os.write(1, b'"started"\\n')
import domains
from domains import DomainDied, DomainUnavailable, ExecutorPool, Promise, Switch, fiber

LINK = sys.argv[1]

def say(what):
    # One write, so that the lines of several processes do not mix.
    os.write(1, (json.dumps(what) + "\\n").encode())

def spin():
    while True:
        pass

def spin_by_calls():
    # As `spin`, for who is to hear a signal that may come as a call of the system ends: before 3.13 Python may set it
    # aside then, until the next such call.
    while True:
        time.sleep(0)

"""


class Silence(AssertionError):
    """A program has said nothing for as long as somebody listened."""


class Program:
    """A running program. It `say`s things, in any of its processes; `hear` returns them one by one."""

    def __init__(
        self,
        source: str,
        directory: Path,
        link: str,
        *arguments: str,
        prefix: Sequence[str] = (),
        own_group: bool = True,
        environment: dict[str, str] | None = None,
        mount: str | None = None,
    ) -> None:
        """With `mount`, its temporary directory is a file system of its own, mounted with these options."""
        self.mark = uuid.uuid4().hex
        self.temporary = Path(tempfile.mkdtemp(prefix="program-", dir="/tmp"))  # a name short enough for sockets
        self.temporary.chmod(0o777)
        if mount is not None:
            prefix = (*own_mount(str(self.temporary), mount), *prefix)
        file = directory / f"program-{self.mark}.py"
        file.write_text(_PRELUDE + textwrap.dedent(source))
        self._errors = directory / f"errors-{self.mark}"
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, str(file), link, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, _MARK: self.mark, "TMPDIR": str(self.temporary), **(environment or {})},
                process_group=0 if own_group else None,
            )
        self._heard = b""

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [self.process.pid, *self.processes()]:
            with contextlib.suppress(ProcessLookupError):
                if self.process.poll() is None or pid != self.process.pid:
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        shutil.rmtree(self.temporary, ignore_errors=True)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def errors(self) -> str:
        return self._errors.read_text(errors="replace")

    def hear(self) -> Any:
        """The next thing that it says."""
        line = self._read_line()
        assert line is not None, f"the program has ended, or closed its output; it wrote:\n{self.errors}"
        return json.loads(line)

    def hear_rest(self) -> list[str]:
        """All lines until its output ends."""
        lines = []
        while (line := self._read_line()) is not None:
            lines.append(line.decode())
        return [*lines, self._heard.decode()] if self._heard else lines

    def hear_line(self, seconds: float = PATIENCE_SECONDS) -> str | None:
        """The next line, or None where its output ends. Raises Silence when it says nothing for so long."""
        line = self._read_line(seconds)
        return None if line is None else line.decode()

    def _read_line(self, seconds: float = PATIENCE_SECONDS) -> bytes | None:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        deadline = time.monotonic() + seconds
        while b"\n" not in self._heard:
            ready, _, _ = select.select([descriptor], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise Silence(f"the program says nothing; it wrote:\n{self.errors}")
            data = os.read(descriptor, 1 << 16)
            if not data:
                return None
            self._heard += data
        line, self._heard = self._heard.split(b"\n", 1)
        return line

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def interrupt_group(self) -> None:
        """What a terminal does at Ctrl-C: every process of the foreground group gets the signal."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self) -> int:
        """Its exit status, or the negative number of a signal."""
        try:
            return self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the program does not end; it wrote:\n{self.errors}") from None

    def processes(self) -> set[int]:
        """Every live process of the program but its first."""
        return {pid for pid in _living() if pid != self.process.pid and self._is_ours(pid)}

    def _is_ours(self, pid: int) -> bool:
        try:
            return self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False

    def check_nothing_is_left(self, seconds: float = GONE_SECONDS) -> None:
        """Its processes are gone within so much time, and so are its files, sockets and shared memory."""
        left = wait_until_gone(self.processes(), seconds)
        assert not left, f"still there after {seconds} s: {[describe(pid) for pid in left]}"
        assert not self.processes()
        # The launcher, the last to go, has removed all before it went.
        assert not list(self.temporary.rglob("*")), list(self.temporary.rglob("*"))
        assert not list(Path("/dev/shm").glob(f"domains-{self.pid}-*"))


def wait_until_gone(pids: Iterable[int], seconds: float) -> set[int]:
    """Wait until these processes have ended; returns those that have not in time."""
    deadline = time.monotonic() + seconds
    left = set(pids)
    for pid in list(left):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            left.discard(pid)
            continue
        try:
            if select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                left.discard(pid)
        finally:
            os.close(descriptor)
    return left


def reports(text: str) -> int:
    """How many errors were reported: a traceback that is another's cause or context belongs to that one's report.

    Not those that Python ignores: a signal may come while it calls somebody who cannot raise, such as a weak
    reference's callback, and says so.
    """
    chained = text.count("direct cause of the following") + text.count("another exception occurred")
    return text.count("Traceback (most recent call last)") - chained - text.count("Exception ignored in")


def is_stopped(pid: int) -> bool:
    return _state(pid) in "Tt"


def describe(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:80]
    except OSError:
        command = "gone"
    return f"process {pid} ({command!r}, state {_state(pid)!r})"


def _living() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _state(int(name)) not in "ZX"]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"
