"""The kinds of link between a parent and its domain, each as an offer by the one and its acceptance by the other.

The parent's end exists before the domain does. What the domain needs to open its own end goes with its birth:
a short description, which only the launcher's private socket carries, and inherited file descriptors. ZeroMQ is
imported only by those who use it: that takes longer than everything else of ours.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from domains.ipc.link import Codec, Link
from domains.ipc.socketpair import SocketPairLink, open_pair

if TYPE_CHECKING:
    from domains.ipc.zeromq_context import ZeroMQContext


_LONGEST_DIRECTORY = 90
"""A socket's whole path has room for 103 bytes on macOS, 107 on Linux, and its name in the directory is a number."""


class Offer(NamedTuple):
    """The parent's end, and how to open the other. `release` closes what only the domain needs, once sent."""

    link: Link
    description: bytes
    descriptors: Mapping[str, int]
    release: Callable[[], None]


class LinkKind(ABC):
    """Makes links of one kind."""

    name: str

    @abstractmethod
    def offer(self, codec: Codec, peer: str) -> Offer:
        """The parent's end of a new link to the domain called `peer`."""

    @abstractmethod
    def accept(self, codec: Codec, description: bytes, descriptors: Mapping[str, int]) -> Link:
        """The domain's end, in the domain; owns the descriptors from now on."""

    def remains(self) -> list[str]:
        """Paths that `clear` removes, and that somebody else must remove if this process dies before.

        There is nothing there yet: it is made with the first link, once somebody has been asked to remove it.
        """
        return []

    def clear(self) -> None:  # noqa: B027 - most kinds leave nothing
        """Remove it: there are no links any more, and if there will be, they are made elsewhere."""

    def close(self) -> None:  # noqa: B027 - most kinds have nothing to share
        """Release what the links of this process share."""


class SocketPairKind(LinkKind):
    """An inherited pair of sockets: no name, so nobody else can connect, and the lowest latency."""

    name = "socketpair"

    def offer(self, codec: Codec, peer: str) -> Offer:
        ours, theirs = open_pair()
        link = SocketPairLink(codec, ours, f"domain {peer!r}")
        return Offer(link, b"", {"link": theirs.fileno()}, theirs.close)

    def accept(self, codec: Codec, description: bytes, descriptors: Mapping[str, int]) -> Link:
        return SocketPairLink(codec, socket.socket(fileno=descriptors["link"]), "the parent")


class _Invitation(msgspec.Struct, array_like=True):
    """What a domain must know to connect."""

    address: str
    server_public: bytes
    client_public: bytes
    client_secret: bytes


class ZeroMQKind(LinkKind):
    """ZeroMQ over `ipc://`, with CURVE keys made for each link, in a directory that only this user can enter.

    Beside it goes a pair of sockets over which nothing is said, and whose end-of-file tells of a death.
    """

    name = "zmq"

    def __init__(self) -> None:
        self._context: ZeroMQContext | None = None
        self._numbers = itertools.count(1)
        self._path: str | None = None
        self._is_made = False

    def offer(self, codec: Codec, peer: str) -> Offer:
        from domains.ipc.keys import new_key_pair
        from domains.ipc.zeromq import ZeroMQLink

        address = self.new_address()
        server, client = new_key_pair(), new_key_pair()
        ours, theirs = socket.socketpair()
        try:
            link = ZeroMQLink.bind(codec, f"domain {peer!r}", self.open_context(), address, server, client.public, ours)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        invitation = _Invitation(address, server.public, client.public, client.secret)
        return Offer(link, msgspec.msgpack.encode(invitation), {"lifeline": theirs.fileno()}, theirs.close)

    def accept(self, codec: Codec, description: bytes, descriptors: Mapping[str, int]) -> Link:
        from domains.ipc.keys import KeyPair
        from domains.ipc.zeromq import ZeroMQLink

        invitation = msgspec.msgpack.decode(description, type=_Invitation)
        return ZeroMQLink.connect(
            codec,
            "the parent",
            self.open_context(),
            invitation.address,
            invitation.server_public,
            KeyPair(invitation.client_public, invitation.client_secret),
            socket.socket(fileno=descriptors["lifeline"]),
        )

    def remains(self) -> list[str]:
        return [self._choose_directory()]

    def clear(self) -> None:
        if self._is_made:
            import shutil  # slow to import, and only needed here

            shutil.rmtree(self._choose_directory(), ignore_errors=True)
        self._path = None
        self._is_made = False

    def close(self) -> None:
        if self._context is not None:
            self._context.close()
            self._context = None
        self.clear()

    def new_address(self) -> str:
        """Where one more link can be bound."""
        return f"ipc://{self._open_directory()}/{next(self._numbers)}"

    def open_context(self) -> ZeroMQContext:
        """What the links of this process share; made when it is first needed."""
        from domains.ipc.zeromq_context import ZeroMQContext

        if self._context is None:
            self._context = ZeroMQContext()
        return self._context

    def _open_directory(self) -> str:
        path = self._choose_directory()
        if not self._is_made:
            try:
                os.mkdir(path, 0o700)
            except OSError:
                self._path = None  # it may do elsewhere, next time
                raise
            self._is_made = True
        return path

    def _choose_directory(self) -> str:
        if self._path is None:
            name = f"domains-{os.getpid()}-{os.urandom(8).hex()}"
            self._path = os.path.join(_temporary_directory(), name)
            if len(os.fsencode(self._path)) > _LONGEST_DIRECTORY:
                self._path = os.path.join("/tmp", name)
        return self._path


def _temporary_directory() -> str:
    """Where `tempfile` makes its files.

    `tempfile.gettempdir` would try with a file whether one may write there, and leave it behind if it is killed then.
    """
    chosen: str | bytes | None = getattr(sys.modules.get("tempfile"), "tempdir", None)
    if chosen is not None:
        return os.path.abspath(os.fsdecode(chosen))
    for place in (*map(os.environ.get, ("TMPDIR", "TEMP", "TMP")), "/tmp", "/var/tmp", "/usr/tmp"):
        if place and os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK):
            return os.path.abspath(place)
    return os.getcwd()


_KINDS: dict[str, Callable[[], LinkKind]] = {"socketpair": SocketPairKind, "zmq": ZeroMQKind}


def kind_called(name: str) -> LinkKind:
    """The kind of link with this name. Raises ValueError for a name that is none."""
    try:
        return _KINDS[name]()
    except KeyError:
        raise ValueError(f"link must be 'auto' or one of {sorted(_KINDS)}, but is {name!r}") from None
