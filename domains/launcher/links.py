"""The kinds of link between a parent and its domain, each as an offer by the one and its acceptance by the other.

The parent's end exists before the domain does. What the domain needs to open its own end goes with its birth:
a short description, which only the launcher's private socket carries, and inherited file descriptors.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

from domains.ipc.link import Codec, Link
from domains.ipc.socketpair import SocketPairLink, open_pair


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

    def close(self) -> None:
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


_KINDS: dict[str, Callable[[], LinkKind]] = {"socketpair": SocketPairKind}


def kind_called(name: str) -> LinkKind:
    """The kind of link with this name. Raises ValueError for a name that is none."""
    try:
        return _KINDS[name]()
    except KeyError:
        raise ValueError(f"link must be 'auto' or one of {sorted(_KINDS)}, but is {name!r}") from None
