"""The launcher process: forks each domain from a warm image, reaps it, and outlives the parent to end it.

It is started once by `domains.launcher.local`, imports what a domain needs, and has a single thread for all its
life, so forking is safe. Invariants: every domain it forked is in `_children` until it is reaped, so a signal
never goes to somebody else's process; when the parent ends, the control socket closes, or the lifeline of a launcher
further up, every domain is gone within `PARTING_SECONDS`, whatever it is doing.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from typing import NoReturn

from domains.launcher.control import (
    DUMP_SIGNAL,
    Birth,
    ControlMessage,
    ControlSocket,
    Ended,
    Launch,
    NotStarted,
    Remove,
    Signal,
    Started,
    as_text,
)
from domains.launcher.image import outlive_teardown
from domains.launcher.lifeline import Lifeline, inherit

PARTING_SECONDS = 0.3
"""How long domains may unwind by themselves after their parent has gone, before they are killed."""

_LEFT_TO_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
_IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}
_CRASH_BYTES = 1 << 16
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


class Launcher:
    """The launcher's state: its domains, by number."""

    def __init__(self, control: ControlSocket, parent: int | None, upwards: int | None) -> None:
        self._control = control
        self._parent = [] if parent is None else [parent]
        self._upwards = [] if upwards is None else [upwards]
        self.lifeline = Lifeline()
        self._wake_read, self._wake_write = os.pipe()
        self._remove: list[str] = []
        self._children: dict[int, tuple[int, int]] = {}  # domain -> its process, its crash report's descriptor

    def serve(self) -> tuple[Birth, dict[str, int], int] | None:
        """Serve until the parent has hung up or gone; in a forked domain, return its birth instead."""
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler is what makes the wake-up descriptor work
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        while True:
            try:
                writing = None if self._control.write() else self._control.fileno()
            except OSError:
                break
            ends = [*self._parent, *self._upwards]
            readable = _wait([self._control.fileno(), self._wake_read, *ends], writing=writing)
            if self._wake_read in readable:
                _drain(self._wake_read)
                self._reap()
            if not readable.isdisjoint(ends):
                break
            if self._control.fileno() in readable:
                try:
                    for message in self._control.read():
                        birth = self._obey(message)
                        if birth is not None:
                            return birth
                except EOFError:
                    break
        self._end_all()
        return None

    def _obey(self, message: ControlMessage) -> tuple[Birth, dict[str, int], int] | None:
        if isinstance(message, Launch):
            return self._fork(message.birth)
        if isinstance(message, Signal):
            child = self._children.get(message.domain)
            if child is not None:
                _signal_child(child[0], message.signal, group=message.group)
        if isinstance(message, Remove):
            self._remove = message.paths
        return None

    def _fork(self, birth: Birth) -> tuple[Birth, dict[str, int], int] | None:
        descriptors: list[int] = []
        crash = -1
        try:
            descriptors = self._control.take_descriptors(len(birth.descriptors))
            crash = _anonymous_file()
            pid = os.fork()
        except OSError as error:
            if crash >= 0:
                os.close(crash)
            self._control.send(NotStarted(birth.domain, f"the launcher process cannot fork it: {error}"))
        else:
            if pid == 0:
                return birth, dict(zip(birth.descriptors, descriptors, strict=True)), crash
            _lead_own_group(pid)
            self._children[birth.domain] = (pid, crash)
            self._control.send(Started(birth.domain, pid))
        for descriptor in descriptors:
            os.close(descriptor)
        return None

    def _reap(self) -> None:
        for domain, (pid, crash) in list(self._children.items()):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            # What a domain started and left behind goes with it; before reaping, so that the number is its own.
            _signal_group(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            del self._children[domain]
            text = os.pread(crash, _CRASH_BYTES, 0).decode(errors="replace")
            os.close(crash)
            self._control.send(Ended(domain, os.waitstatus_to_exitcode(status), text))

    def _end_all(self) -> None:
        """The parent is gone: give the domains, which see that too, a moment; then kill them."""
        self.lifeline.cut()
        deadline = time.monotonic() + PARTING_SECONDS
        while self._children and (left := deadline - time.monotonic()) > 0:
            _wait([self._wake_read], left)
            _drain(self._wake_read)
            self._reap()
        killed = [pid for pid, _ in self._children.values() if _signal_child(pid, signal.SIGKILL, group=True)]
        for pid in killed:
            os.waitpid(pid, 0)
        self._hear_out()
        if self._remove:
            import shutil  # slow to import, and most launchers have nothing to remove

        for path in self._remove:
            shutil.rmtree(path, ignore_errors=True)

    def _hear_out(self) -> None:
        """Hear what is to be removed from a parent that is going, like all above it, and may only now have begun."""
        deadline = time.monotonic() + 2 * PARTING_SECONDS
        with contextlib.suppress(EOFError, OSError):
            while (left := deadline - time.monotonic()) > 0:
                readable = _wait([self._control.fileno(), *self._parent], left)
                for message in self._control.read():
                    if isinstance(message, Remove):
                        self._remove = message.paths
                if not readable.isdisjoint(self._parent):
                    break  # others may hold its end of the socket, and nobody speaks there any more

    def disown(self) -> None:
        """In a forked domain, or at the end: let go of what belongs to the launcher alone."""
        signal.set_wakeup_fd(-1)
        self._control.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        for parent in self._parent:
            os.close(parent)
        for _, crash in self._children.values():
            os.close(crash)
        self._children.clear()


def main(
    become_domain: Callable[[Birth, dict[str, int]], int],
    control_descriptor: int,
    parent: int | None,
    upwards: int | None,
) -> NoReturn:
    """Run the launcher over an inherited socket; in each forked process, run a domain. Never returns.

    `parent` is a descriptor of the parent's process, where there is such a thing; `upwards` is the lifeline of the
    launcher that the parent, a domain itself, was forked by.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a parent's mask would come along, and hide the ends of domains
    # What a terminal or a service manager sends to everybody is the parent's business; the domains hear from it.
    for number in _LEFT_TO_PARENT:
        signal.signal(number, signal.SIG_IGN)
    set_parent_death_signal = _find_parent_death_signal()
    outlive_teardown()
    gc.freeze()  # what is here now never becomes garbage: collecting would only unshare its pages
    gc.enable()
    if upwards is not None:
        os.set_inheritable(upwards, False)
        inherit(upwards)
    launcher = Launcher(ControlSocket(socket.socket(fileno=control_descriptor)), parent, upwards)
    launcher_pid = os.getpid()
    born = launcher.serve()
    if born is None:
        launcher.disown()
        sys.exit(0)
    birth, descriptors, crash = born
    _lead_own_group(0)
    set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != launcher_pid:
        os._exit(1)  # the launcher died before we asked to be told
    _reset_process(launcher, birth, crash)
    sys.exit(become_domain(birth, descriptors))


def _reset_process(launcher: Launcher, birth: Birth, crash: int) -> None:
    """Make a forked copy of the launcher a process of its own."""
    import faulthandler  # a domain's, not the launcher's

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in range(1, signal.NSIG):
        # By us, or by the parent: that is inherited.
        if signal.getsignal(number) is signal.SIG_IGN and number not in _IGNORED_BY_PYTHON:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    launcher.disown()
    launcher.lifeline.hand_down()
    faulthandler.enable(file=crash)
    faulthandler.register(DUMP_SIGNAL, file=crash)
    for module in ("random", "numpy.random"):
        if module in sys.modules:
            sys.modules[module].seed()
    sys.path[:] = map(as_text, birth.sys_path)
    sys.argv[:] = map(as_text, birth.argv)
    for name, value in birth.environment:
        if value is None:
            os.environb.pop(name, None)
        else:
            os.environb[name] = value
        if name == b"TZ":
            time.tzset()
    _enter(as_text(birth.directory))
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            # Whole lines: also where Python was asked not to buffer, and would write each piece of a print by itself.
            stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]


def _enter(directory: str) -> None:
    with contextlib.suppress(OSError):
        if os.getcwd() == directory:
            return  # it may be one that may not be entered by its path
    try:
        os.chdir(directory)
    except OSError:
        os.chdir("/")  # the parent's directory is gone; anything but a surprise inside the launcher's


def _find_parent_death_signal() -> Callable[[int], None]:
    """A function that has the kernel send us a signal when our parent dies, where there is such a thing."""
    if not sys.platform.startswith("linux"):
        return lambda number: None
    import ctypes

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return lambda number: prctl(_SET_PARENT_DEATH_SIGNAL, number, 0, 0, 0)


def _anonymous_file() -> int:
    """A file without a name, so that nothing is left whatever dies."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("domains-crash", os.MFD_CLOEXEC)
    import tempfile  # slow to import, and not needed on Linux

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _wait(reading: Iterable[int], seconds: float | None = None, *, writing: int | None = None) -> set[int]:
    """Those that can be read, once there are any, or once that one of them can be written to; none in due time."""
    polling = select.poll()  # `select.select` takes no number above 1023, and that of the control socket may be any
    for descriptor in reading:
        polling.register(descriptor, select.POLLIN | (select.POLLOUT if descriptor == writing else 0))
    ready = polling.poll(None if seconds is None else 1000 * seconds)
    return {descriptor for descriptor, events in ready if events != select.POLLOUT}


def _drain(descriptor: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(descriptor, 4096):
            pass


def _lead_own_group(pid: int) -> None:
    """Said by the launcher and by the child, so that the group is there whoever comes first."""
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)


def _signal_child(pid: int, number: int, *, group: bool) -> bool:
    """False if that is not allowed: it may run as another user by now."""
    if group:
        _signal_group(pid, number)
    try:
        os.kill(pid, number)  # not reaped yet, so the number is still its own
    except PermissionError:
        return False
    return True


def _signal_group(leader: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody may be left in it
        os.killpg(leader, number)
