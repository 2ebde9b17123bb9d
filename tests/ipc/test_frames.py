"""The frame reader takes anything, and gives either what was sent or FrameCorrupt."""

import functools
import resource
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.ipc.frames import (
    MOST_BUFFER_BYTES,
    MOST_BUFFERS,
    MOST_ENVELOPE_BYTES,
    FrameCorrupt,
    FrameReader,
    byte_view,
    frame_header,
    read_frame,
)

_frames = st.lists(
    st.tuples(
        st.binary(max_size=300),
        st.lists(st.binary(max_size=200) | st.integers(0, 3).map(lambda n: bytes(65_534 + n)), max_size=5),
    ),
    max_size=6,
)


def encode(envelope, buffers=()):
    views = [byte_view(buffer) for buffer in buffers]
    return b"".join([frame_header(envelope, views), envelope, *views])


def put(piece, space):
    """Receive as much of a piece as there is space for."""
    assert len(space) > 0
    count = min(len(space), len(piece))
    space[:count] = piece[:count]
    return count


def read_in_pieces(reader, data, sizes):
    """Give the stream to the reader as a socket would, in pieces of these sizes over and over."""
    frames, position, turn = [], 0, 0
    while position < len(data):
        piece = data[position : position + sizes[turn % len(sizes)]]
        turn += 1
        position += reader.receive(functools.partial(put, piece))
        frames += [
            (bytes(envelope), [bytes(buffer) for buffer in buffers]) for envelope, buffers in iter(reader.take, None)
        ]
    return frames


@settings(deadline=None)
@given(_frames, st.lists(st.integers(1, 100_000), min_size=1, max_size=8), st.sampled_from([16, 64, 1000, 1 << 18]))
def test_a_stream_in_pieces_of_any_size_gives_the_frames_that_were_sent(frames, sizes, piece_bytes):
    data = b"".join(encode(*frame) for frame in frames)
    reader = FrameReader(piece_bytes)
    assert read_in_pieces(reader, data, [size for size in sizes if size > 20] or [1000]) == frames
    assert not reader.is_inside


@settings(deadline=None)
@given(st.binary(max_size=60), st.lists(st.binary(max_size=20), max_size=3))
def test_a_stream_byte_by_byte_gives_the_frames_that_were_sent(envelope, buffers):
    assert read_in_pieces(FrameReader(16), encode(envelope, buffers) * 2, [1]) == [(envelope, buffers)] * 2


@settings(deadline=None)
@given(_frames.filter(bool), st.data())
def test_a_stream_cut_anywhere_gives_only_whole_frames_and_says_that_it_was_inside(frames, data):
    whole = b"".join(encode(*frame) for frame in frames)
    cut = data.draw(st.integers(0, len(whole) - 1))
    reader = FrameReader(64)
    arrived = read_in_pieces(reader, whole[:cut], [5000])
    assert arrived == frames[: len(arrived)]
    ends = [sum(len(encode(*frame)) for frame in frames[:n]) for n in range(len(frames) + 1)]
    assert reader.is_inside == (cut not in ends)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=2000))
def test_random_bytes_are_corrupt_or_wait_for_more(data):
    reader = FrameReader(64)
    try:
        assert read_in_pieces(reader, data, [100]) == []
    except FrameCorrupt:
        return
    assert len(data) < 16


@settings(deadline=None, max_examples=300)
@given(st.binary(min_size=1, max_size=100), st.lists(st.binary(max_size=30), max_size=3), st.data())
def test_one_wrong_bit_in_what_is_decoded_is_noticed(envelope, buffers, data):
    whole = bytearray(encode(envelope, buffers))
    checked = 16 + 8 * len(buffers) + len(envelope)
    whole[data.draw(st.integers(0, checked - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(FrameCorrupt):
        read_in_pieces(FrameReader(64), bytes(whole), [100])


def header(envelope_bytes=0, count=0, checksum=0, magic=b"dm", version=2):
    check = (7 * envelope_bytes + 13 * count + checksum) % 255
    return struct.pack("!2sBBIII", magic, version, check, envelope_bytes, count, checksum)


def test_more_than_there_is_memory_for_is_corrupt():
    lengths = struct.pack("!Q", MOST_BUFFER_BYTES)
    data = header(0, 1, zlib.crc32(b"", zlib.crc32(lengths))) + lengths
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 36, before[1]))  # else the system may promise it all the same
    try:
        with pytest.raises(FrameCorrupt, match="memory"):
            read_in_pieces(FrameReader(), data, [1000])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(
    "data",
    [
        header(magic=b"md"),
        header(version=3),
        header(version=1),
        header(envelope_bytes=MOST_ENVELOPE_BYTES + 1),
        header(count=MOST_BUFFERS + 1),
        header(envelope_bytes=1, checksum=1) + b"x",
        bytes(16),
        b"\xff" * 16,
    ],
    ids=range(8),
)
def test_a_header_that_is_wrong_is_corrupt(data):
    with pytest.raises(FrameCorrupt):
        read_in_pieces(FrameReader(), data, [1000])


def test_a_buffer_beyond_the_limit_takes_no_memory():
    lengths = struct.pack("!Q", MOST_BUFFER_BYTES + 1)
    data = header(0, 1, zlib.crc32(b"", zlib.crc32(lengths))) + lengths
    with pytest.raises(FrameCorrupt, match="limits"):
        read_in_pieces(FrameReader(), data, [1000])


def test_what_is_announced_takes_no_memory_before_it_comes():
    lengths = struct.pack("!Q", 1 << 33)
    buffer = header(0, 1, zlib.crc32(b"", zlib.crc32(lengths))) + lengths
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in buffer + b"x" * 1000, header(MOST_ENVELOPE_BYTES) + b"x" * 1000:
        reader = FrameReader()
        assert read_in_pieces(reader, data, [10_000]) == []
        assert reader.is_inside
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18  # in KiB


def test_a_huge_buffer_arrives():
    data = encode(b"x", [bytes(1 << 24), b"y" * (1 << 20)])
    (frame,) = read_in_pieces(FrameReader(), data, [1 << 30])
    assert frame == (b"x", [bytes(1 << 24), b"y" * (1 << 20)])


def test_a_reader_keeps_no_more_than_it_needs_after_many_frames():
    reader = FrameReader(1 << 16)
    data = encode(b"x" * 1000, [b"y" * 100, b"z" * 70_000]) * 10
    read_in_pieces(reader, data, [50_000])
    tracemalloc.start()
    try:
        for _ in range(20):
            read_in_pieces(reader, data, [50_000])
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 200_000


@pytest.mark.parametrize(("large_bytes", "others"), [(1 << 23, 8), (1 << 24, 0)])
def test_a_reader_gives_back_what_a_large_envelope_needed_once_none_needs_it(large_bytes, others):
    reader = FrameReader()
    large, small = encode(b"x" * large_bytes, []), encode(b"y", [])
    tracemalloc.start()
    try:
        assert len(read_in_pieces(reader, large, [1 << 20])) == 1
        for _ in range(others):
            assert read_in_pieces(reader, small, [100]) == [(b"y", [])]
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1 << 21
    assert read_in_pieces(reader, small, [100]) == [(b"y", [])]


@pytest.mark.parametrize("buffers", [[], [bytes(1 << 17)]])
def test_a_reader_of_one_large_envelope_after_another_takes_memory_for_the_first_alone(buffers):
    reader = FrameReader()
    data = encode(b"x" * (3 << 20), buffers)
    read_in_pieces(reader, data, [1 << 20])
    received_into = reader._piece
    for _ in range(3):
        read_in_pieces(reader, encode(b"y", []) + data, [1 << 20])
        assert reader._piece is received_into


def test_an_envelope_beyond_the_limit_is_refused_by_the_sender():
    class Huge(bytes):
        def __len__(self):
            return MOST_ENVELOPE_BYTES + 1

    with pytest.raises(ValueError, match="too large"):
        frame_header(Huge(), [])


def test_more_buffers_than_a_frame_takes_are_refused_by_the_sender():
    with pytest.raises(ValueError, match="too large"):
        frame_header(b"x", [memoryview(b"")] * (MOST_BUFFERS + 1))


def whole(envelope, buffers):
    views = [memoryview(buffer) for buffer in buffers]
    return b"".join((frame_header(envelope, views), envelope, *buffers))


@settings(deadline=None)
@given(st.binary(max_size=100), st.lists(st.binary(max_size=50), max_size=4))
def test_a_frame_that_came_whole_is_read_at_once(envelope, buffers):
    frame = read_frame(memoryview(bytearray(whole(envelope, buffers))))
    assert frame[0] == envelope
    assert [bytes(buffer) for buffer in frame[1]] == buffers
    assert all(buffer.readonly for buffer in frame[1])


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_random_bytes_are_no_whole_frame(data):
    with pytest.raises(FrameCorrupt):
        read_frame(memoryview(data))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.lists(st.binary(max_size=20), max_size=3), st.data())
def test_a_whole_frame_that_is_cut_or_longer_is_noticed(envelope, buffers, data):
    sent = whole(envelope, buffers)
    changed = sent[: data.draw(st.integers(0, len(sent) - 1))] if data.draw(st.booleans()) else sent + b"x"
    with pytest.raises(FrameCorrupt):
        read_frame(memoryview(changed))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.lists(st.binary(max_size=20), max_size=3), st.data())
def test_one_wrong_bit_in_the_head_of_a_whole_frame_is_noticed(envelope, buffers, data):
    sent = bytearray(whole(envelope, buffers))
    position = data.draw(st.integers(0, len(sent) - sum(map(len, buffers)) - 1))
    sent[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(FrameCorrupt):
        read_frame(memoryview(bytes(sent)))
