"""The end-of-file by which a whole tree of domains hears at once that it is to go.

Each launcher has a pipe that nobody writes to. Its domains inherit the end that is read, and hand it to the launchers
that they start themselves, if any; the launcher alone has the other end, and closes it when it begins to end its
domains, or as it dies. A launcher further down that sees this begins to end its own, without waiting until the domain
that it belongs to has gone: so a tree takes no longer to die than a single level.
"""

from __future__ import annotations

import os

_inherited: int | None = None


class Lifeline:
    """A launcher's pipe: Whole -> Cut."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def cut(self) -> None:
        """Let those who were handed the other end know."""
        if self._write >= 0:
            os.close(self._write)
            self._write = -1

    def hand_down(self) -> None:
        """In a forked domain, once: keep what its own launchers are to watch, and nothing else."""
        global _inherited
        os.close(self._write)
        if _inherited is not None:
            os.close(_inherited)  # what the launcher itself watches
        _inherited = self._read


def inherited() -> int | None:
    """The descriptor that this process's launchers are to watch beside their own socket, if there is one."""
    return _inherited


def inherit(descriptor: int) -> None:
    """In a launcher, as it starts: this is what its domain has been handed."""
    global _inherited
    _inherited = descriptor
