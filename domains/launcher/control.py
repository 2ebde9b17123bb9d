"""What a parent and its launcher say to each other: launch, signal, remove; started, ended.

They share one stream socket that nobody else has. Each message is a length and a msgpack body; the file
descriptors that a launch carries travel beside its first byte. End-of-file is the news that the other one is
gone, and the launcher acts on it: no domain outlives the parent.
"""

# Annotations are not postponed: see `domains.protocol`.

import contextlib
import errno
import os
import signal
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Struct

DUMP_SIGNAL = signal.SIGWINCH
"""Has a domain write the stacks of its threads into its crash report; ignored by a process that is not one yet."""

_LENGTH = struct.Struct("!I")
_MOST_DESCRIPTORS = 64
_READ_BYTES = 1 << 16


class Birth(Struct, array_like=True):
    """All that a new domain must know before it can talk to its parent.

    `link` and `description` tell the kind of link and how to open it; `descriptors` names the inherited file
    descriptors in the order in which they were sent. What may be file names is as `as_bytes` gives it.
    """

    domain: int
    name: str
    parent_pid: int
    link: str
    description: bytes
    descriptors: list[str]
    sys_path: list[bytes]
    argv: list[bytes]
    directory: bytes
    environment: list[tuple[bytes, bytes | None]]
    """What is not as in the launcher: variables that were set or, with None, deleted since that was started."""


def as_bytes(text: str) -> bytes:
    """Any string, also one that is no valid text, as a file name need not be."""
    return text.encode(errors="surrogatepass")


def as_text(data: bytes) -> str:
    """What `as_bytes` was given."""
    return data.decode(errors="surrogatepass")


class Launch(Struct, tag=1, array_like=True):
    birth: Birth


class Signal(Struct, tag=2, array_like=True):
    """Send a signal to a domain that the launcher has not reaped, and to its process group with it if asked."""

    domain: int
    signal: int
    group: bool


class Remove(Struct, tag=3, array_like=True):
    """Remove these paths when everything has ended: whoever made them may be dead by then."""

    paths: list[str]


class Started(Struct, tag=4, array_like=True):
    domain: int
    pid: int


class NotStarted(Struct, tag=5, array_like=True):
    domain: int
    why: str


class Ended(Struct, tag=6, array_like=True):
    """`status` as `os.waitstatus_to_exitcode` gives it; `crash` is what the interpreter wrote as it crashed."""

    domain: int
    status: int
    crash: str


ControlMessage = Launch | Signal | Remove | Started | NotStarted | Ended


class ControlSocket:
    """One end of the socket between a parent and its launcher; never blocks.

    Owns the socket and the descriptors it received and nobody has taken yet; `close` closes them.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._outgoing: deque[tuple[ControlMessage, memoryview, list[int]]] = deque()
        self._incoming = bytearray()
        self._descriptors: deque[list[int]] = deque()  # those of each message that carried some
        self._decoder = msgspec.msgpack.Decoder(ControlMessage)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: ControlMessage, descriptors: Sequence[int] = ()) -> None:
        """Queue a message; descriptors are duplicated, the caller keeps its own. `write` sends it.

        Raises OSError if there can be no more descriptors.
        """
        body = msgspec.msgpack.encode(message)
        with contextlib.ExitStack() as on_failure:
            duplicates = []
            for descriptor in descriptors:
                duplicates.append(os.dup(descriptor))
                on_failure.callback(os.close, duplicates[-1])
            on_failure.pop_all()
        self._outgoing.append((message, memoryview(_LENGTH.pack(len(body)) + body), duplicates))

    def write(self) -> bool:
        """Write what the socket takes. True when nothing is left.

        Raises ConnectionError when the peer is gone, and another OSError when the system refuses: see `take_back`.
        """
        while self._outgoing:
            message, data, descriptors = self._outgoing[0]
            try:
                sent = socket.send_fds(self._socket, [data], descriptors) if descriptors else self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                return False
            for descriptor in descriptors:
                os.close(descriptor)
            if sent == len(data):
                self._outgoing.popleft()
            else:
                self._outgoing[0] = (message, data[sent:], [])
        return True

    def take_back(self) -> ControlMessage | None:
        """The message that the system refuses to write, if that may be for the descriptors that it carries.

        It is not sent: those on their way count as well, and it is not known when there are less of them.
        """
        if not self._outgoing or not self._outgoing[0][2]:
            return None
        message, _, descriptors = self._outgoing.popleft()
        for descriptor in descriptors:
            os.close(descriptor)
        return message

    def read(self) -> Iterator[ControlMessage]:
        """The messages that have arrived. Raises EOFError, after them, when the peer is gone."""
        gone = False
        while True:
            try:
                data, descriptors, flags, _ = socket.recv_fds(self._socket, _READ_BYTES, _MOST_DESCRIPTORS)
            except (BlockingIOError, InterruptedError):
                break
            except ConnectionError:
                data, descriptors, flags = b"", [], 0
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            if descriptors or flags & socket.MSG_CTRUNC:  # one read brings those of at most one message
                self._descriptors.append(descriptors)
            if not data:
                gone = True
                break
            self._incoming += data
        while len(self._incoming) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._incoming)
            if len(self._incoming) < _LENGTH.size + length:
                break
            body = bytes(self._incoming[_LENGTH.size : _LENGTH.size + length])
            del self._incoming[: _LENGTH.size + length]
            yield self._decoder.decode(body)
        if gone:
            raise EOFError

    def take_descriptors(self, count: int) -> list[int]:
        """Those that came with the message just read; the caller owns them from now on.

        Raises OSError if some of the `count` got lost, because this process can have no more.
        """
        taken = self._descriptors.popleft()
        if len(taken) != count:
            for descriptor in taken:
                os.close(descriptor)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return taken

    def hang_up(self) -> None:
        """Nothing more will be sent; what the peer still says can be read."""
        with contextlib.suppress(OSError):  # the peer may be gone already
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for _, _, descriptors in self._outgoing:
            for descriptor in descriptors:
                os.close(descriptor)
        self._outgoing.clear()
        while self._descriptors:
            for descriptor in self._descriptors.popleft():
                os.close(descriptor)
        self._socket.close()
