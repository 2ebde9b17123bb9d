"""Domains as processes of this machine, forked by a launcher that is started once, when first needed.

The parent holds one socket to the launcher. If the launcher dies, its domains die with it: their endings are told
like any other, and the next launch starts a new launcher. Closing ends the launcher and waits for it, so that
nothing is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Mapping

from domains.errors import DomainUnavailable
from domains.ipc.link import Codec
from domains.launcher.control import (
    Birth,
    ControlMessage,
    ControlSocket,
    Ended,
    Launch,
    NotStarted,
    Remove,
    Signal,
    Started,
    as_bytes,
)
from domains.launcher.links import LinkKind, ZeroMQKind
from domains.launcher.provider import DomainProcess, Ending, Provider
from domains.launcher.warm import LauncherProcess, environment, import_path, working_directory
from domains.scheduler.cancel import move_on_after, protect
from domains.scheduler.promise import Promise

_CLOSING_SECONDS = 5.0

_ABANDONED_SECONDS = 1.0
"""How long a launcher may take to end with its domains when nobody can wait longer: they unwind, or it kills them."""


class LocalProcess(DomainProcess):
    """A domain forked by the launcher."""

    def __init__(self, launcher: _LauncherConnection, domain: int) -> None:
        self.pid = None
        self._launcher = launcher
        self._domain = domain
        self._ending: Ending | None = None
        self._callbacks: list[Callable[[Ending], None]] = []

    def when_ended(self, callback: Callable[[Ending], None]) -> None:
        if self._ending is not None:
            callback(self._ending)
        else:
            self._callbacks.append(callback)

    def send_signal(self, number: int, *, group: bool = False) -> None:
        if self._ending is None:
            self._launcher.send(Signal(self._domain, number, group))

    def kill(self) -> None:
        super().kill()
        if self._ending is None:
            self._launcher.expect_end(self._domain)

    def ended(self, ending: Ending) -> None:
        """Called once by the connection to the launcher."""
        assert self._ending is None
        self._ending = ending
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(ending)


class _LauncherConnection:
    """One launcher process, from its start to its end, and the domains that it has forked."""

    def __init__(self, launcher: LauncherProcess, when_lost: Callable[[], object]) -> None:
        self.process = launcher.process
        self.environment = launcher.environment
        self._when_lost = when_lost
        self._control = ControlSocket(launcher.take())
        self._loop = asyncio.get_running_loop()
        self._processes: dict[int, LocalProcess] = {}
        self._loop.add_reader(self._control.fileno(), self._read)
        self._writing = False
        self.gone = False
        self.ended, self._end = Promise[None].create("the end of the launcher")

    def launch(self, birth: Birth, descriptors: list[int]) -> LocalProcess:
        self._control.send(Launch(birth), descriptors)
        process = self._processes[birth.domain] = LocalProcess(self, birth.domain)
        self._write()
        return process

    def send(self, message: ControlMessage) -> None:
        if not self.gone:
            self._control.send(message)
            self._write()

    def expect_end(self, domain: int) -> None:
        """A domain is to be killed: a launcher that was stopped, and cannot do so nor tell, is ended in due time."""

        def look() -> None:
            if domain in self._processes:
                with contextlib.suppress(ChildProcessError):
                    if os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None:
                        self.process.kill()

        self._loop.call_later(_CLOSING_SECONDS, look)

    def _write(self) -> None:
        try:
            done = self._control.write()
        except ConnectionError:
            return  # it is gone; the reader is about to say so
        except OSError as error:
            refused = self._control.take_back()
            if isinstance(refused, Launch):
                why = f"the launcher process cannot be told of it: {error}"
                self._hear(NotStarted(refused.birth.domain, why))
                self._write()
            return
        if done and self._writing:
            self._loop.remove_writer(self._control.fileno())
        elif not done and not self._writing:
            self._loop.add_writer(self._control.fileno(), self._write)
        self._writing = not done

    def _read(self) -> None:
        try:
            for message in self._control.read():
                self._hear(message)
        except EOFError:
            self._lost()
        except BaseException:
            self._loop.call_soon(self._read)  # what else has come is heard all the same
            raise

    def _hear(self, message: ControlMessage) -> None:
        if isinstance(message, Started):
            self._processes[message.domain].pid = message.pid
        elif isinstance(message, NotStarted):
            self._processes.pop(message.domain).ended(Ending(None, None, why=message.why))
        elif isinstance(message, Ended):
            status = message.status
            ending = Ending(status if status >= 0 else None, -status if status < 0 else None, message.crash or None)
            self._processes.pop(message.domain).ended(ending)

    def _lost(self) -> None:
        """The launcher is gone: whether it was asked to go or not, no domain of its lives on."""
        processes = self._let_go()
        self._when_lost()
        why = f"its launcher process {self.process.pid} ended with status {self.process.returncode}"
        with contextlib.ExitStack() as steps:  # all are taken, also if one raises: nobody waits for ever
            steps.callback(self._end.resolve, None)
            for process in reversed(processes):
                steps.callback(process.ended, Ending(None, None, why=why, launcher=self.process.pid))

    def _let_go(self) -> list[LocalProcess]:
        """Release what belongs to a launcher that ends, and return the domains that end with it."""
        self.gone = True
        self._loop.remove_reader(self._control.fileno())
        if self._writing:
            self._loop.remove_writer(self._control.fileno())
        self._control.close()
        self.process.wait()  # its socket closed as it ended
        processes, self._processes = list(self._processes.values()), {}
        if self.process.returncode != 0:  # else it has reaped them, and their numbers may be somebody else's
            for process in processes:
                if process.pid is not None:
                    # Linux does so by their parent-death signal, which one that becomes another user loses.
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(process.pid, 9)
        return processes

    def hang_up(self) -> None:
        """Say that nothing more comes: the launcher ends its domains and itself, and `ended` is resolved."""
        self._control.hang_up()

    def abandon(self) -> None:
        """End the launcher, in its own time while that is short, and wait for it without the loop, which is closed."""
        self.hang_up()
        deadline = time.monotonic() + _ABANDONED_SECONDS
        ended = select.poll()
        ended.register(self._control.fileno(), select.POLLIN)
        try:
            while (left := deadline - time.monotonic()) > 0 and ended.poll(left * 1000):
                for _ in self._control.read():
                    pass  # how domains ended is no news to anybody
        except EOFError:
            pass
        finally:
            self.process.kill()  # it may have been stopped; its domains die with it
            self._let_go()


def _changes(before: dict[bytes, bytes], now: dict[bytes, bytes]) -> list[tuple[bytes, bytes | None]]:
    if now == before:
        return []
    return [(name, now.get(name)) for name in now.keys() | before.keys() if now.get(name) != before.get(name)]


class LocalProvider(Provider):
    """Starts domains on this machine over the given kind of link, by a launcher that runs already or by a new one."""

    def __init__(self, kind: LinkKind, launcher: LauncherProcess | None = None) -> None:
        self._kind = kind
        self._launcher = launcher
        self._meetings = kind if isinstance(kind, ZeroMQKind) else ZeroMQKind()
        self._remains: list[str] = []  # what the launcher is to remove
        self._connection: _LauncherConnection | None = None

    def launch(self, domain: int, name: str, codec: Codec, descriptors: Mapping[str, int]) -> DomainProcess:
        connection = self._connect()
        offer = self._kind.offer(codec, name)
        try:
            inherited = {**descriptors, **offer.descriptors}
            birth = Birth(
                domain=domain,
                name=name,
                parent_pid=os.getpid(),
                link=self._kind.name,
                description=offer.description,
                descriptors=list(inherited),
                sys_path=list(map(as_bytes, import_path())),
                argv=[as_bytes(str(argument)) for argument in getattr(sys, "argv", None) or [""]],
                directory=as_bytes(working_directory()),
                environment=_changes(connection.environment, environment()),
            )
            process = connection.launch(birth, list(inherited.values()))
        except BaseException:
            offer.link.abort(None)
            raise
        finally:
            offer.release()
        process.link = offer.link
        return process

    def _connect(self) -> _LauncherConnection:
        if self._connection is None or self._connection.gone:
            launcher, self._launcher = self._launcher, None
            try:
                self._connection = _LauncherConnection(launcher or LauncherProcess(), self._launcher_gone)
            except OSError as error:
                raise DomainUnavailable(f"the launcher process could not be started: {error}") from error
        self._have_removed(self._connection, self._kind.remains())
        return self._connection

    def _have_removed(self, connection: _LauncherConnection, paths: list[str]) -> None:
        if paths and paths != self._remains:
            self._remains = paths
            connection.send(Remove(paths))

    def meeting_place(self) -> str | None:
        self._have_removed(self._connect(), self._meetings.remains())
        return self._meetings.new_address()

    def _launcher_gone(self) -> None:
        """Nobody would remove what is here any more if this process died; and its domains do not live on."""
        self._kind.clear()
        self._meetings.clear()
        self._remains = []

    async def close(self) -> None:
        connection = self._connection
        if connection is not None and not connection.gone:
            connection.hang_up()
            with protect():
                with move_on_after(_CLOSING_SECONDS) as overdue:
                    await connection.ended
                if overdue.cancelled:  # stopped by a debugger or a SIGSTOP; its domains die with it
                    connection.process.kill()
                    await connection.ended
        self._close_kinds()

    def abandon(self) -> None:
        try:
            if self._connection is not None and not self._connection.gone:
                self._connection.abandon()
        finally:
            self._close_kinds()

    def _close_kinds(self) -> None:
        self._kind.close()
        self._meetings.close()
