"""What travels over a link in place of a buffer that lies in an arena: where it is, and under which lease.

A descriptor is told from other buffers by its length, which none of those that go out of band has, and its beginning.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from domains.ipc.segments import LOCATION_BYTES

__all__ = ["DESCRIPTOR_BYTES", "NO_CELL", "Descriptor", "LostBuffer"]

_MAGIC = b"domains' arena 1"
_SEGMENT_AT = len(_MAGIC)
_CELLS_AT = _SEGMENT_AT + LOCATION_BYTES
_LEASE_AT = _CELLS_AT + LOCATION_BYTES
_LEASE = struct.Struct("=IIQQ??")

DESCRIPTOR_BYTES = _LEASE_AT + _LEASE.size
"""How long a descriptor is. Data that goes out of band without one is longer."""

NO_CELL = 0xFFFFFFFF
"""In place of a cell's index: this is shared memory that could not be lent, and a copy of it will not do."""

_NOWHERE = bytes(LOCATION_BYTES)


class Descriptor(NamedTuple):
    """The locations of a segment and of the lender's cells, the lease's cell, and the part: `length` bytes at `start`.

    `has_shared` says that the lender knows of memory that both sides may write, `writable` that this is some of it.
    """

    segment: bytes
    cells: bytes
    cell: int
    generation: int
    start: int
    length: int
    writable: bool
    has_shared: bool

    @classmethod
    def without_lease(cls, length: int) -> Descriptor:
        """For shared memory that could not be lent."""
        return cls(_NOWHERE, _NOWHERE, NO_CELL, 0, 0, length, True, True)

    @classmethod
    def read(cls, buffer: memoryview) -> Descriptor | None:
        """What a buffer that came over a link describes, or None for one that is data itself."""
        if buffer.nbytes != DESCRIPTOR_BYTES or not (data := bytes(buffer)).startswith(_MAGIC):
            return None
        return cls(data[_SEGMENT_AT:_CELLS_AT], data[_CELLS_AT:_LEASE_AT], *_LEASE.unpack_from(data, _LEASE_AT))

    def pack(self) -> bytes:
        return b"".join((_MAGIC, self.segment, self.cells, _LEASE.pack(*self[2:])))


class LostBuffer(bytes):
    """A descriptor whose memory cannot be had; using it is an error. `why` is None if the lender is gone."""

    why: str | None

    def __new__(cls, descriptor: Descriptor, why: str | None) -> LostBuffer:
        lost = super().__new__(cls, descriptor.pack())
        lost.why = why
        return lost
