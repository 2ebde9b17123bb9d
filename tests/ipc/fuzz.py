"""What nobody must trust, each as a function that takes any bytes: it returns, or one of our promises is broken.

    python -m tests.ipc.fuzz TARGET [--seconds 60] [--corpus DIRECTORY]

looks for such bytes with atheris, starting from those in `corpus/`, which the tests replay. What it finds is written
down, and belongs into the corpus once it is mended.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import struct
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).with_name("corpus")


def _import_instrumented() -> None:
    """Let atheris see which branches are taken; before anything has imported them."""
    import atheris

    with atheris.instrument_imports(include=["domains.ipc.frames", "domains.conversation", "domains.ipc.link"]):
        import domains.conversation
        import domains.ipc.frames
        import domains.ipc.link  # noqa: F401


def _mended(data: bytes) -> bytes:
    """The bytes as a frame with a right header and checksum: their first says how many buffers it announces."""
    count = data[0] % 4
    lengths, envelope = data[1 : 1 + 8 * count], data[1 + 8 * count :]
    cut = envelope[0] if envelope else 0
    envelope, rest = envelope[: max(0, len(envelope) - cut)], envelope[max(0, len(envelope) - cut) :]
    count = len(lengths) // 8
    lengths = lengths[: 8 * count]
    checksum = zlib.crc32(envelope, zlib.crc32(lengths) if count else 0)
    check = (7 * len(envelope) + 13 * count + checksum) % 255
    return struct.pack("!2sBBIII", b"dm", 2, check, len(envelope), count, checksum) + lengths + envelope + rest


def _stream(data: bytes) -> bytes:
    """What comes over a socket: the bytes as they are, or as a frame that fits."""
    return _mended(data[1:]) if len(data) > 1 and data[0] & 1 else data[1:]


def frames(data: bytes) -> None:
    """A stream gives the same frames however it is cut, and then is corrupt, or waits for more, or ends."""
    from domains.ipc.frames import FrameCorrupt, FrameReader

    stream = _stream(data)
    outcomes = []
    for size in (max(1, len(stream)), 1 + (data[0] >> 1 if data else 0)):
        reader = FrameReader(64)
        found: list[Any] = []
        position = 0
        try:
            while position < len(stream):
                position += reader.receive(partial(_put, stream[position : position + size]))
                for envelope, buffers in iter(reader.take, None):
                    found.append((envelope, [bytes(buffer) for buffer in buffers]))
            found.append("inside" if reader.is_inside else "between")
        except FrameCorrupt:
            found.append("corrupt")
        outcomes.append(found)
    assert outcomes[0] == outcomes[1], outcomes


def _put(piece: bytes, space: memoryview) -> int:
    assert len(space), "there is no room for more"
    count = min(len(space), len(piece))
    space[:count] = piece[:count]
    return count


def whole(data: bytes) -> None:
    """A message is one frame and nothing more, or corrupt."""
    from domains.ipc.frames import FrameCorrupt, byte_view, frame_header, read_frame

    stream = _stream(data)
    try:
        envelope, buffers = read_frame(memoryview(stream))
    except FrameCorrupt:
        return
    header = frame_header(envelope, [byte_view(buffer) for buffer in buffers])
    assert b"".join((header, envelope, *buffers)) == stream


def protocol(data: bytes) -> None:
    """An envelope is a list of our messages, which encode to what decodes to the same; or it is refused."""
    import msgspec

    from domains.protocol import Message, ProtocolCodec

    codec = ProtocolCodec()
    try:
        messages = codec.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    assert all(isinstance(message, Message) for message in messages)
    again = codec.encode(messages)
    assert codec.encode(codec.decode(again)) == again


def leases(data: bytes) -> None:
    """A descriptor of shared memory that is not what it says opens nothing, and is told apart as lost."""
    from domains.ipc.arena import Arena
    from domains.ipc.descriptors import DESCRIPTOR_BYTES, LostBuffer

    arena = Arena()
    arena.enter()
    try:
        descriptor = (_LEASE_MAGIC + data).ljust(DESCRIPTOR_BYTES, b"\0")[:DESCRIPTOR_BYTES]
        (received,) = arena.borrow([memoryview(descriptor)])
        assert isinstance(received, LostBuffer)
    finally:
        arena.leave()


def link(data: bytes) -> None:
    """Whatever a peer sends, each handler gets the buffers of its message or none, and the end is told once."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # a refused message is reported there
    try:
        loop.run_until_complete(_talk(_stream(data)))
    finally:
        loop.close()


_LEASE_MAGIC = b"domains' arena 1"


async def _talk(stream: bytes) -> None:
    from domains import protocol as messages
    from domains.conversation import Conversation
    from domains.errors import ConnectionLost
    from domains.ipc.link import LinkState
    from domains.ipc.pickling import Pickling
    from domains.ipc.socketpair import SocketPairLink, open_pair

    ours, theirs = open_pair()
    one = SocketPairLink(messages.ProtocolCodec(), ours, "the peer")
    conversation = Conversation(one, Pickling(), "the peer")
    ends: list[ConnectionLost | None] = []
    gone = asyncio.Event()

    def handle(message: Any, buffers: Any) -> None:
        assert type(message) in messages.Message.__args__
        claimed = getattr(message, "buffers", 0)
        if buffers and len(buffers) != claimed:
            broken.append(f"{message!r} got {len(buffers)} buffers")

    broken: list[str] = []
    for kind in messages.Message.__args__:
        conversation.handle(kind, handle)
    conversation.when_gone(ends.append)
    conversation.when_gone(lambda _: gone.set())
    conversation.start()
    theirs.setblocking(False)
    sent = 0
    while sent < len(stream) and not ends:
        try:
            sent += theirs.send(stream[sent:])
        except BlockingIOError:
            await asyncio.sleep(0)
        except OSError:
            break
    theirs.shutdown(socket.SHUT_WR)
    await gone.wait()
    await asyncio.sleep(0)
    theirs.close()
    assert len(ends) == 1
    assert one.state is LinkState.GONE
    assert not broken, broken


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (frames, whole, protocol, leases, link)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", default=None, help="where to keep what is found on the way")
    options = parser.parse_args()
    import atheris

    _import_instrumented()
    found = Path(options.corpus or f"build/fuzz/{options.target}")
    found.mkdir(parents=True, exist_ok=True)
    folders = [str(found), str(CORPUS / options.target)]  # what is new goes into the first
    limits = [
        f"-max_total_time={options.seconds}",
        "-max_len=4096",
        "-timeout=10",
        "-rss_limit_mb=2048",
        f"-artifact_prefix={found}-",
    ]
    atheris.Setup([sys.argv[0], *limits, *folders], TARGETS[options.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
