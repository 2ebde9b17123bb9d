"""Nobody but the two domains that it was made for gets a word into a direct link, or hears one from it."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from domains import ConnectionLost, DomainDied, Promise, Stream, Switch
from domains.ipc.frames import frame_header
from domains.ipc.keys import KeyPair, new_key_pair
from domains.protocol import CallObject, ProtocolCodec, TellObject

from . import moments
from .remote import in_pool

ITEMS = 50


class Bomb:
    """Leaves a trace if anybody opens its pickle."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def bombs(home: int, number: int, path: str) -> bytes:
    """A frame that would be obeyed if it came from the peer: it knows every number that there is to know."""
    data = pickle.dumps((Bomb(path),))
    messages = [CallObject(home, 1, number, 1, "add", data, 0), TellObject(home, 1, number, "close", data, 0)]
    envelope = ProtocolCodec().encode(messages)
    return frame_header(envelope, []) + envelope


# In the domains


async def make_stream() -> tuple[Stream[Any], int]:
    return Stream(1), moments.registry().address


async def add_numbers(stream: Stream[Any], go: Promise[None]) -> None:
    """The first makes the link; then the strangers come, and then all others must pass."""
    await stream.add(0)
    await go
    for number in range(1, ITEMS):
        await stream.add(number)


async def take_numbers(stream: Stream[Any], count: int) -> list[Any]:
    return [await stream.take() for _ in range(count)]


async def bound_endpoints() -> list[str]:
    """Where this domain waits for others."""
    links = [conversation.link for conversation in moments.registry()._conversations]
    return [link._endpoint.decode() for link in links if getattr(link, "_endpoint", b"")]


def converse_while(intrude: Callable[[str, bytes, bytes], Any], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two domains talk over a direct link; in the middle `intrude(endpoint, its public key, a frame)` has its way."""

    async def main(pool: Any) -> list[Any]:
        async with pool._manager.spawn() as home, pool._manager.spawn() as other, Switch() as switch:
            stream, address = await home.call(make_stream)
            go, resolver = Promise[None].create()
            adding = switch.fork_promise(other.call, add_numbers, stream, go)
            taken: list[Any] = await home.call(take_numbers, stream, 1)
            endpoints = [*await home.call(bound_endpoints), *await other.call(bound_endpoints)]
            (endpoint,) = endpoints
            folder = os.path.dirname(endpoint.removeprefix("ipc://"))
            assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
            await intrude(endpoint, made[0].public, bombs(address, stream.number, str(path)))  # type: ignore[attr-defined]
            resolver.resolve(None)
            taken += await home.call(take_numbers, stream, ITEMS - 1)
            await adding
            folders.append(folder)
        return taken

    folders: list[str] = []
    made: list[KeyPair] = []  # the first are those of the domain that waits

    def recorded() -> KeyPair:
        made.append(new_key_pair())
        return made[-1]

    monkeypatch.setattr("domains.ipc.keys.new_key_pair", recorded)
    assert in_pool(main, "socketpair") == list(range(ITEMS))
    assert not path.exists(), "what a stranger sent was opened"
    assert not os.path.exists(folders[0])


_STRANGER = """
import sys, zmq
endpoint, kind, server, public, secret, *frames = sys.argv[1:]
context = zmq.Context()
stranger = context.socket(getattr(zmq, kind))
stranger.linger = 0
if server:
    stranger.curve_serverkey = server.encode()
    stranger.curve_publickey, stranger.curve_secretkey = public.encode(), secret.encode()
stranger.connect(endpoint)
for frame in frames:
    try:
        stranger.send(bytes.fromhex(frame), zmq.DONTWAIT)
    except zmq.Again:
        pass
print(stranger.poll(300))
context.destroy(0)
"""


@pytest.mark.parametrize("kind", ["PAIR", "DEALER", "PUB"])
@pytest.mark.parametrize("keys", ["none", "own for the right server", "own for a wrong server", "the server's public"])
def test_another_process_without_the_keys_says_and_hears_nothing(
    kind: str, keys: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def intrude(endpoint: str, public: bytes, frame: bytes) -> None:
        own, other = new_key_pair(), new_key_pair()
        credentials = {
            "none": (b"", b"", b""),
            "own for the right server": (public, own.public, own.secret),
            "own for a wrong server": (other.public, own.public, own.secret),
            "the server's public": (public, public, own.secret),
        }[keys]
        texts = [text.decode() for text in credentials]
        arguments = [endpoint, kind, *texts, *[frame.hex()] * 3]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _STRANGER, *arguments, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert output.strip() == b"0", "the stranger got something to read"

    converse_while(intrude, tmp_path / "opened", monkeypatch)


# A greeting of ZeroMQ's own protocol, version 3.1, with a mechanism, and what may come behind it.
def greeting(mechanism: bytes) -> bytes:
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + b"\0" + bytes(31)


def _long(size: int) -> bytes:
    return b"\x02" + size.to_bytes(8, "big")


_READY = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x04PAIR"

RAW = {
    "no ZeroMQ": lambda frame: b"GET / HTTP/1.1\r\n\r\n",
    "noise": lambda frame: os.urandom(100_000),
    "a bare frame": lambda frame: frame,
    "a truncated greeting": lambda frame: greeting(b"CURVE")[:20],
    "a greeting and silence": lambda frame: greeting(b"CURVE"),
    "no security": lambda frame: (
        greeting(b"NULL") + b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x04PAIR" + _long(len(frame)) + frame
    ),
    "a frame before the keys": lambda frame: greeting(b"CURVE") + _long(len(frame)) + frame,
    "a truncated command": lambda frame: greeting(b"CURVE") + b"\x04\xc8\x05HELLO" + bytes(50),
    "a wrong hello": lambda frame: greeting(b"CURVE") + b"\x04\xc8\x05HELLO" + os.urandom(194),
    "an oversized command": lambda frame: greeting(b"CURVE") + b"\x06" + (1 << 62).to_bytes(8, "big") + bytes(100_000),
    "an oversized frame": lambda frame: greeting(b"CURVE") + _long((1 << 63) - 1) + bytes(100_000),
}


@pytest.mark.parametrize("what", list(RAW))
def test_bytes_of_a_stranger_are_refused_and_the_link_goes_on(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def intrude(endpoint: str, public: bytes, frame: bytes) -> None:
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(endpoint.removeprefix("ipc://"))
                raw.setblocking(False)
                loop = asyncio.get_running_loop()
                try:
                    await loop.sock_sendall(raw, RAW[what](frame))
                    raw.shutdown(socket.SHUT_WR)
                    while await loop.sock_recv(raw, 65536):
                        pass
                except (ConnectionResetError, BrokenPipeError):
                    pass

    converse_while(intrude, tmp_path / "opened", monkeypatch)


async def say_garbage(stream: Stream[Any]) -> str:
    """With the keys, in the peer's place, and not in its language."""
    await stream.add(0)
    (link,) = [one.link for one in moments.registry()._conversations if type(one.link).__name__ == "ZeroMQLink"]
    link._socket.send(b"garbage that is long enough for a header")  # type: ignore[attr-defined]
    try:
        await stream.add(1)
        await stream.add(2)
    except (ConnectionLost, DomainDied) as error:
        return type(error).__name__
    return "nothing"


def test_garbage_from_a_peer_with_the_keys_ends_their_link_alone() -> None:
    async def main(pool: Any) -> None:
        async with pool._manager.spawn() as home, pool._manager.spawn() as other:
            stream, _ = await home.call(make_stream)
            assert await other.call(say_garbage, stream) == "ConnectionLost"
            assert await home.call(take_numbers, stream, 1) == [0]
            assert home.alive
            assert other.alive

    in_pool(main, "socketpair")
