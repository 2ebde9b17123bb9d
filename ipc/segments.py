"""Pieces of memory that several processes map, and that vanish with the last of them.

On Linux a segment is a memfd: memory without a name, so nothing can be left behind, whoever is killed and at whatever
moment. Another process opens it as `/proc/<pid>/fd/<n>`, which the kernel allows to the same user while the one that
names it lives; what is mapped stays, whoever dies. `multiprocessing.shared_memory` cannot promise that there: it
has a name, from its creation until somebody unlinks it, in a file system that containers keep at 64 MB. Where there
is no memfd (macOS) it is what we use: names are then unlinked by their maker, or by multiprocessing's resource tracker,
a process that outlives a killed maker.

Memory is committed before it is used, so that a full tmpfs is an OSError here and never a SIGBUS later.
A location is what one process tells another: where to find a segment, and how to know that it is the right one.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["LOCATION_BYTES", "Segment", "address_of", "has_memfd", "location_number", "random_number"]

_LOCATION = struct.Struct("=QQIiQ32s")
_NUMBER = struct.Struct("=Q")
LOCATION_BYTES = _LOCATION.size
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, since Linux 5.14

has_memfd = hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")


class Segment:
    """One mapping of a segment in this process: readable and writable, and open as long as it may be passed on.

    `number` identifies the segment everywhere; `start` is the address where it lies here.
    """

    __slots__ = ("_descriptor", "_unlink", "location", "map", "number", "size_bytes", "start")

    def __init__(
        self,
        number: int,
        size_bytes: int,
        descriptor: int,
        location: bytes,
        unlink: Callable[[], None] | None = None,
    ) -> None:
        """Owns the descriptor, also if this fails."""
        self._descriptor = descriptor
        self._unlink = unlink
        self.number = number
        self.size_bytes = size_bytes
        self.location = location
        try:
            if sys.version_info >= (3, 13):
                self.map = mmap.mmap(descriptor, size_bytes, trackfd=False)
            else:
                self.map = mmap.mmap(descriptor, size_bytes)
            self.start = address_of(self.map)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, size_bytes: int, *, named: bool = not has_memfd) -> Segment:
        """A new segment, nothing of which is committed yet. Raises OSError."""
        return _create_named(size_bytes) if named else _create_memfd(size_bytes)

    @classmethod
    def open(cls, location: bytes) -> Segment:
        """Another process's segment. Raises OSError if that process has gone, or does not let us."""
        number, size_bytes, pid, remote, inode, name = _LOCATION.unpack(location)
        if name[0]:
            unlinked = name.rstrip(b"\0").decode()
            # SharedMemory would hand every segment that it attaches to to a tracker, which would unlink it.
            from multiprocessing.shared_memory import _posixshmem as posix  # type: ignore[attr-defined]

            return cls(number, size_bytes, posix.shm_open(unlinked, os.O_RDWR, 0o600), location)
        descriptor = os.open(f"/proc/{pid}/fd/{remote}", os.O_RDWR | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if status.st_ino != inode or status.st_size != size_bytes:
                raise FileNotFoundError(f"process {pid} does not have the segment any more")
        except BaseException:
            os.close(descriptor)
            raise
        ours = _LOCATION.pack(number, size_bytes, os.getpid(), descriptor, inode, b"")
        return cls(number, size_bytes, descriptor, ours)

    def commit(self, start: int, length: int) -> None:
        """Have the system set this range aside. Raises OSError if it has not so much left."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._descriptor, start, length)
        with contextlib.suppress(OSError):  # only saves a page fault for each page
            self.map.madvise(_POPULATE_WRITE, start, length)

    def part(self, start: int, length: int) -> ctypes.Array[ctypes.c_ubyte]:
        """A range of it as an object: buffers made from that keep it alive, and it keeps the mapping alive."""
        return (ctypes.c_ubyte * length).from_buffer(self.map, start)

    @property
    def descriptor(self) -> int:
        """The file that it is, while it is open."""
        return self._descriptor

    def discard(self) -> None:
        """Give the memory back at once, even if others still map it; nobody may read or write it any more."""
        with contextlib.suppress(OSError):  # macOS cannot; there it goes with the last mapping
            os.ftruncate(self._descriptor, 0)
        self.close()

    def close(self) -> None:
        """Let go of it; the parts of it that are in use keep their memory. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if self._unlink is not None:
                self._unlink()


def location_number(location: bytes | memoryview) -> int:
    """The number of the segment that a location is of."""
    number: int = _NUMBER.unpack_from(location)[0]
    return number


def random_number() -> int:
    """63 bits that nobody can guess."""
    return int.from_bytes(os.urandom(8)) >> 1


def _create_memfd(size_bytes: int) -> Segment:
    number = random_number()
    descriptor = os.memfd_create("domains-arena", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, size_bytes)
        inode = os.fstat(descriptor).st_ino
    except BaseException:
        os.close(descriptor)
        raise
    location = _LOCATION.pack(number, size_bytes, os.getpid(), descriptor, inode, b"")
    return Segment(number, size_bytes, descriptor, location)


def _create_named(size_bytes: int) -> Segment:
    from multiprocessing import shared_memory  # slow to import, and not needed where there is memfd

    number = random_number()
    name = f"domains-{os.getpid()}-{os.urandom(4).hex()}"  # macOS takes no more than 31 characters
    made = shared_memory.SharedMemory(name, create=True, size=size_bytes)
    try:
        descriptor = os.dup(made._fd)  # type: ignore[attr-defined]
    except BaseException:
        made.unlink()
        raise
    finally:
        made.close()
    location = _LOCATION.pack(number, size_bytes, os.getpid(), -1, 0, f"/{name}".encode())
    return Segment(number, size_bytes, descriptor, location, made.unlink)


class _Buffer(ctypes.Structure):
    """Py_buffer, as the stable ABI has it."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = [ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int]
_get_buffer.restype = ctypes.c_int
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = [ctypes.POINTER(_Buffer)]
_release_buffer.restype = None


def address_of(buffer: Any) -> int:
    """Where the bytes of a contiguous buffer lie in this process."""
    held = _Buffer()
    _get_buffer(buffer, held, 0)
    address: int = held.buf or 0
    _release_buffer(held)
    return address
