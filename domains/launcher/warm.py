"""A launcher process from outside: started here, and imports while its parent does.

Light on purpose: it imports nothing that a program would have to wait for before the launcher is on its way.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from domains.launcher.lifeline import inherited

__all__ = ["LauncherProcess", "environment", "import_path", "working_directory"]

_BOOT = (
    "import gc, sys; gc.disable()\n"  # the launcher enables it; until then there is no garbage to speak of
    "fds = [int(fd) if fd else None for fd in sys.argv[1].split(',')]\n"
    "sys.path[:] = sys.argv[2:]; sys.argv[:] = ['']\n"
    "from domains.launcher.process import main\n"
    "from domains.domain_main import become_domain\n"
    "main(become_domain, *fds)\n"
)


def working_directory() -> str:
    """This process's, or the root where that has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return "/"


def environment() -> dict[bytes, bytes]:
    """This process's variables; other threads may be deleting some meanwhile."""
    return {name: value for name in os.environb if (value := os.environb.get(name)) is not None}


def import_path() -> list[str]:
    """Where this process looks for modules, for another one to look as well; without what Python does not heed."""
    return [entry or working_directory() for entry in sys.path if isinstance(entry, str)]


def _interpreter() -> str:
    """The Python that runs this program. Raises OSError if there is none but the program itself, as when frozen."""
    if not sys.executable or getattr(sys, "frozen", False):
        frozen = ", which is this program, frozen" if sys.executable else ""
        raise OSError(
            "this program has no Python interpreter to start the launcher with: "
            f"sys.executable is {sys.executable!r}{frozen}"
        )
    return sys.executable


def _this_process() -> int | None:
    """A descriptor that tells of this process's end; None where the system has none.

    End-of-file on the launcher's socket would not do: processes that were forked from this one have it as well.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(os.getpid())
    except OSError:  # an old kernel, or a sandbox that forbids it
        return None


class LauncherProcess:
    """A running launcher and the socket to it. Idle -> Taken, by the one who talks to it and sees to its end.

    Raises OSError if it cannot be started.
    """

    def __init__(self) -> None:
        interpreter = _interpreter()
        self.environment = environment()
        """What it was started with."""
        ours, theirs = socket.socketpair()
        parent = _this_process()
        descriptors = [theirs.fileno(), parent, inherited()]
        try:
            self.process = subprocess.Popen(
                [
                    interpreter,
                    *subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]
                    "-c",
                    _BOOT,
                    ",".join("" if descriptor is None else str(descriptor) for descriptor in descriptors),
                    *import_path(),
                ],
                # Not entered by its path, which may not be allowed; but Python does not start where there is none.
                cwd="/" if working_directory() == "/" else None,
                stdin=subprocess.DEVNULL,
                pass_fds=[descriptor for descriptor in descriptors if descriptor is not None],
                start_new_session=True,  # the terminal's Ctrl-C is for the parent, which tells the domains
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            if parent is not None:
                os.close(parent)
        self._socket: socket.socket | None = ours

    def take(self) -> socket.socket:
        """The socket, and with it the duty to see to the process's end."""
        taken, self._socket = self._socket, None
        assert taken is not None, "a launcher is taken once"
        return taken

    def close(self) -> None:
        """End a launcher that nobody has taken: it has no domains yet."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self.process.kill()
            self.process.wait()
