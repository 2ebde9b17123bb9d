"""The segments that a process makes: kept warm, within a limit, and given up when nothing in them is used.

Fresh memory costs several times what copying into it costs, so what is committed and free is taken first. Not
thread-safe: the arena that it belongs to has the lock.
"""

from __future__ import annotations

import time

from domains.ipc.parts import AddressMap, Own
from domains.ipc.segments import Segment

__all__ = ["SegmentPool"]

SEGMENT_BYTES = 1 << 26
"""The address space of a segment, at least; memory is committed as it is needed."""

_COMMIT_BYTES = 1 << 20


class SegmentPool:
    """At most `limit_bytes` are committed at a time; `addresses` knows each segment that is in `segments`."""

    def __init__(self, limit_bytes: int, addresses: AddressMap, *, named: bool) -> None:
        self.limit_bytes = limit_bytes
        self.segments: list[Own] = []
        self._addresses = addresses
        self._named = named

    @property
    def committed_bytes(self) -> int:
        return sum(own.blocks.committed_bytes for own in self.segments)

    @property
    def used_bytes(self) -> int:
        return sum(own.blocks.used_bytes for own in self.segments)

    def take(self, size: int) -> tuple[Own, int] | None:
        """A free range of whole pages; None if there is no room."""
        for own in self.segments:
            if not own.retired and (start := own.blocks.take(size)) is not None:
                return own, start
        return self._take_fresh(size)

    def _take_fresh(self, size: int) -> tuple[Own, int] | None:
        own, growth = self._smallest_growth(size)
        if growth > self.limit_bytes - self.committed_bytes:
            self.drop_idle(0.0)
            own, growth = self._smallest_growth(size)
        rest = self.limit_bytes - self.committed_bytes
        if growth > rest:
            return None
        try:
            if own is None:
                own = Own(Segment.create(max(SEGMENT_BYTES, size), named=self._named))
                self._addresses.add(own)
                self.segments.append(own)
            blocks = own.blocks
            growth = min(max(growth, _COMMIT_BYTES), rest, blocks.size_bytes - blocks.committed_bytes)
            own.memory.commit(blocks.committed_bytes, growth)
        except OSError:
            return None
        blocks.grow(growth)
        start = blocks.take(size)
        assert start is not None
        return own, start

    def _smallest_growth(self, size: int) -> tuple[Own | None, int]:
        """The segment that has to grow least to have room, or None for a new one."""
        best: tuple[Own | None, int] = (None, size)
        for own in self.segments:
            blocks = own.blocks
            growth = blocks.growth(size)
            fits = not own.retired and blocks.committed_bytes + growth <= blocks.size_bytes
            if fits and (best[0] is None or growth < best[1]):
                best = own, growth
        return best

    def drop_idle(self, seconds: float) -> None:
        """Give up the segments that were idle for so long."""
        now = time.monotonic()
        for own in list(self.segments):
            if own.is_idle and now - own.idle_since >= seconds:
                self.drop(own)

    def drop(self, own: Own) -> None:
        """Give up an idle segment: its memory is free at once, unless somebody unknown may read it."""
        assert own.is_idle
        self._addresses.remove(own)
        self.segments.remove(own)
        if own.is_read_by_others:
            own.memory.close()
        else:
            own.memory.discard()
