"""Where domains come from: the interface behind which local processes, a simulator or a cluster stand.

A provider starts a domain and gives its parent two things: a `Link` to it, and a `DomainProcess`, which tells once
how it ended and takes signals. The domain manager, the pool and everything above know only these.
"""

from __future__ import annotations

import signal as signals
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

from domains.ipc.link import Codec, Link


class Ending(NamedTuple):
    """How a domain's process ended: an exit status, or the number of a signal, or neither where nobody knows.

    `crash` is what the interpreter wrote as it crashed, or None. `why` tells of a domain that never started, or that
    ended because its launcher process did; that one's number is `launcher`.
    """

    exitcode: int | None
    signal: int | None
    crash: str | None = None
    why: str | None = None
    launcher: int | None = None


class DomainProcess(ABC):
    """A started domain as its parent holds it."""

    link: Link
    pid: int | None
    """None until the process is known to run."""

    @abstractmethod
    def when_ended(self, callback: Callable[[Ending], None]) -> None:
        """Call this once when the process has ended, on the loop's thread; may be registered before it started."""

    @abstractmethod
    def send_signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal, if the process has not ended yet; with `group`, to what it started as well."""

    def kill(self) -> None:
        """End the process and what it started, at once."""
        self.send_signal(signals.SIGKILL, group=True)


class Provider(ABC):
    """Starts domains. Used from the thread of the loop it was made on."""

    @abstractmethod
    def launch(self, domain: int, name: str, codec: Codec, descriptors: Mapping[str, int]) -> DomainProcess:
        """Start a domain; returns at once, and what cannot start is told by `when_ended`.

        The named file descriptors are duplicated into the domain. Raises DomainUnavailable if not even trying
        is possible.
        """

    def meeting_place(self) -> str | None:
        """An address at which two of its domains can open a link between them; None where there is none."""
        return None

    @abstractmethod
    async def close(self) -> None:
        """Release everything; domains that still live are killed."""

    @abstractmethod
    def abandon(self) -> None:
        """The same when the loop is closed, and `close` has not come to its end: nobody is told how domains ended."""
