"""What may come through a socket pair from a peer that is broken, and that links leave no descriptor behind."""

import asyncio
import errno
import os
import socket
import struct

import pytest

from domains import ConnectionLost
from domains.ipc.frames import frame_header
from domains.scheduler.run import new_event_loop

from .links import AnyCodec, Recorder, SocketPair, turns


def run(main):
    async def outer():
        kind = SocketPair()
        try:
            async with asyncio.timeout(60):
                return await main(kind)
        finally:
            await turns(3)
            kind.close()

    loop = new_event_loop()
    try:
        return loop.run_until_complete(outer())
    finally:
        loop.close()


def frame(*messages):
    envelope = AnyCodec().encode(list(messages))
    return frame_header(envelope, []) + envelope


GARBAGE = {
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "zeros": bytes(100),
    "random": os.urandom(10_000),
    "a length beyond all limits": struct.pack("!2sBBIII", b"dm", 2, 0, 0xFFFFFFFF, 0, 0),
    "a count beyond all limits": struct.pack("!2sBBIII", b"dm", 2, 0, 0, 0xFFFFFFFF, 0),
    "a wrong checksum": frame(1)[:12] + b"\0\0\0\0" + frame(1)[16:],
    "no msgpack": frame_header(b"\xc1", []) + b"\xc1",
    "msgpack of another shape": frame_header(b"\x81\x01\x02", []) + b"\x81\x01\x02",
    "a pickle": frame_header(b"\x80\x05N.", []) + b"\x80\x05N.",
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_ends_the_link_with_connection_lost(garbage):
    async def main(kind):
        link, raw = kind.raw()
        recorder = Recorder()
        link.start(recorder)
        raw.sendall(frame("fine") + GARBAGE[garbage] + frame("too late"))
        assert isinstance(await recorder.gone(), ConnectionLost)
        assert recorder.messages == ["fine"]

    run(main)


@pytest.mark.parametrize("kept", [1, 15, 16, 20, -1])
def test_a_frame_that_stops_short_is_a_loss_that_says_so(kept):
    async def main(kind):
        link, raw = kind.raw()
        recorder = Recorder()
        link.start(recorder)
        raw.sendall(frame("fine") + frame("a message that is long enough")[:kept])
        raw.shutdown(socket.SHUT_WR)
        assert "in the middle of a frame" in str(await recorder.gone())
        assert recorder.messages == ["fine"]

    run(main)


def test_a_peer_that_reads_no_more_but_still_speaks_is_heard_to_its_end():
    async def main(kind):
        link, raw = kind.raw()
        recorder = Recorder()
        link.start(recorder)
        raw.sendall(frame("last words"))
        raw.close()
        link.send("nobody hears this")
        assert isinstance(await recorder.gone(), ConnectionLost)
        assert recorder.messages == ["last words"]

    run(main)


def test_a_flood_of_frames_does_not_keep_the_loop_from_other_work():
    async def main(kind):
        link, raw = kind.raw()
        recorder = Recorder()
        link.start(recorder)
        raw.setblocking(False)
        flood = frame(*range(10)) * 2000
        for n in range(50):
            raw_sent = 0
            while raw_sent < len(flood):
                try:
                    raw_sent += raw.send(flood[raw_sent:])
                except BlockingIOError:
                    before = len(recorder.frames)
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                    # One wake-up reads 16 pieces of 256 KiB at most.
                    assert (len(recorder.frames) - before) * len(frame(*range(10))) <= 3 * 16 * (1 << 18), n
        link.abort(None)
        await recorder.gone()

    run(main)


def test_a_thousand_links_leave_no_descriptor_open():
    async def main(kind):
        before = len(os.listdir("/dev/fd"))
        for n in range(1000):
            one, first, other, second = kind.started_pair()
            one.send(n, [b"x" * 10])
            await second.heard(1)
            one.close() if n % 2 else one.abort(ConnectionLost("on purpose"))
            await first.gone()
            await second.gone()
            assert not other.is_open
        assert len(os.listdir("/dev/fd")) == before

    run(main)


class WithoutMemory:
    """A socket for which the system has no memory."""

    def __init__(self, connection):
        self._connection = connection

    def __getattr__(self, name):
        return getattr(self._connection, name)

    def send(self, _):
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    sendmsg = send


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_frame_that_the_system_does_not_take_ends_the_link(size):
    async def main(kind):
        link, recorder, _, peer = kind.started_pair()
        link._socket = WithoutMemory(link._socket)
        link.send("dropped", [bytes(size)])
        link.flush()
        assert "No buffer space" in str(await recorder.gone())
        assert isinstance(await peer.gone(), ConnectionLost)

    run(main)
