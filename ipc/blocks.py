"""Which parts of a segment are in use: plain arithmetic, without the memory itself.

A segment is committed from its start, up to `committed_bytes`; what is committed and free is warm, and taken first,
the lowest first, so that a segment grows only when it must. Ranges are whole pages.
Invariant: free ranges lie below `committed_bytes`, in order, and no two of them touch.
"""

from __future__ import annotations

from bisect import bisect_left

__all__ = ["Blocks", "whole_pages"]

_PAGE_BYTES = 1 << 12


def whole_pages(length: int) -> int:
    """The length rounded up to pages; at least one."""
    return max(_PAGE_BYTES, (length + _PAGE_BYTES - 1) & -_PAGE_BYTES)


class Blocks:
    """The free ranges of one segment of `size_bytes`."""

    __slots__ = ("_lengths", "_starts", "committed_bytes", "free_bytes", "size_bytes")

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.committed_bytes = 0
        self.free_bytes = 0
        self._starts: list[int] = []
        self._lengths: dict[int, int] = {}

    @property
    def used_bytes(self) -> int:
        return self.committed_bytes - self.free_bytes

    def take(self, length: int) -> int | None:
        """Take a free range; None if none is long enough."""
        lengths = self._lengths
        for index, start in enumerate(self._starts):
            rest = lengths[start] - length
            if rest < 0:
                continue
            del lengths[start]
            if rest:
                self._starts[index] = start + length
                lengths[start + length] = rest
            else:
                del self._starts[index]
            self.free_bytes -= length
            return start
        return None

    def give_back(self, start: int, length: int) -> None:
        """A range that was taken is free again."""
        starts, lengths = self._starts, self._lengths
        self.free_bytes += length
        index = bisect_left(starts, start)
        assert index == len(starts) or start + length <= starts[index], "given back twice"
        if index < len(starts) and start + length == starts[index]:
            length += lengths.pop(starts.pop(index))
        if index and starts[index - 1] + lengths[starts[index - 1]] >= start:
            before = starts[index - 1]
            assert before + lengths[before] == start, "given back twice"
            lengths[before] += length
        else:
            starts.insert(index, start)
            lengths[start] = length

    def growth(self, length: int) -> int:
        """How much more must be committed for a range of this length at the end; it may not fit."""
        if self._starts:
            last = self._starts[-1]
            if last + self._lengths[last] == self.committed_bytes:
                return length - self._lengths[last]
        return length

    def grow(self, length: int) -> None:
        """So much more is committed now, and free."""
        start = self.committed_bytes
        self.committed_bytes += length
        assert self.committed_bytes <= self.size_bytes
        self.give_back(start, length)
