"""Numbered slots in pages of shared memory: a few words each, which processes keep together without talking.

The process that makes a slot gives it away and has it back; others attach to it by its descriptor, while the maker
lives. There is one page object per process and segment, and the last slot to let go of it closes it.
"""

from __future__ import annotations

import os
import struct
import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

from domains.ipc.segments import LOCATION_BYTES, Segment, location_number

__all__ = ["SlotPage", "SlotPages"]

_INDEX = struct.Struct("=I")


class SlotPage:
    """Slots that share a segment."""

    def __init__(self, segment: Segment, slots: int) -> None:
        self.segment = segment
        self.fields = memoryview(segment.map).cast("Q")
        self.free = list(range(slots - 1, -1, -1))  # only its maker gives any away
        weakref.finalize(self, segment.close).atexit = False

    def descriptor(self, index: int) -> bytes:
        """By which another process attaches to a slot."""
        return self.segment.location + _INDEX.pack(index)


P = TypeVar("P", bound=SlotPage)


class SlotPages(Generic[P]):
    """All pages of one kind that this process uses, of so many slots with so many bytes each."""

    def __init__(self, page_type: type[P], name: str, slots: int, slot_bytes: int) -> None:
        self._page_type = page_type
        self._name = name
        self._slots = slots
        self._slot_bytes = slot_bytes
        self._pages: weakref.WeakValueDictionary[int, P] = weakref.WeakValueDictionary()
        self._made: weakref.WeakSet[P] = weakref.WeakSet()
        self._newest: weakref.ref[P] | None = None
        """That of which a slot was given away last."""
        os.register_at_fork(after_in_child=self._forget)

    def __iter__(self) -> Iterator[P]:
        return iter(self._pages.values())

    def create(self) -> tuple[P, int]:
        """The page and the number of a slot that nobody has, all zero. Raises OSError where there is no more memory."""
        page = None if self._newest is None else self._newest()
        if page is None or not page.free:
            page = next((made for made in self._made if made.free), None) or self._new_page()
            self._newest = weakref.ref(page)
        index = page.free.pop()
        start = index * self._slot_bytes
        page.segment.map[start : start + self._slot_bytes] = bytes(self._slot_bytes)
        return page, index

    def attach(self, descriptor: bytes) -> tuple[P, int]:
        """A slot of another process, while that one lives. Raises OSError if it does not."""
        location = descriptor[:LOCATION_BYTES]
        (index,) = _INDEX.unpack_from(descriptor, LOCATION_BYTES)
        if index >= self._slots:
            raise OSError(f"there is no {self._name} {index}")
        page = self._pages.get(location_number(location))
        if page is None:
            page = self._page(Segment.open(location))
        return page, index

    def _new_page(self) -> P:
        segment = Segment.create(self._slots * self._slot_bytes)
        try:
            segment.commit(0, segment.size_bytes)
            page = self._page(segment)
        except BaseException:
            segment.close()
            raise
        self._made.add(page)
        return page

    def _page(self, segment: Segment) -> P:
        page = self._pages[segment.number] = self._page_type(segment, self._slots)
        return page

    def _forget(self) -> None:
        """In a forked child: the slots that its parent has made are not its own to give away."""
        self._made.clear()
        self._newest = None
