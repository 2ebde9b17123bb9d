"""Links over a connected pair of Unix sockets, inherited and without a name: nobody else can connect.

End-of-file is the news of the peer's death. Frames go out by scatter-gather, so that large buffers are not copied;
reading drains the socket, within a bound that keeps other fibers alive.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections import deque
from typing import Any

from domains.ipc.frames import FrameCorrupt, FrameReader, byte_view, frame_header
from domains.ipc.link import Buffer, Codec, Link, LinkState

__all__ = ["SocketPairLink", "open_pair"]

_SOCKET_BUFFER_BYTES = 1 << 20
_READS_PER_TURN = 16
_MOST_PIECES = 512
"""How many pieces one sendmsg may take: IOV_MAX is 1024 on Linux and macOS."""

_SMALL_BYTES = 1 << 12
"""Buffers of no more than this together are copied to go out in one piece, which costs less."""


def open_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected stream sockets, the ends of one link."""
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in first, second:
        for option in socket.SO_SNDBUF, socket.SO_RCVBUF:
            with contextlib.suppress(OSError):  # beyond the system's limit: what it has will do
                end.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
    return first, second


_GONE = LinkState.GONE  # to look up an enum's member takes long


class SocketPairLink(Link):
    """One end; owns its socket."""

    def __init__(self, codec: Codec, connection: socket.socket, name: str) -> None:
        super().__init__(codec, name)
        connection.setblocking(False)
        self._socket = connection
        self._reader = FrameReader()
        self._outgoing: deque[memoryview[Any]] = deque()
        self._is_open = False
        self._is_writing = False
        self._recv_into = connection.recv_into

    def _open(self) -> None:
        self._is_open = True
        self._loop.add_reader(self._socket.fileno(), self._read)

    def _descriptors(self) -> list[int]:
        return [self._socket.fileno()]

    def _turn(self) -> None:
        self._read()
        if self._is_writing and self.state is not LinkState.GONE:
            self._write_more()

    def _read(self) -> None:
        reader = self._reader
        for _ in range(_READS_PER_TURN):
            try:
                count = reader.receive(self._recv_into)
            except (BlockingIOError, InterruptedError):
                count = -1
            except OSError as error:
                self._failed(error)
                return
            try:  # whatever came: where a receiver raised, the frames behind that one are still here
                while (frame := reader.take()) is not None:
                    self._received(*frame)
                    if self.state is _GONE:
                        return
            except FrameCorrupt as error:
                self._broken(f"what {self.name} sent cannot be read: {error}", error)
                return
            if not count:
                self._peer_gone(self._reader.is_inside)
                return
            if count < 0 or not reader.has_more:
                return

    def _write(self, envelope: bytes, buffers: list[Buffer]) -> None:
        views = [byte_view(buffer) for buffer in buffers] if buffers else []
        header = frame_header(envelope, views)
        outgoing = self._outgoing
        if not outgoing and (not views or sum(view.nbytes for view in views) <= _SMALL_BYTES):
            data = b"".join((header, envelope, *views)) if views else header + envelope
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except ConnectionError:
                return  # the peer is gone, and the reader is about to say so
            except OSError as error:
                self._failed(error)
                return
            if sent == len(data):
                return
            outgoing.append(memoryview(data)[sent:])
            self.pending_bytes += len(data) - sent
        else:
            for piece in (memoryview(header), memoryview(envelope), *views):
                if len(piece):
                    outgoing.append(piece)
                    self.pending_bytes += len(piece)
            if self._is_writing:
                return
            self._write_outgoing()
        if outgoing and not self._is_writing and self.state is not LinkState.GONE:
            self._is_writing = True
            self._loop.add_writer(self._socket.fileno(), self._write_more)

    def _write_more(self) -> None:
        self._write_outgoing()
        if not self._outgoing and self.state is not LinkState.GONE:
            self._is_writing = False
            self._loop.remove_writer(self._socket.fileno())
        self._written()

    def _write_outgoing(self) -> None:
        outgoing = self._outgoing
        while outgoing:
            try:
                sent = self._socket.sendmsg(list(itertools.islice(outgoing, _MOST_PIECES)))
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                # The peer is gone. What it said before is still read, and its end-of-file after that.
                outgoing.clear()
                self.pending_bytes = 0
                return
            except OSError as error:
                self._failed(error)
                return
            self.pending_bytes -= sent
            while sent:
                piece = outgoing[0]
                if sent < len(piece):
                    outgoing[0] = piece[sent:]
                    break
                sent -= len(piece)
                outgoing.popleft()

    def _release(self) -> None:
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._socket.fileno())
            if self._is_writing:
                self._loop.remove_writer(self._socket.fileno())
        self._outgoing.clear()
        self._socket.close()
