"""Links over ZeroMQ: between any two processes that were handed each other's address and keys.

Each link is a pair of PAIR sockets, one bound and one connected, secured by CURVE: the bound end lets in one client
key and no other, and nothing is decoded before that handshake. A frame is one message of one part: its header, which
bounds and checks it, then the envelope, then the buffers. ZeroMQ's own queues are kept a few frames short; what does
not fit is counted here, and makes the link congested. A link that is disconnected is gone: it never reconnects, for
nobody could tell what was lost in between. Others may connect and be refused meanwhile: only the peer's own
connection, known by the descriptor that its frames came from, or the last of all, is the link's.

An end closes its socket once the other has said that it has heard all. Where one is closed while the other's queue is
full, libzmq drops what had arrived and found no room there.

A ZeroMQ socket's descriptor is edge-triggered, and does not tell reading from writing: after every operation the
socket is asked again what it can do. Sockets belong to their loop's thread; ZeroMQ's own threads run no Python.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator

import zmq
from zmq.utils.monitor import parse_monitor_message

from domains.errors import DomainUnavailable
from domains.ipc.frames import FrameCorrupt, byte_view, frame_header, read_frame
from domains.ipc.keys import KeyPair
from domains.ipc.link import Buffer, Codec, Link, LinkState
from domains.ipc.zeromq_context import ZeroMQContext, events

__all__ = ["ZeroMQLink"]

_FRAMES_PER_TURN = 64
_LINGER_MS = 1000
"""How long the last frames of an orderly close may take, once the link has let go of them."""

_SETTLING_SECONDS = 0.05
"""After a disconnection ZeroMQ's thread may still be handing over what had come before it."""

_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


class ZeroMQLink(Link):
    """One end. `lifeline`, a socket whose other end the peer's process holds, tells of its death before all else."""

    def __init__(
        self,
        codec: Codec,
        name: str,
        context: ZeroMQContext,
        connection: zmq.Socket[bytes],
        endpoint: bytes,
        lifeline: socket.socket | None,
    ) -> None:
        super().__init__(codec, name)
        self._context = context
        self._socket = connection
        self._endpoint = endpoint
        self._lifeline = lifeline
        self._monitor: zmq.Socket[bytes] = connection.get_monitor_socket(_EVENTS)
        self._outgoing: deque[bytes] = deque()
        self._connections: set[int] = set()
        self._peer: int | None = None
        self._connected = False
        self._again: asyncio.Handle | None = None
        self._settling: asyncio.TimerHandle | None = None
        self._settles_at = 0.0  # the same for whoever keeps the loop, and with it its timers, from turning
        self._readers: list[int] = []

    @classmethod
    def bind(
        cls,
        codec: Codec,
        name: str,
        context: ZeroMQContext,
        address: str,
        server: KeyPair,
        client_public: bytes,
        lifeline: socket.socket | None = None,
    ) -> ZeroMQLink:
        """The end that waits for the client with that key. Raises DomainUnavailable if it cannot be bound."""
        endpoint = address.encode()
        with _opened(context, name, address) as bound:
            bound.curve_server = 1
            bound.curve_secretkey = server.secret
            bound.curve_publickey = server.public
            bound.zap_domain = endpoint
            bound.bind(address)
            link = cls(codec, name, context, bound, endpoint, lifeline)
            context.allow(endpoint, client_public)
            return link

    @classmethod
    def connect(
        cls,
        codec: Codec,
        name: str,
        context: ZeroMQContext,
        address: str,
        server_public: bytes,
        client: KeyPair,
        lifeline: socket.socket | None = None,
    ) -> ZeroMQLink:
        """The end that connects to a bound one, with the keys that it was handed. Raises DomainUnavailable."""
        with _opened(context, name, address) as connecting:
            connecting.curve_serverkey = server_public
            connecting.curve_publickey = client.public
            connecting.curve_secretkey = client.secret
            link = cls(codec, name, context, connecting, b"", lifeline)
            connecting.connect(address)
            return link

    def _open(self) -> None:
        self._watch(self._socket.fileno(), self._work)
        self._watch(self._monitor.fileno(), self._hear_monitor)
        if self._lifeline is not None:
            self._lifeline.setblocking(False)
            self._watch(self._lifeline.fileno(), self._lifeline_ended)
        # The descriptors tell of changes only, and some may have come before.
        self._loop.call_soon(self._hear_monitor)
        self._work_soon()

    def _descriptors(self) -> list[int]:
        return [*self._readers, self._context.gate]

    def _is_ready(self) -> bool:
        return bool(events(self._socket) & zmq.POLLIN or events(self._monitor) & zmq.POLLIN)

    def _turn(self) -> None:
        self._context.check_keys()
        lifeline = self._lifeline
        if lifeline is not None and lifeline.fileno() in self._readers and _is_readable(lifeline):
            self._lifeline_ended()
        if self._settling is not None and time.monotonic() >= self._settles_at:
            self._settling.cancel()
            self._settled()
            return
        self._work()
        self._hear_monitor()

    def _watch(self, descriptor: int, callback: Callable[[], None]) -> None:
        self._loop.add_reader(descriptor, callback)
        self._readers.append(descriptor)

    # Frames

    def _write(self, envelope: bytes, buffers: list[Buffer]) -> None:
        views = [byte_view(buffer) for buffer in buffers] if buffers else []
        # In one piece: libzmq ends the process where a link ends while parts of a message are under way (its bug 3442).
        frame = b"".join((frame_header(envelope, views), envelope, *views))
        if not self._outgoing:
            self._work_soon()  # also where there is no room: trying may have taken note of what has come
            if self._send(frame):
                return
        self._outgoing.append(frame)
        self.pending_bytes += len(frame)

    def _left(self) -> None:
        """Say that all was heard, and wait for the same word."""
        self.state = LinkState.PARTING
        self._write(b"", [])

    def _send(self, frame: bytes) -> bool:
        try:
            self._socket.send(frame, zmq.DONTWAIT, copy=True)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            self._failed(error)
        return True

    def _work_soon(self) -> None:
        if self._again is None and self.state is not LinkState.GONE:
            self._again = self._loop.call_soon(self._work)

    def _work(self) -> None:
        """Read and write what can be; comes again by itself until neither can."""
        self._again = None
        for _ in range(_FRAMES_PER_TURN):
            if self.state is LinkState.GONE:
                return
            possible = events(self._socket)
            if possible & zmq.POLLIN:
                self._receive()
            elif possible & zmq.POLLOUT and self._outgoing:
                if self._send(self._outgoing[0]) and self._outgoing:
                    self.pending_bytes -= len(self._outgoing.popleft())
                    self._written()
            else:
                return
        self._work_soon()

    def _receive(self) -> None:
        try:
            message = self._socket.recv(zmq.DONTWAIT, copy=False)
            if self._peer is None:
                self._recognize(int(message.get("__fd")))
            if message.more:
                raise FrameCorrupt("a frame came in parts")
            frame = read_frame(message.buffer)
        except zmq.Again:
            return
        except zmq.ZMQError as error:
            self._failed(error)
        except FrameCorrupt as error:
            self._broken(f"what {self.name} sent cannot be read: {error}", error)
        except MemoryError as error:
            self._broken(f"there is no memory for what {self.name} sent", error)
        else:
            self._received(*frame)

    # The peer's end

    def _hear_monitor(self) -> None:
        while self.state is not LinkState.GONE and events(self._monitor) & zmq.POLLIN:
            message = parse_monitor_message(self._monitor.recv_multipart())
            event, descriptor = message["event"], message["value"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected = True
            elif event == zmq.EVENT_DISCONNECTED:
                self._connections.discard(descriptor)
                if self._connected and (descriptor == self._peer or not self._connections):
                    self._settle(_SETTLING_SECONDS)
            else:
                self._connections.add(descriptor)
        self._work_soon()

    def _recognize(self, descriptor: int) -> None:
        """The peer speaks through this descriptor; perhaps it has gone already."""
        self._hear_monitor()
        self._peer = descriptor
        if descriptor not in self._connections:
            self._settle(_SETTLING_SECONDS)

    def expect_end(self) -> None:
        """The peer's process has ended, somebody says: hear what it has said, then its end."""
        self._hear_monitor()
        # The disconnection follows, behind what was sent, if there ever was a connection.
        self._settle(10 * _SETTLING_SECONDS if self._connected else _SETTLING_SECONDS)

    def _lifeline_ended(self) -> None:
        assert self._lifeline is not None
        with contextlib.suppress(OSError):
            if self._lifeline.recv(1):
                return
        self._loop.remove_reader(self._lifeline.fileno())
        self._readers.remove(self._lifeline.fileno())
        self.expect_end()

    def _settle(self, seconds: float) -> None:
        if self.state is LinkState.GONE:
            return
        deadline = self._loop.time() + seconds
        if self._settling is not None:
            if self._settling.when() <= deadline:
                return
            self._settling.cancel()
        self._settling = self._loop.call_at(deadline, self._settled)
        self._settles_at = time.monotonic() + seconds

    def _settled(self) -> None:
        """All that the peer said has come: hear it, then its end."""
        while self.state is not LinkState.GONE and events(self._socket) & zmq.POLLIN:
            self._receive()
        self._settling = None
        if self.state is not LinkState.GONE:
            self._connections.clear()  # though the monitor may not have told so yet
            self._peer_gone(False)

    def _release(self) -> None:
        for descriptor in self._readers:
            self._loop.remove_reader(descriptor)
        for pending in self._again, self._settling:
            if pending is not None:
                pending.cancel()
        if self._endpoint:
            self._context.disallow(self._endpoint)
            if self._endpoint.startswith(b"ipc://"):
                with contextlib.suppress(OSError):  # ZeroMQ leaves the name behind
                    os.unlink(self._endpoint.removeprefix(b"ipc://"))
        orderly = not self._outgoing and self._connections  # else there is nobody to deliver the last frames to
        self._outgoing.clear()
        if not self._socket.closed:
            self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close(_LINGER_MS if orderly else 0)
        if self._lifeline is not None:
            self._lifeline.close()


@contextlib.contextmanager
def _opened(context: ZeroMQContext, name: str, address: str) -> Iterator[zmq.Socket[bytes]]:
    """A socket for a link, closed again if the link cannot be opened; that is told as DomainUnavailable."""
    made = context.socket(address)
    try:
        yield made
    except zmq.ZMQError as error:
        made.close()
        raise DomainUnavailable(f"no link to {name} can be opened at {address}: {error}") from error


def _is_readable(connection: socket.socket) -> bool:
    polling = select.poll()
    polling.register(connection, select.POLLIN)
    return bool(polling.poll(0))
