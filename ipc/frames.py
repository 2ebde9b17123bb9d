"""Frames: how a batch of messages lies in a byte stream, and how to read one that nobody trusts.

    magic 2 bytes | version 1 | check 1 | envelope length 4 | number of buffers 4 | crc32 of envelope and lengths 4
    lengths of the buffers, 8 bytes each | envelope | buffers

A frame is checked before anything in it is used; anything wrong raises FrameCorrupt, and the stream cannot be read any
further. Every length is held against a limit, and memory is taken as what is announced arrives. The check is one of
the header itself, so that nobody waits for the end of a frame whose length is wrong. The checksum covers what is
decoded; the buffers are opaque, and large. Reading copies a frame's parts once, out of the receive buffer; large
buffers are received where they will stay.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Sequence
from pickle import PickleBuffer
from typing import Any
from zlib import crc32

from domains.errors import ConnectionLost

__all__ = ["MOST_BUFFERS", "Frame", "FrameCorrupt", "FrameReader", "byte_view", "frame_header", "read_frame"]

_HEADER = struct.Struct("!2sBBIII")
_HEADER_BYTES = _HEADER.size
_unpack_header = _HEADER.unpack_from
_MAGIC = b"dm"
_VERSION = 2
_BAD_CHECKSUM = "the checksum of a frame does not fit"

MOST_ENVELOPE_BYTES = 1 << 30
MOST_BUFFERS = 1 << 20
MOST_BUFFER_BYTES = 1 << 40
_LARGE_BYTES = 1 << 16
"""From here on a buffer is received into memory of its own."""

_KEPT_BYTES = 1 << 20
"""What is received into is kept up to this size; what a larger envelope needed is given back once none needs it."""

_UNNEEDED_TIMES = 8
"""So often in a row a larger one is not needed before it is given back."""

_HUGE_BYTES = 1 << 24
"""From here on that memory is mapped, which takes no more of the system than what has been written into it.

Beyond, what an envelope needed is given back at once.
"""


class FrameCorrupt(ConnectionLost):
    """Bytes that are not a frame of ours."""


Frame = tuple[bytes, list[memoryview]]
"""An envelope, and the buffers that came with it."""


def frame_header(envelope: bytes, buffers: Sequence[memoryview]) -> bytes:
    """What goes before the envelope; after it go the buffers as they are."""
    if len(envelope) > MOST_ENVELOPE_BYTES:
        raise ValueError(f"an envelope of {len(envelope)} bytes is too large: {MOST_ENVELOPE_BYTES} at most")
    size = len(envelope)
    if not buffers:
        checksum = crc32(envelope)
        return _HEADER.pack(_MAGIC, _VERSION, _check(size, 0, checksum), size, 0, checksum)
    if len(buffers) > MOST_BUFFERS:
        raise ValueError(f"a frame of {len(buffers)} buffers is too large: {MOST_BUFFERS} at most")
    lengths = struct.pack(f"!{len(buffers)}Q", *[buffer.nbytes for buffer in buffers])
    checksum = crc32(envelope, crc32(lengths))
    count = len(buffers)
    return _HEADER.pack(_MAGIC, _VERSION, _check(size, count, checksum), size, count, checksum) + lengths


def _check(envelope_bytes: int, count: int, checksum: int) -> int:
    """Odd factors without one in common with 255: no bit of a header that is wrong goes unnoticed."""
    return (7 * envelope_bytes + 13 * count + checksum) % 255


def _read_header(data: bytearray | memoryview[int], start: int) -> tuple[int, int, int]:
    """The bytes of the envelope, the number of buffers and the checksum. Raises FrameCorrupt."""
    magic, version, check, envelope_bytes, count, checksum = _unpack_header(data, start)
    if magic != _MAGIC or version != _VERSION:
        raise FrameCorrupt("what came is not a frame of this version of domains")
    if _check(envelope_bytes, count, checksum) != check:
        raise FrameCorrupt("the header of a frame contradicts itself")
    return envelope_bytes, count, checksum


def byte_view(buffer: Any) -> memoryview[int]:
    """The bytes of anything with a contiguous buffer, without a copy."""
    view = buffer.raw() if isinstance(buffer, PickleBuffer) else memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def read_frame(data: memoryview[int]) -> Frame:
    """A frame that came whole, and nothing with it. Its buffers are copies: in memory that suits items of any size.

    Raises FrameCorrupt for anything else.
    """
    if len(data) < _HEADER_BYTES:
        raise FrameCorrupt(f"{len(data)} bytes are less than a header")
    envelope_bytes, count, checksum = _read_header(data, 0)
    start = _HEADER_BYTES + 8 * count
    end = start + envelope_bytes
    if len(data) < end:
        raise FrameCorrupt("a frame is shorter than its header says")
    envelope = bytes(data[start:end])
    lengths = data[_HEADER_BYTES:start]
    if crc32(envelope, crc32(lengths) if count else 0) != checksum:
        raise FrameCorrupt(_BAD_CHECKSUM)
    sizes = struct.unpack(f"!{count}Q", lengths)
    if sum(sizes) != len(data) - end:
        raise FrameCorrupt("the buffers of a frame are not what its header says")
    buffers = []
    for size in sizes:
        buffers.append(memoryview(bytes(data[end : end + size])))
        end += size
    return envelope, buffers


class FrameReader:
    """Takes a byte stream in pieces of any size, and gives its frames.

    `receive` has them put where they belong; or `feed` copies. States: Head (the header and all that is small), Large
    (the rest of a buffer that has memory of its own).
    """

    def __init__(self, piece_bytes: int = 1 << 18) -> None:
        self._piece = bytearray(piece_bytes)
        self._view = memoryview(self._piece)
        self._start = 0
        self._end = 0
        self._unneeded_times = 0
        self.has_more = False
        """Whether all the room there was has been filled, so that more may be on its way."""
        # The frame whose head was read, while its buffers come in.
        self._envelope: bytes | None = None
        self._lengths: list[int] = []
        self._buffers: list[memoryview] = []
        self._large: memoryview | None = None  # what is still to be filled of the current large buffer

    @property
    def is_inside(self) -> bool:
        """Whether a frame has begun to come, and not ended: the end of the stream here is a loss."""
        return self._end > self._start or self._envelope is not None

    def receive(self, receive_into: Callable[[memoryview], int]) -> int:
        """Have more of the stream put where it belongs; returns how many bytes came. `has_more` tells of others."""
        large = self._large
        if large is None:
            if self._end == len(self._piece):
                self._make_room(1)
            space = self._view[self._end :]
            count = receive_into(space)
            self._end += count
        else:
            space = large
            count = receive_into(large)
            self._large = large[count:]
        self.has_more = count == len(space)
        return count

    def feed(self, data: bytes | memoryview) -> None:
        """Copy bytes in; as many frames may be read from them as there are."""
        self._make_room(len(data))
        self._view[self._end : self._end + len(data)] = data
        self._end += len(data)

    def take(self) -> Frame | None:
        """The next frame, if all of it is here. Raises FrameCorrupt if what is here is none."""
        try:
            if self._envelope is None:
                start = self._start
                available = self._end - start
                if available < _HEADER_BYTES:
                    if not available:
                        if len(self._piece) > _KEPT_BYTES:
                            self._give_back_room()
                        self._start = self._end = 0
                    return None
                envelope_bytes, count, checksum = _read_header(self._piece, start)
                if envelope_bytes > MOST_ENVELOPE_BYTES or count > MOST_BUFFERS:
                    raise FrameCorrupt(f"a frame of {envelope_bytes} bytes and {count} buffers is beyond all limits")
                total = _HEADER_BYTES + 8 * count + envelope_bytes
                if available < total:
                    self._make_room(min(total - available, len(self._piece)))  # twice as much, until it is enough
                    return None
                envelope = bytes(self._view[start + total - envelope_bytes : start + total])
                self._start = start + total
                if not count:
                    if crc32(envelope) != checksum:
                        raise FrameCorrupt(_BAD_CHECKSUM)
                    return envelope, []
                lengths = self._view[start + _HEADER_BYTES : start + total - envelope_bytes]
                if crc32(envelope, crc32(lengths)) != checksum:
                    raise FrameCorrupt(_BAD_CHECKSUM)
                self._lengths = list(struct.unpack(f"!{count}Q", lengths))
                if max(self._lengths) > MOST_BUFFER_BYTES:
                    raise FrameCorrupt(f"a buffer of {max(self._lengths)} bytes is beyond all limits")
                self._lengths.reverse()
                self._envelope = envelope
            if not self._read_buffers():
                return None
            frame = self._envelope, self._buffers
            self._envelope = None
            self._buffers = []
            return frame
        except (MemoryError, OSError) as error:
            raise FrameCorrupt("there is no memory for a frame as large as the one announced") from error

    def _read_buffers(self) -> bool:
        if self._large is not None:
            if len(self._large):
                return False
            self._large = None
        lengths = self._lengths
        while lengths:
            length = lengths[-1]
            available = self._end - self._start
            if available >= length:
                self._buffers.append(memoryview(bytes(self._view[self._start : self._start + length])))
                self._start += length
                lengths.pop()
            elif length >= _LARGE_BYTES:
                memory = memoryview(mmap.mmap(-1, length) if length >= _HUGE_BYTES else bytearray(length))
                memory[:available] = self._view[self._start : self._end]
                if len(self._piece) > _KEPT_BYTES:
                    self._give_back_room()
                self._start = self._end = 0
                self._buffers.append(memory.toreadonly())
                self._large = memory[available:]
                lengths.pop()
                return False
            else:
                self._make_room(length - available)
                return False
        return True

    def _give_back_room(self) -> None:
        """All was read, and what is received into is large: see whether that has been of use."""
        if not self._end:
            return
        self._unneeded_times = 0 if self._end > _KEPT_BYTES else self._unneeded_times + 1
        if self._unneeded_times == _UNNEEDED_TIMES or len(self._piece) > _HUGE_BYTES:
            self._piece = bytearray(_KEPT_BYTES)
            self._view = memoryview(self._piece)
            self._unneeded_times = 0

    def _make_room(self, count: int) -> None:
        """See that so many more bytes fit behind what has been received."""
        if len(self._piece) - self._end >= count:
            return
        available = self._end - self._start
        if available + count > len(self._piece):
            piece = bytearray(max(available + count, 2 * len(self._piece)))
            piece[:available] = self._view[self._start : self._end]
            self._piece = piece
            self._view = memoryview(piece)
        else:
            self._view[:available] = bytes(self._view[self._start : self._end])
        self._start = 0
        self._end = available
