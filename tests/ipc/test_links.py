"""What every kind of link keeps, whatever carries its frames."""

import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys

import numpy
import pytest

from domains import Cancelled, ConnectionLost
from domains.ipc import link as link_module
from domains.ipc.arena import Arena
from domains.ipc.carrier import ArenaUse
from domains.ipc.link import HIGH_WATER_BYTES, Link, LinkState, wait_for
from domains.ipc.segment_pool import SegmentPool
from domains.scheduler.run import new_event_loop

from .links import KINDS, AnyCodec, Recorder, turns

BETWEEN_PROCESSES = [name for name in KINDS if name != "inprocess"]


@pytest.fixture(params=["asyncio", "preferred"])
def loop_kind(request):
    return request.param


@pytest.fixture(params=list(KINDS))
def kind_name(request):
    return request.param


@pytest.fixture
def run(loop_kind, kind_name):
    """Run `main(kind)` on a loop of the wanted sort, and close the kind after it."""
    return lambda main: _run(main, kind_name, loop_kind)


def _run(main, kind_name, loop_kind="preferred"):
    async def outer():
        kind = KINDS[kind_name]()
        try:
            async with asyncio.timeout(60):
                return await main(kind)
        finally:
            await turns(3)
            kind.close()

    loop = asyncio.new_event_loop() if loop_kind == "asyncio" else new_event_loop()
    errors = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    try:
        result = loop.run_until_complete(outer())
    finally:
        loop.close()
    assert errors == []
    return result


async def close_both(one, first, other, second):
    one.close()
    other.close()
    assert await first.gone() is None
    assert await second.gone() is None


@contextlib.contextmanager
def what_is_opened_has_a_high_number():
    """Inside the block a new descriptor has a number that `select.select` cannot take."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[1], 4096), limits[1]))
    with contextlib.ExitStack() as opened:
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        while (descriptor := os.open(os.devnull, os.O_RDONLY)) < 1024:
            opened.callback(os.close, descriptor)
        os.close(descriptor)
        yield


# Messages


def test_what_arrives_first_is_what_was_expected_soon(run):
    async def main(kind):
        one, first, other, second = kind.started_pair()
        for number in range(3):
            one.send("question")
            one.expect_soon()
            assert one._vigil.awaited_since is not None
            other.send("answer")
            await first.heard(number + 1)
            assert one._vigil.awaited_since is None
        await close_both(one, first, other, second)
        one.expect_soon()
        assert one._vigil.awaited_since is None  # nothing will come

    run(main)


def test_a_link_with_high_descriptors_can_be_waited_for_without_the_loop(run):
    async def main(kind):
        with what_is_opened_has_a_high_number():
            one, first, other, second = kind.started_pair()
        one.send("a")
        while not second.messages:
            wait_for([one, other])
        assert second.messages == ["a"]
        await close_both(one, first, other, second)

    run(main)


def test_what_is_sent_while_a_link_is_held_goes_out_with_the_flush_in_one_frame(run):
    async def main(kind):
        one, first, other, second = kind.started_pair()
        one.hold()
        one.send("a")
        one.send("b")
        await turns(3)
        assert one.has_unsent
        one.flush()
        assert await second.heard(2) == ["a", "b"]
        assert second.frames[-1] == ["a", "b"]
        one.send("c")  # not held any more: it goes with the end of the turn
        assert await second.heard(3) == ["a", "b", "c"]
        await close_both(one, first, other, second)

    run(main)


def test_messages_arrive_in_order(run):  # both ways, over many turns
    async def main(kind):
        one, first, other, second = kind.started_pair()
        for n in range(300):
            one.send(["to other", n])
            other.send(["to one", n])
            if n % 7 == 0:
                await asyncio.sleep(0)
        assert await second.heard(300) == [["to other", n] for n in range(300)]
        assert await first.heard(300) == [["to one", n] for n in range(300)]
        await close_both(one, first, other, second)

    run(main)


def test_what_is_sent_in_one_turn_is_one_frame(run):
    async def main(kind):
        one, first, other, second = kind.started_pair()
        for n in range(1000):
            one.send(n)
        await second.heard(1000)
        assert second.frames == [list(range(1000))]
        await close_both(one, first, other, second)

    run(main)


class NoMemory:
    """A carrier where memory has run out."""

    is_interrupted = False

    def outgoing(self, buffers):
        raise MemoryError

    def gone(self):
        pass


UNWRITABLE = {
    "no text": lambda link: link.send("\ud800"),  # a lone surrogate
    "no memory": lambda link: (setattr(link, "carrier", NoMemory()), link.send("buffer", [b"1"])),
}


@pytest.mark.parametrize("what", UNWRITABLE)
def test_what_cannot_be_written_ends_the_link_and_says_so(run, what):
    async def main(kind):
        one, first, _, second = kind.started_pair()
        one.send("hello")
        assert await second.heard(1) == ["hello"]
        reports = []
        asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report["message"]))
        UNWRITABLE[what](one)
        reason = await first.gone()
        assert reports == [str(reason)]  # by the side that knows: all that the other one sees is an end
        assert "cannot be written (str)" in str(reason)
        assert isinstance(await second.gone(), ConnectionLost)

    run(main)


@pytest.mark.parametrize("what", UNWRITABLE)
def test_a_batch_that_cannot_be_written_does_not_disturb_who_waits_for_several_links(run, what):
    async def main(kind):
        bad, lost, _, _ = kind.started_pair()
        one, first, other, second = kind.started_pair()
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        UNWRITABLE[what](bad)
        one.send("a")
        while not second.messages:
            wait_for([bad, one, other])
        assert isinstance(await lost.gone(), ConnectionLost)
        await close_both(one, first, other, second)

    run(main)


@pytest.mark.parametrize("raised", [RuntimeError("no"), Cancelled()])
@pytest.mark.parametrize("end", ["close", "abort"])
def test_what_follows_a_message_whose_receiver_raises_is_heard_to_the_end(run, end, raised):
    class Raises(Recorder):
        def on_messages(self, messages, buffers):
            super().on_messages(messages, buffers)
            if messages[0] in (1, 3):
                raise raised

    async def main(kind):
        one, other = kind.pair()
        first, second = Recorder(), Raises()
        one.start(first)
        other.start(second)
        one.send(0)
        other.send(0)
        await first.heard(1)
        await second.heard(1)
        errors = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
        for n in range(1, 6):
            one.send(n)
            one.flush()  # each by itself, and all at once
        if end == "close":
            one.close()
        assert await second.heard(6) == list(range(6))
        one.abort(None)
        await second.gone()
        assert errors == [raised, raised]
        other.abort(None)
        await turns(3)

    run(main)


def test_what_is_sent_in_one_turn_is_several_frames_where_one_does_not_take_all_buffers(run, monkeypatch):
    monkeypatch.setattr(link_module, "MOST_BUFFERS", 3)

    async def main(kind):
        one, first, other, second = kind.started_pair()
        for n in range(5):
            one.send(n, [b"1"])
        assert await second.heard(5) == list(range(5))
        assert second.frames == [[0, 1, 2], [3, 4]]
        await close_both(one, first, other, second)

    run(main)


@pytest.mark.parametrize("buffers", [[], [b"1"]])
def test_what_is_sent_in_one_turn_is_several_frames_where_it_is_many_messages(run, buffers):
    async def main(kind):
        one, first, other, second = kind.started_pair()
        for n in range(1500):
            one.send(n, buffers)
        assert await second.heard(1500) == list(range(1500))
        assert [len(frame) for frame in second.frames] == [1024, 476]
        await close_both(one, first, other, second)

    run(main)


class Interrupted(AnyCodec):
    """Calls something in the midst of a flush, as the collection of garbage calls finalizers."""

    def __init__(self, finalize):
        self.finalize = finalize

    def encode(self, messages):
        if messages == ["first"]:
            self.finalize()
        return super().encode(messages)


def test_what_is_sent_and_flushed_in_the_midst_of_a_flush_follows_it(run):
    def finalize():
        one.send("second")
        one.flush()
        one.send("third")
        with pytest.raises(RuntimeError, match="in the midst of writing"):
            wait_for([one])

    async def main(kind):
        nonlocal one
        one, first, other, second = kind.started_pair(Interrupted(finalize))
        one.send("first")
        one.flush()
        assert one.latest is None
        assert await second.heard(3) == ["first", "second", "third"]
        await close_both(one, first, other, second)

    one = None
    run(main)


def test_a_finalizer_in_the_midst_of_work_with_shared_memory_takes_nothing_that_came_for_others(run, monkeypatch):
    take, seen = SegmentPool.take, []

    def finalize():
        with pytest.raises(RuntimeError, match="shared memory"):
            wait_for([one])
        seen.append(list(first.messages))

    def take_later(pool, size):
        monkeypatch.setattr(SegmentPool, "take", take)
        finalize()
        return take(pool, size)

    async def main(kind):
        nonlocal one, first
        one, first, other, second = kind.started_pair()
        ours, theirs = ArenaUse(Arena()), ArenaUse(Arena())
        one.carrier, other.carrier = ours.carrier(), theirs.carrier()
        other.send("large", [theirs.arena.keep([b"\x07" * 100_000])])
        other.flush()
        monkeypatch.setattr(SegmentPool, "take", take_later)
        ours.arena.keep([b"small"])
        await first.heard(1)
        assert (seen, first.buffers) == ([[]], [b"\x07" * 100_000])
        first.buffers.clear()
        await close_both(one, first, other, second)
        ours.close()
        theirs.close()

    one = first = None
    run(main)


def test_what_is_sent_at_any_line_of_a_flush_stays_with_its_buffers():
    codes = {Link.flush.__code__, Link._write_batch.__code__}

    async def main(kind):
        one, first, other, second = kind.started_pair()
        lines = 0

        def flush_and_send_at(wanted):
            nonlocal lines
            lines = 0

            def trace(frame, event, _):
                nonlocal lines
                if frame.f_code not in codes:
                    return None
                if event == "line":
                    lines += 1
                    if lines == wanted:
                        sys.settrace(None)
                        one.send("a", [b"a"])
                        one.flush()
                return trace

            one.send("b", [b"b"])
            before = sys.gettrace()
            sys.settrace(trace)
            one.flush()
            sys.settrace(before)

        flush_and_send_at(0)
        for line in range(1, lines + 1):
            flush_and_send_at(line)
        await second.heard(2 * lines - 1)
        assert [str(buffer, "ascii") for buffer in second.buffers] == second.messages
        await close_both(one, first, other, second)

    _run(main, "socketpair")


def test_flush_writes_without_waiting_for_the_turn_to_end(run):
    async def main(kind):
        one, first, other, second = kind.started_pair()
        one.send(1)
        one.flush()
        one.send(2)
        await second.heard(2)
        assert second.frames == [[1], [2]]
        await close_both(one, first, other, second)

    run(main)


def test_what_is_sent_before_the_start_arrives(run):
    async def main(kind):
        one, other = kind.pair()
        one.send("early")
        other.send("early too", [b"buffer"])
        first, second = Recorder(), Recorder()
        one.start(first)
        await turns(10)
        other.start(second)
        assert await second.heard(1) == ["early"]
        assert await first.heard(1) == ["early too"]
        assert [bytes(buffer) for buffer in first.buffers] == [b"buffer"]
        await close_both(one, first, other, second)

    run(main)


def test_a_receiver_may_answer_at_once(run):
    async def main(kind):
        one, other = kind.pair()
        first = Recorder()

        class Echo(Recorder):
            def on_messages(self, messages, buffers):
                super().on_messages(messages, buffers)
                for message in messages:
                    other.send(message, buffers)

        second = Echo()
        one.start(first)
        other.start(second)
        for n in range(50):
            one.send(n, [bytes([n])])
            await first.heard(n + 1)
        assert first.messages == list(range(50))
        assert [bytes(buffer) for buffer in first.buffers] == [bytes([n]) for n in range(50)]
        await close_both(one, first, other, second)

    run(main)


# Buffers


@pytest.mark.parametrize(
    "sizes",
    [
        [0],
        [1],
        [0, 5, 0, 0, 70_000, 0],
        [65_535, 65_536, 65_537],
        [3_000_000, 1, 3_000_000],
        [10] * 10_000,
    ],
    ids=["empty", "one byte", "mixed", "around the threshold", "large", "ten thousand"],
)
def test_buffers_arrive_whole_in_order_and_read_only(run, sizes):
    sent = [bytes([n % 251]) * size for n, size in enumerate(sizes)]

    async def main(kind):
        one, first, other, second = kind.started_pair()
        one.send("before")
        one.send("with buffers", [memoryview(bytearray(data)) for data in sent])
        await asyncio.sleep(0)
        one.send("after")
        assert await second.heard(3) == ["before", "with buffers", "after"]
        assert [bytes(buffer) for buffer in second.buffers] == sent
        assert all(buffer.readonly for buffer in second.buffers)
        addresses = [numpy.frombuffer(buffer, numpy.uint8).ctypes.data for buffer in second.buffers if len(buffer)]
        assert all(address % 8 == 0 for address in addresses)  # for arrays of any type
        await close_both(one, first, other, second)

    run(main)


def test_a_buffer_of_many_dimensions_arrives_as_its_bytes(run):
    async def main(kind):
        one, first, other, second = kind.started_pair()
        one.send("grid", [memoryview(bytes(range(24))).cast("I", (2, 3))])
        await second.heard(1)
        assert [bytes(buffer) for buffer in second.buffers] == [bytes(range(24))]
        await close_both(one, first, other, second)

    run(main)


def test_received_buffers_outlive_the_link(run):
    async def main(kind):
        one, first, other, second = kind.started_pair()
        one.send("kept", [b"x" * 100_000])
        await second.heard(1)
        await close_both(one, first, other, second)
        return second.buffers[0]

    buffer = run(main)
    gc.collect()
    assert bytes(buffer) == b"x" * 100_000


@pytest.mark.parametrize("kind_name", KINDS)
def test_a_buffer_of_100_megabytes_arrives(kind_name):
    sent = os.urandom(1 << 20) * 100

    async def main(kind):
        one, first, other, second = kind.started_pair()
        one.send("large", [sent])
        await second.heard(1)
        assert second.buffers[0] == sent
        await close_both(one, first, other, second)

    _run(main, kind_name)


# Back-pressure


async def writable(link):
    if link.is_congested:
        waiter = asyncio.Event()
        link.when_writable(waiter.set)
        await waiter.wait()


def test_a_sender_that_heeds_congestion_is_bounded_by_a_peer_that_does_not_read(run):
    message = b"x" * 10_000

    async def main(kind):
        one, other = kind.pair()
        first, second = Recorder(), Recorder()
        one.start(first)
        sent = 0
        while not one.is_congested:
            one.send(message)
            sent += 1
            await asyncio.sleep(0)
            assert sent < 100_000, "never congested"
        assert one.pending_bytes <= HIGH_WATER_BYTES + 2 * len(message)
        calls = []
        one.when_writable(lambda: calls.append(one.is_congested))
        await turns(20)
        assert calls == []
        other.start(second)
        await second.heard(sent)
        await writable(one)
        assert calls == [False]
        await close_both(one, first, other, second)
        assert len(second.messages) == sent

    run(main)


def test_what_is_sent_in_one_turn_is_bounded_as_well(run):
    async def main(kind):
        one, other = kind.pair()
        first, second = Recorder(), Recorder()
        one.start(first)
        sent = 0
        while not one.is_congested:
            one.send(b"x" * 10_000)
            sent += 1
            assert sent < 10_000, "never congested"
        other.start(second)
        await second.heard(sent)
        await close_both(one, first, other, second)
        assert second.messages == [b"x" * 10_000] * sent

    run(main)


def test_when_writable_is_soon_on_a_link_that_is_not_congested(run):
    async def main(kind):
        one, first, other, second = kind.started_pair()
        calls = []
        one.when_writable(lambda: calls.append(1))
        assert calls == []
        await turns(2)
        assert calls == [1]
        withdraw = one.when_writable(lambda: calls.append(2))
        withdraw()
        await turns(2)
        assert calls == [1]
        await close_both(one, first, other, second)

    run(main)


def congest(link):
    """Send until the link is congested; the peer does not read."""
    sent = 0
    while not link.is_congested:
        link.send(sent, [b"x" * 100_000])
        link.flush()
        sent += 1
    return sent


def test_a_withdrawn_when_writable_is_not_called(run):
    async def main(kind):
        one, other = kind.pair()
        first, second = Recorder(), Recorder()
        one.start(first)
        sent = congest(one)
        calls = []
        withdraw = one.when_writable(lambda: calls.append("withdrawn"))
        one.when_writable(lambda: calls.append("kept"))
        withdraw()
        withdraw()
        other.start(second)
        await second.heard(sent)
        await writable(one)
        assert calls == ["kept"]
        await close_both(one, first, other, second)

    run(main)


def test_those_who_wait_to_write_are_told_when_the_link_is_gone(run):
    async def main(kind):
        one, other = kind.pair()
        first = Recorder()
        one.start(first)
        congest(one)
        calls = []
        one.when_writable(lambda: calls.append(one.state))
        one.abort(ConnectionLost("enough"))
        await first.gone()
        assert calls == [LinkState.GONE]
        assert one.pending_bytes == 0
        other.abort(None)

    run(main)


@pytest.mark.parametrize("kind_name", KINDS)
def test_a_million_small_messages_arrive_in_order(kind_name):
    count = 1_000_000

    class Checker(Recorder):
        expected = 0

        def on_messages(self, messages, buffers):
            assert messages == list(range(self.expected, self.expected + len(messages)))
            self.expected += len(messages)
            self._changed.set()

    async def main(kind):
        one, other = kind.pair()
        first, second = Recorder(), Checker()
        one.start(first)
        other.start(second)
        most_pending = 0
        for n in range(count):
            one.send(n)
            if n % 1000 == 0:
                await asyncio.sleep(0)
                most_pending = max(most_pending, one.pending_bytes)
                await writable(one)
        await second.until(lambda: second.expected == count or bool(second.ends))
        assert second.expected == count
        assert most_pending < 2 * HIGH_WATER_BYTES
        await close_both(one, first, other, second)

    _run(main, kind_name)


# The end


def test_an_orderly_close_delivers_what_was_sent_and_ends_both_sides(run):
    async def main(kind):
        one, first, other, second = kind.started_pair()
        for n in range(100):
            one.send(n, [b"x" * 50_000])
        one.close()
        assert await second.gone() is None
        assert await first.gone() is None
        assert second.messages == list(range(100))
        assert len(second.buffers) == 100
        assert one.state is other.state is LinkState.GONE

    run(main)


def test_what_the_other_side_has_sent_before_it_hears_of_the_close_arrives(run):
    async def main(kind):
        one, first, other, second = kind.started_pair()
        one.send("ready")
        await second.heard(1)
        other.send("crossing")
        one.close()
        assert await first.gone() is None
        assert await second.gone() is None
        assert first.messages == ["crossing"]

    run(main)


def test_a_close_while_congested_delivers_everything(run):
    async def main(kind):
        one, other = kind.pair()
        first, second = Recorder(), Recorder()
        one.start(first)
        sent = congest(one)
        one.close()
        await turns(5)
        assert first.ends == []
        other.start(second)
        assert await second.gone() is None
        assert await first.gone() is None
        assert second.messages == list(range(sent))

    run(main)


def test_both_sides_may_close_at_once_while_both_are_congested(run):
    async def main(kind):
        one, other = kind.pair()
        first, second = Recorder(), Recorder()
        one.start(first)
        other.start(second)
        for n in range(40):
            one.send(n, [b"x" * 100_000])
            other.send(n, [b"y" * 100_000])
        one.close()
        other.close()
        assert await first.gone() is None
        assert await second.gone() is None
        assert first.messages == second.messages == list(range(40))

    run(main)


def test_nothing_can_be_sent_on_a_link_that_closes_or_is_gone(run):
    async def main(kind):
        one, first, other, second = kind.started_pair()
        one.close()
        with pytest.raises(ConnectionLost):
            one.send(1)
        await first.gone()
        await second.gone()
        for link in one, other:
            assert not link.is_open
            with pytest.raises(ConnectionLost):
                link.send(1)
            link.close()
            link.abort(ConnectionLost("again"))
            link.flush()
        await turns(3)
        assert first.ends == second.ends == [None]

    run(main)


def test_an_abort_is_heard_with_its_reason_here_and_as_a_loss_there(run):
    async def main(kind):
        one, first, _, second = kind.started_pair()
        one.send(1)
        await second.heard(1)
        reason = ConnectionLost("enough of it")
        one.abort(reason)
        one.abort(ConnectionLost("another reason"))
        assert first.ends == []  # never from within the call
        assert await first.gone() is reason
        assert isinstance(await second.gone(), ConnectionLost)

    run(main)


def test_an_abort_from_within_on_messages_ends_the_delivery(run):
    async def main(kind):
        one, other = kind.pair()
        first = Recorder()

        class Aborting(Recorder):
            def on_messages(self, messages, buffers):
                super().on_messages(messages, buffers)
                other.abort(ConnectionLost("seen enough"))

        second = Aborting()
        one.start(first)
        other.start(second)
        for n in range(5):
            one.send(n)
            one.flush()
        assert "seen enough" in str(await second.gone())
        assert second.messages == [0]
        await first.gone()

    run(main)


def test_a_close_from_within_on_messages_is_orderly(run):
    async def main(kind):
        one, other = kind.pair()
        first = Recorder()

        class Closing(Recorder):
            def on_messages(self, messages, buffers):
                super().on_messages(messages, buffers)
                other.send("bye")
                other.close()

        second = Closing()
        one.start(first)
        other.start(second)
        one.send("hello")
        assert await first.gone() is None
        assert await second.gone() is None
        assert first.messages == ["bye"]

    run(main)


@pytest.mark.parametrize("way", ["close", "abort"])
def test_a_link_that_was_never_started_releases_what_it_holds(run, way):
    async def main(kind):
        one, other = kind.pair()
        one.send("never heard")
        for link in one, other:
            link.close() if way == "close" else link.abort(ConnectionLost("never"))
            assert link.state is LinkState.GONE

    run(main)


def test_the_peer_of_a_link_that_is_dropped_before_it_starts_is_told(run):
    async def main(kind):
        if kind.name == "zeromq":
            pytest.skip("who never connected cannot be missed without a lifeline")
        one, other = kind.pair()
        first = Recorder()
        one.start(first)
        await turns(3)
        other.close()
        assert isinstance(await first.gone(), ConnectionLost)

    run(main)


# Trouble


class Unreadable(AnyCodec):
    def decode(self, envelope):
        messages = super().decode(envelope)
        if "poison" in messages:
            raise ValueError("not a message of ours")
        return messages


def test_an_envelope_that_cannot_be_decoded_ends_the_link(run):
    async def main(kind):
        one, first, _, second = kind.started_pair(Unreadable())
        one.send("good")
        await second.heard(1)
        one.send("poison")
        lost = await second.gone()
        assert isinstance(lost, ConnectionLost)
        assert "not a message of ours" in str(lost)
        assert isinstance(await first.gone(), ConnectionLost)
        assert second.messages == ["good"]

    run(main)


# Between real processes


@pytest.fixture(params=BETWEEN_PROCESSES)
def in_processes(request):
    return lambda main: _run(main, request.param)


_ECHO = """
recorder.on_messages = lambda messages, buffers: [link.send(message, buffers) for message in messages]
await recorder.gone()
"""


def test_a_child_process_answers(in_processes):
    async def main(kind):
        link, child = kind.with_child(_ECHO)
        recorder = Recorder()
        link.start(recorder)
        for n in range(20):
            link.send(n, [b"x" * 10 ** (n % 7)])
            await recorder.heard(n + 1)
        assert recorder.messages == list(range(20))
        assert [len(buffer) for buffer in recorder.buffers] == [10 ** (n % 7) for n in range(20)]
        link.close()
        assert await recorder.gone() is None
        assert child.wait(10) == 0

    in_processes(main)


def test_a_peer_that_is_killed_is_gone_after_all_that_it_said(in_processes):
    async def main(kind):
        link, child = kind.with_child("""
for n in range(100):
    link.send(n, [b"x" * 1000])
    link.flush()
await recorder.heard(1)
os.kill(os.getpid(), signal.SIGKILL)
""")
        recorder = Recorder()
        link.start(recorder)
        await recorder.heard(100)
        link.send("now")
        assert isinstance(await recorder.gone(), ConnectionLost)
        assert recorder.messages == list(range(100))
        assert child.wait(10) == -signal.SIGKILL

    in_processes(main)


def test_a_peer_that_is_killed_while_it_does_not_read_frees_a_congested_sender(in_processes):
    async def main(kind):
        link, child = kind.with_child("""
link.send("deaf from now on")
link.flush()
signal.pause()
""")
        recorder = Recorder()
        link.start(recorder)
        await recorder.heard(1)
        while not link.is_congested:
            link.send("more", [b"x" * 100_000])
            await asyncio.sleep(0)
        freed = asyncio.Event()
        link.when_writable(freed.set)
        child.kill()
        await freed.wait()
        assert isinstance(await recorder.gone(), ConnectionLost)

    in_processes(main)


def test_a_peer_that_is_killed_in_the_middle_of_a_large_frame_is_gone(in_processes):
    async def main(kind):
        link, _ = kind.with_child("""
link.send("whole")
link.flush()
await recorder.heard(1)
link.send("torn", [bytes(64 << 20)])
link.flush()
os.kill(os.getpid(), signal.SIGKILL)
""")
        recorder = Recorder()
        link.start(recorder)
        await recorder.heard(1)
        link.send("now")
        assert isinstance(await recorder.gone(), ConnectionLost)
        assert recorder.messages == ["whole"]

    in_processes(main)


def test_a_peer_that_exits_after_an_orderly_close_has_lost_nothing(in_processes):
    async def main(kind):
        link, child = kind.with_child("""
for n in range(50):
    link.send(n, [b"x" * 20_000])
link.close()
assert await recorder.gone() is None
""")
        recorder = Recorder()
        link.start(recorder)
        assert await recorder.gone() is None
        assert recorder.messages == list(range(50))
        assert child.wait(10) == 0

    in_processes(main)


def test_a_peer_that_exits_without_a_word_is_a_loss(in_processes):
    async def main(kind):
        link, _ = kind.with_child("""
link.send("last words")
link.flush()
await recorder.heard(1)
os._exit(0)
""")
        recorder = Recorder()
        link.start(recorder)
        await recorder.heard(1)
        link.send("now")
        assert isinstance(await recorder.gone(), ConnectionLost)

    in_processes(main)


def test_a_close_towards_a_peer_that_was_killed_ends(in_processes):
    async def main(kind):
        link, child = kind.with_child("signal.pause()")
        recorder = Recorder()
        link.start(recorder)
        child.kill()
        child.wait()
        link.close()
        await recorder.gone()

    in_processes(main)


def test_a_link_whose_loop_is_closed_can_be_abandoned_and_tells_nobody(loop_kind, kind_name):
    async def begin():
        kind = KINDS[kind_name]()
        one, first, other, second = kind.started_pair()
        for _ in range(100):
            one.send("never read", [bytes(1 << 20)])
        other.close()
        unstarted, _ = links = kind.pair()
        unstarted.send("never sent")
        return kind, [one, other, *links], [first, second]

    loop = asyncio.new_event_loop() if loop_kind == "asyncio" else new_event_loop()
    kind, links, receivers = loop.run_until_complete(begin())
    loop.close()
    for link in links:
        link.abandon()
        link.abandon()
        assert link.state is LinkState.GONE
        assert not link.has_unsent
    kind.close()
    assert [receiver.ends for receiver in receivers] == [[], []]


def _interrupted_at(call, kind_name):
    """Abort a link, interrupted at this one of the calls within, and abandon it; returns how many there are, and it."""
    seen = 0

    def count(frame, event, argument):
        nonlocal seen
        if event.endswith("call"):
            seen += 1
            if seen == call:
                raise KeyboardInterrupt

    async def begin():
        kind = KINDS[kind_name]()
        one, _, other, _ = kind.started_pair()
        one.send("something")
        with contextlib.suppress(KeyboardInterrupt):
            sys.setprofile(count)
            try:
                one.abort(None)
            finally:
                sys.setprofile(None)
        return kind, one, other

    loop = new_event_loop()
    kind, one, other = loop.run_until_complete(begin())
    loop.close()
    one.abandon()
    other.abandon()
    kind.close()
    return seen, one


@pytest.mark.parametrize("kind_name", BETWEEN_PROCESSES)
def test_a_link_whose_end_was_cut_short_at_any_call_is_released_when_it_is_abandoned(kind_name):
    calls, _ = _interrupted_at(0, kind_name)
    assert calls > 5
    before = set(os.listdir("/proc/self/fd"))
    for call in range(1, calls):  # the last one stops the counting
        _, one = _interrupted_at(call, kind_name)
        assert set(os.listdir("/proc/self/fd")) == before, (call, one)
