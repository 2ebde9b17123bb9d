"""Nobody without the keys gets a frame into a ZeroMQ link, or takes it from those who have them."""

import asyncio
import os
import select
import signal
import socket
import stat
import sys
import time

import pytest
import zmq

from domains import ConnectionLost, DomainUnavailable
from domains.ipc import zeromq_context
from domains.ipc.frames import frame_header
from domains.ipc.keys import new_key_pair
from domains.ipc.link import LinkState
from domains.ipc.zeromq_context import ZeroMQContext
from domains.scheduler.run import new_event_loop

from .links import AnyCodec, Recorder, ZeroMQ, turns


def run(main):
    async def outer():
        kind = ZeroMQ()
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


class Stranger:
    """A bare ZeroMQ socket that connects to a link."""

    def __init__(self, address, kind=zmq.PAIR, server=None, client=None):
        self._context = zmq.Context()
        self.socket = self._context.socket(kind)
        self.socket.linger = 0
        if server is not None:
            self.socket.curve_serverkey = server
            self.socket.curve_publickey, self.socket.curve_secretkey = client
        self.monitor = self.socket.get_monitor_socket()
        self.socket.connect(address)

    async def hears(self, *events):
        """Wait until ZeroMQ tells the stranger one of these."""
        from zmq.utils.monitor import parse_monitor_message

        while True:
            while self.monitor.poll(0):
                event = parse_monitor_message(self.monitor.recv_multipart())["event"]
                if event in events:
                    return event
            await asyncio.sleep(0.001)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close()
        self._context.term()


REFUSALS = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_DISCONNECTED,
)


def frame(*messages):
    envelope = AnyCodec().encode(list(messages))
    return frame_header(envelope, []) + envelope


def strangers(kind, address):
    """Every sort of peer that is not the one expected."""
    other = new_key_pair()
    return {
        "no keys": lambda: Stranger(address),
        "a dealer without keys": lambda: Stranger(address, zmq.DEALER),
        "keys of its own": lambda: Stranger(address, server=kind.server.public, client=other),
        "the wrong server": lambda: Stranger(address, server=other.public, client=kind.client),
        "its own keys for both": lambda: Stranger(address, server=other.public, client=other),
        "the server's keys": lambda: Stranger(address, server=kind.server.public, client=kind.server),
    }


SORTS = ["no keys", "a dealer without keys", "keys of its own", "the wrong server", "its own keys for both"] + [
    "the server's keys"
]


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_stranger_is_refused_and_the_right_peer_is_not_disturbed(sort, when):
    async def main(kind):
        address = kind.address()
        bound = kind.bound(address)
        first, second = Recorder(), Recorder()
        bound.start(first)

        async def intrude():
            with strangers(kind, address)[sort]() as stranger:
                await stranger.hears(*REFUSALS)
                for _ in range(20):
                    try:
                        stranger.socket.send(frame("injected"), zmq.DONTWAIT)
                    except zmq.Again:
                        break
                await asyncio.sleep(0.1)

        async def converse(connected, n):
            connected.send(["right", n])
            bound.send(["answer", n])
            await first.heard(n)
            await second.heard(n)

        if when == "before":
            await intrude()
        connected = kind.connected(address)
        connected.start(second)
        await converse(connected, 1)
        if when == "after":
            await intrude()
        await asyncio.sleep(0.1)  # long enough for a disconnection to be taken for the peer's
        await converse(connected, 2)
        connected.close()
        assert await first.gone() is None
        assert await second.gone() is None
        assert first.messages == [["right", 1], ["right", 2]]
        assert second.messages == [["answer", 1], ["answer", 2]]

    run(main)


def test_a_second_peer_with_the_right_keys_neither_steals_nor_injects():
    async def main(kind):
        one, other = kind.pair()
        first, second = Recorder(), Recorder()
        one.start(first)
        other.start(second)
        other.send("mine")
        await first.heard(1)
        address = one._endpoint.decode()
        with Stranger(address, server=kind.server.public, client=kind.client) as twin:
            for _ in range(5):
                twin.socket.send(frame("injected"), zmq.DONTWAIT)
            for n in range(100):
                one.send(n)
                await asyncio.sleep(0.001)
            await second.heard(100)
            assert not twin.socket.poll(0)
        await asyncio.sleep(0.1)
        other.send("still mine")
        assert await first.heard(2) == ["mine", "still mine"]
        one.close()
        assert await first.gone() is None
        assert await second.gone() is None
        assert second.messages == list(range(100))

    run(main)


def test_bytes_that_are_no_zeromq_are_refused():
    async def main(kind):
        one, other = kind.pair()
        first, second = Recorder(), Recorder()
        one.start(first)
        other.start(second)
        other.send(1)
        await first.heard(1)
        path = one._endpoint.decode().removeprefix("ipc://")
        for garbage in b"GET / HTTP/1.1\r\n\r\n", os.urandom(5000), b"\xff" + bytes(8) + b"\x7f\x03" + b"\xff" * 5000:
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(path)
                raw.sendall(garbage)
                raw.shutdown(socket.SHUT_WR)
                while await asyncio.to_thread(_read, raw):
                    pass
        await asyncio.sleep(0.1)
        other.send(2)
        assert await first.heard(2) == [1, 2]
        one.close()
        await first.gone()
        await second.gone()
        await asyncio.get_running_loop().shutdown_default_executor()

    run(main)


def _read(raw):
    try:
        return raw.recv(65536)
    except ConnectionResetError:
        return b""


def test_many_who_connect_and_say_nothing_do_not_keep_the_right_peer_out():
    async def main(kind):
        address = kind.address()
        bound = kind.bound(address)
        first, second = Recorder(), Recorder()
        bound.start(first)
        idle = [socket.socket(socket.AF_UNIX) for _ in range(50)]
        for raw in idle:
            raw.connect(address.removeprefix("ipc://"))
        connected = kind.connected(address)
        connected.start(second)
        connected.send("in")
        assert await first.heard(1) == ["in"]
        for raw in idle:
            raw.close()
        await asyncio.sleep(0.1)
        connected.send("still in")
        assert await first.heard(2) == ["in", "still in"]
        connected.close()
        await first.gone()
        await second.gone()

    run(main)


def test_a_link_whose_bound_end_was_busy_as_the_other_connected_opens_however_long_that_took(monkeypatch):
    monkeypatch.setattr(zeromq_context, "_HANDSHAKE_MS", 50)

    async def main(kind):
        address = kind.address()
        bound, connected = kind.bound(address), kind.connected(address)
        first, second = Recorder(), Recorder()
        bound.start(first)
        connected.start(second)
        connected.send("in")
        time.sleep(0.3)  # noqa: ASYNC251 - keeps the loop, which has to let the other in, from turning
        assert await first.heard(1) == ["in"]
        connected.close()
        await first.gone()
        await second.gone()

    run(main)


def test_a_death_is_noticed_while_others_hold_idle_connections():
    async def main(kind):
        address = kind.address()
        bound = kind.bound(address)
        first, second = Recorder(), Recorder()
        bound.start(first)
        connected = kind.connected(address)
        connected.start(second)
        connected.send("in")
        await first.heard(1)
        with socket.socket(socket.AF_UNIX) as idle:
            idle.connect(address.removeprefix("ipc://"))
            await asyncio.sleep(0.05)
            connected.abort(ConnectionLost("dead"))
            assert isinstance(await first.gone(), ConnectionLost)

    run(main)


_FROM_ANOTHER_PROCESS = """
import sys, zmq
context = zmq.Context()
intruder = context.socket(zmq.PAIR)
intruder.linger = 0
if sys.argv[2]:
    intruder.curve_serverkey = sys.argv[2].encode()
    intruder.curve_publickey, intruder.curve_secretkey = zmq.curve_keypair()
intruder.connect(sys.argv[1])
intruder.send(bytes.fromhex(sys.argv[3]))
print(intruder.poll(300))
context.destroy(0)
"""


@pytest.mark.parametrize("knows_the_server", [False, True])
def test_another_process_cannot_inject_a_frame(knows_the_server):
    async def main(kind):
        address = kind.address()
        bound = kind.bound(address)
        first = Recorder()
        bound.start(first)
        bound.send("secret")
        server = kind.server.public.decode() if knows_the_server else ""
        child = await asyncio.create_subprocess_exec(
            *[sys.executable, "-c", _FROM_ANOTHER_PROCESS, address, server, frame("injected").hex()],
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await child.communicate()
        assert output.strip() == b"0", "the intruder got something to read"
        assert first.messages == []
        assert first.ends == []
        connected = kind.connected(address)
        second = Recorder()
        connected.start(second)
        assert await second.heard(1) == ["secret"]
        connected.close()
        assert await first.gone() is None
        await second.gone()
        assert first.messages == []

    run(main)


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [b"", b""],
        [b"garbage that is long enough for a header"],
        [frame(1)[:-1]],
        [frame(1) + b"x"],
        [frame(1)[:10]],
        [frame(1), b"a buffer too many"],
        [frame_header(b"\x90", [memoryview(b"abc")]) + b"\x90"],
        [frame_header(b"\x90", [memoryview(b"abc")]) + b"\x90", b"ab"],
        [frame_header(b"\x90", [memoryview(b"abc")]) + b"\x90", b"abc", b""],
        [b"dm\x01\0" + b"\xff" * 12],
        [frame_header(b"no msgpack", []) + b"no msgpack"],
        [os.urandom(1 << 20)],
    ],
    ids=range(13),
)
def test_garbage_from_a_peer_with_the_keys_ends_the_link_alone(parts):
    async def main(kind):
        address = kind.address()
        bound = kind.bound(address)
        first = Recorder()
        bound.start(first)
        with Stranger(address, server=kind.server.public, client=kind.client) as peer:
            peer.socket.send(frame("fine"))
            peer.socket.send_multipart(parts)
            peer.socket.send(frame("too late"))
            assert isinstance(await first.gone(), ConnectionLost)
            assert first.messages == ["fine"]

    run(main)


def test_a_link_that_lost_its_peer_is_not_taken_over_by_another():
    async def main(kind):
        address = kind.address()
        bound = kind.bound(address)
        first, second = Recorder(), Recorder()
        bound.start(first)
        connected = kind.connected(address)
        connected.start(second)
        connected.send("in")
        await first.heard(1)
        connected.abort(None)
        assert isinstance(await first.gone(), ConnectionLost)
        assert _names_in(address) == []

    run(main)


def _names_in(address):
    return os.listdir(os.path.dirname(address.removeprefix("ipc://")))


def test_an_address_that_cannot_be_bound_is_a_domain_that_is_unavailable():
    async def main(kind):
        with pytest.raises(DomainUnavailable, match="not/there"):
            kind.bound("ipc:///not/there/1")
        assert kind.context._allowed == {}

    run(main)


def test_one_directory_holds_the_addresses_and_is_private():
    async def main(kind):
        address = kind.address()
        bound = kind.bound(address)
        folder = os.path.dirname(address.removeprefix("ipc://"))
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        bound.close()
        assert kind.context._allowed == {}

    run(main)


def test_a_context_without_links_can_be_closed():
    async def main(kind):
        context = ZeroMQContext()
        context.close()

    run(main)


def test_closing_a_context_waits_for_no_link_that_is_left():
    async def begin():
        kind = ZeroMQ()
        links = kind.pair()
        for link in links:
            link.start(Recorder())
            for _ in range(100):
                link.send("never read", [bytes(1 << 20)])
        return kind, links

    loop = new_event_loop()
    try:
        kind, links = loop.run_until_complete(begin())
    finally:
        loop.close()
    kind.close()
    assert all(link._socket.closed and link._monitor.closed for link in links)


def test_a_context_carries_many_links():
    async def main(kind):
        pairs = []
        for _ in range(40):
            one, other = kind.pair()
            first, second = Recorder(), Recorder()
            one.start(first)
            other.start(second)
            pairs.append((one, first, other, second))
        for n, (one, _, other, _) in enumerate(pairs):
            one.send(n)
            other.send(-n)
        for n, (one, first, _, second) in enumerate(pairs):
            assert await second.heard(1) == [n]
            assert await first.heard(1) == [-n]
            one.close()
        for _, first, _, second in pairs:
            assert await first.gone() is None
            assert await second.gone() is None

    run(main)


def test_a_link_is_not_gone_before_the_peer_has_heard_all():
    async def main(kind):
        link, child = kind.with_child("""
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
link.close()
signal.sigwait([signal.SIGUSR1])
assert await recorder.gone() is None
assert recorder.messages == list(range(60)), recorder.messages
""")
        recorder = Recorder()
        link.start(recorder)
        # More frames than ZeroMQ takes for a peer that does not read, and few bytes: all leave before they are read.
        for n in range(60):
            link.send(n)
            link.flush()
        link.close()
        while link.has_unsent or link.state is LinkState.CLOSING:
            await turns(1)
        assert link.state is LinkState.PARTING
        child.send_signal(signal.SIGUSR1)
        assert await recorder.gone() is None
        assert child.wait(10) == 0

    run(main)


def test_a_frame_that_there_is_no_memory_for_ends_the_link(monkeypatch):
    async def main(kind):
        _, _, other, second = kind.started_pair()

        def no_memory(_):
            raise MemoryError

        monkeypatch.setattr("domains.ipc.zeromq.read_frame", no_memory)
        other.send("large", [b"x"])
        assert isinstance(await second.gone(), ConnectionLost)

    run(main)


def test_what_has_come_is_heard_though_there_is_no_room_to_answer():
    async def main(kind):
        link, child = kind.with_child("""
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
link.send("busy")
link.flush()
signal.sigwait([signal.SIGUSR1])
link.send("news")
link.flush()
signal.pause()  # it goes on reading nothing
""")
        recorder = Recorder()
        link.start(recorder)
        await recorder.heard(1)
        seen_full = 0
        while seen_full < 5:  # ZeroMQ's thread may still be passing on what it was given
            if link._socket.getsockopt(zmq.EVENTS) & zmq.POLLOUT:
                link.send("to fill its queues", [bytes(15_000)])
                link.flush()
                seen_full = 0
            else:
                seen_full += 1
                await asyncio.sleep(0.01)
        await turns(5)
        polling = select.poll()
        polling.register(link._socket.fileno(), select.POLLIN)
        child.send_signal(signal.SIGUSR1)
        assert polling.poll(10_000)  # the loop does not turn: this is one long step
        time.sleep(0.01)  # noqa: ASYNC251  # as it sends, ZeroMQ looks for news but once in a millisecond
        link.send("an answer to be")
        link.flush()
        assert link.has_unsent
        assert await recorder.heard(2) == ["busy", "news"]
        link.abort(None)
        await recorder.gone()

    run(main)


def _tells(connection, meanwhile=lambda: None):
    """Wait until a socket's descriptor tells of something, and leave it to the loop to take note."""
    polling = select.poll()
    polling.register(connection.fileno(), select.POLLIN)
    for _ in range(1000):
        if polling.poll(10):
            return True
        meanwhile()
    return False


@pytest.mark.parametrize("who_reads", ["bound", "connected"])
def test_what_has_come_is_heard_though_the_peer_has_ended_before_it_was_read(who_reads):
    async def main(kind):
        one, first, other, second = kind.started_pair()
        one.send("in")
        other.send("in")
        await first.heard(1)
        await second.heard(1)
        (sender, reader, recorder) = (other, one, first) if who_reads == "bound" else (one, other, second)
        await turns(3)
        sender.send("last words")
        sender.flush()
        assert _tells(reader._socket)  # the loop does not turn: this is one long step
        sender.abort(None)
        assert _tells(reader._monitor, kind.context.check_keys)  # both ends are here: the gate lets go of the sender's
        time.sleep(0.05)  # noqa: ASYNC251  # ZeroMQ's thread tells of the disconnection, then acts on it
        assert isinstance(await recorder.gone(), ConnectionLost)
        assert recorder.messages == ["in", "last words"]

    run(main)
