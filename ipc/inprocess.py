"""Links between two parties in one process and on one loop: for tests, and for domains that are only simulated.

The same guarantees and bounds as between processes: frames are encoded and decoded, arrive in a later turn of the loop,
and a receiver that pauses makes its sender congested.
"""

from __future__ import annotations

from collections import deque

from domains.ipc.frames import byte_view
from domains.ipc.link import Buffer, Codec, Link, LinkState

__all__ = ["InProcessLink", "connect_in_process"]


class InProcessLink(Link):
    """One end."""

    def __init__(self, codec: Codec, name: str) -> None:
        super().__init__(codec, name)
        self._peer: InProcessLink | None = None
        self._incoming: deque[tuple[bytes, list[memoryview]]] = deque()
        self._is_scheduled = False
        self.is_reading = True

    def pause_reading(self) -> None:
        """Let what comes wait, as a process does that is busy."""
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True
        self._schedule()

    def _open(self) -> None:
        self._schedule()

    def _write(self, envelope: bytes, buffers: list[Buffer]) -> None:
        peer = self._peer
        if peer is None:
            return
        # The sender may change its buffers as soon as they are sent, as it may between processes.
        copies = [memoryview(bytes(byte_view(buffer))) for buffer in buffers]
        peer._incoming.append((envelope, copies))
        self.pending_bytes += _size(envelope, copies)
        peer._schedule()

    def _descriptors(self) -> list[int]:
        return []

    def _turn(self) -> None:
        self._deliver()

    def _schedule(self) -> None:
        if self._is_scheduled or not self.is_reading or self.state in (LinkState.NEW, LinkState.GONE):
            return
        if self._incoming or self._peer is None:
            self._is_scheduled = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._is_scheduled = False
        while self._incoming and self.is_reading and self.state is not LinkState.GONE:
            envelope, buffers = self._incoming.popleft()
            peer = self._peer
            if peer is not None:
                peer.pending_bytes -= _size(envelope, buffers)
                peer._written()
            self._received(envelope, buffers)
        if self._peer is None and not self._incoming and self.state is not LinkState.GONE:
            self._peer_gone(False)

    def _release(self) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            peer._peer = None
            peer.pending_bytes = 0
            if peer.state not in (LinkState.NEW, LinkState.GONE):
                peer._schedule()
        self._incoming.clear()


def _size(envelope: bytes, buffers: list[memoryview]) -> int:
    return len(envelope) + sum(buffer.nbytes for buffer in buffers) + 1


def connect_in_process(
    codec: Codec, first: str = "first", second: str = "second"
) -> tuple[InProcessLink, InProcessLink]:
    """Both ends of a new link; each is named after the party at its other end."""
    one, other = InProcessLink(codec, second), InProcessLink(codec, first)
    one._peer, other._peer = other, one
    return one, other
