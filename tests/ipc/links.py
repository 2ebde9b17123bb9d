"""Pairs of links of every kind for the tests, and a receiver that remembers what it heard."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from domains import ConnectionLost
from domains.ipc.inprocess import connect_in_process
from domains.ipc.keys import new_key_pair
from domains.ipc.link import Link
from domains.ipc.socketpair import SocketPairLink, open_pair
from domains.ipc.zeromq import ZeroMQLink
from domains.ipc.zeromq_context import ZeroMQContext


class AnyCodec:
    """Any messages that msgpack knows."""

    def encode(self, messages: list[Any]) -> bytes:
        return msgspec.msgpack.encode(messages)

    def decode(self, envelope: bytes | memoryview) -> list[Any]:
        return msgspec.msgpack.decode(envelope, type=list[Any])


class Recorder:
    """Remembers frames, and lets a test wait for messages and for the end."""

    def __init__(self) -> None:
        self.frames: list[list[Any]] = []
        self.messages: list[Any] = []
        self.buffers: list[memoryview] = []
        self.ends: list[ConnectionLost | None] = []
        self._changed = asyncio.Event()

    def on_messages(self, messages: list[Any], buffers: list[memoryview]) -> None:
        assert not self.ends, "messages after the end"
        self.frames.append(messages)
        self.messages += messages
        self.buffers += buffers
        self._changed.set()

    def on_gone(self, reason: ConnectionLost | None) -> None:
        self.ends.append(reason)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def heard(self, count: int) -> list[Any]:
        """The messages, once there are so many."""
        await self.until(lambda: len(self.messages) >= count or bool(self.ends))
        assert len(self.messages) >= count, f"gone after {len(self.messages)} messages: {self.ends}"
        return self.messages

    async def gone(self) -> ConnectionLost | None:
        """Why it ended, once it has."""
        await self.until(lambda: bool(self.ends))
        await turns(3)
        assert len(self.ends) == 1, "gone more than once"
        return self.ends[0]


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Kind(ABC):
    """A kind of link, as the tests open it. Closed at the end of each test."""

    name: str

    def __init__(self) -> None:
        self._exit = contextlib.ExitStack()

    @abstractmethod
    def pair(self, codec: Any = None) -> tuple[Link, Link]:
        """Two ends in this process, not started."""

    def started_pair(self, codec: Any = None) -> tuple[Link, Recorder, Link, Recorder]:
        one, other = self.pair(codec)
        first, second = Recorder(), Recorder()
        one.start(first)
        other.start(second)
        return one, first, other, second

    def close(self) -> None:
        self._exit.close()


class InProcess(Kind):
    name = "inprocess"

    def pair(self, codec: Any = None) -> tuple[Link, Link]:
        return connect_in_process(codec or AnyCodec())


class BetweenProcesses(Kind):
    """Kinds whose other end may be in a real child process, and where one may speak without a link."""

    @abstractmethod
    def with_child(self, body: str) -> tuple[Link, subprocess.Popen[bytes]]:
        """One end here; a child that runs `body`, lines of an `async def main(link, recorder)`, on the other."""

    def _run_child(self, opening: str, arguments: Any, body: str, descriptors: list[int]) -> subprocess.Popen[bytes]:
        code = _CHILD.format(opening=_indent(opening), body=_indent(body))
        folder = str(Path(__file__).parent)
        child = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(arguments), folder],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
        )
        self._exit.callback(child.wait)
        self._exit.callback(child.kill)
        return child


_CHILD = """
import asyncio, json, os, signal, socket, sys
sys.path.insert(0, sys.argv[2])
from links import AnyCodec, Recorder, turns
from domains.scheduler.run import new_event_loop
arguments = json.loads(sys.argv[1])

async def main():
    {opening}
    recorder = Recorder()
    link.start(recorder)
    {body}

loop = new_event_loop()
loop.run_until_complete(main())
"""


def _indent(text: str) -> str:
    return "\n    ".join(text.strip().splitlines())


class SocketPair(BetweenProcesses):
    name = "socketpair"

    def pair(self, codec: Any = None) -> tuple[Link, Link]:
        first, second = open_pair()
        codec = codec or AnyCodec()
        return SocketPairLink(codec, first, "second"), SocketPairLink(codec, second, "first")

    def raw(self) -> tuple[Link, socket.socket]:
        """A link, and the bare socket at its other end."""
        first, second = open_pair()
        self._exit.callback(second.close)
        return SocketPairLink(AnyCodec(), first, "second"), second

    def with_child(self, body: str) -> tuple[Link, subprocess.Popen[bytes]]:
        ours, theirs = open_pair()
        opening = """
from domains.ipc.socketpair import SocketPairLink
link = SocketPairLink(AnyCodec(), socket.socket(fileno=arguments["descriptor"]), "parent")
"""
        child = self._run_child(opening, {"descriptor": theirs.fileno()}, body, [theirs.fileno()])
        theirs.close()
        return SocketPairLink(AnyCodec(), ours, "child"), child


class ZeroMQ(BetweenProcesses):
    """With a lifeline, as between a parent and its domain, or without, as between any two."""

    name = "zeromq"

    def __init__(self, with_lifeline: bool = False) -> None:
        super().__init__()
        self._with_lifeline = with_lifeline
        self._directory = tempfile.mkdtemp(prefix=f"domains-{os.getpid()}-")
        self._exit.callback(shutil.rmtree, self._directory)
        self.context = ZeroMQContext()
        self._exit.callback(self.context.close)
        self._numbers = itertools.count()
        self.server = new_key_pair()
        self.client = new_key_pair()

    def address(self) -> str:
        return f"ipc://{self._directory}/{next(self._numbers)}"

    def _lifelines(self) -> tuple[socket.socket | None, socket.socket | None]:
        return socket.socketpair() if self._with_lifeline else (None, None)

    def bound(self, address: str, lifeline: socket.socket | None = None, codec: Any = None) -> Link:
        return ZeroMQLink.bind(
            codec or AnyCodec(), "client", self.context, address, self.server, self.client.public, lifeline
        )

    def connected(self, address: str, lifeline: socket.socket | None = None, codec: Any = None) -> Link:
        return ZeroMQLink.connect(
            codec or AnyCodec(), "server", self.context, address, self.server.public, self.client, lifeline
        )

    def pair(self, codec: Any = None) -> tuple[Link, Link]:
        address = self.address()
        ours, theirs = self._lifelines()
        return self.bound(address, ours, codec), self.connected(address, theirs, codec)

    def with_child(self, body: str) -> tuple[Link, subprocess.Popen[bytes]]:
        address = self.address()
        ours, theirs = self._lifelines()
        link = self.bound(address, ours)
        opening = """
from domains.ipc.keys import KeyPair
from domains.ipc.zeromq import ZeroMQLink
from domains.ipc.zeromq_context import ZeroMQContext
link = ZeroMQLink.connect(
    AnyCodec(), "parent", ZeroMQContext(), arguments["address"], arguments["server"].encode(),
    KeyPair(arguments["public"].encode(), arguments["secret"].encode()),
    socket.socket(fileno=arguments["lifeline"]) if arguments["lifeline"] is not None else None,
)
"""
        arguments = {
            "address": address,
            "server": self.server.public.decode(),
            "public": self.client.public.decode(),
            "secret": self.client.secret.decode(),
            "lifeline": None if theirs is None else theirs.fileno(),
        }
        child = self._run_child(opening, arguments, body, [] if theirs is None else [theirs.fileno()])
        if theirs is not None:
            theirs.close()
        return link, child


class ZeroMQWithLifeline(ZeroMQ):
    name = "zeromq-lifeline"

    def __init__(self) -> None:
        super().__init__(with_lifeline=True)


KINDS: dict[str, Callable[[], Kind]] = {kind.name: kind for kind in (InProcess, SocketPair, ZeroMQ, ZeroMQWithLifeline)}
