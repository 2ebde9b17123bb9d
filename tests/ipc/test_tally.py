"""Tallies: what was claimed counts exactly once, whenever the lot is closed and whoever is killed."""

from __future__ import annotations

import gc
import os
import random
import signal
import struct
from collections.abc import Callable, Iterator

import pytest

from domains.ipc.tally import Tally

_TWO = struct.Struct("=II")


@pytest.fixture
def tally() -> Iterator[Tally]:
    made = Tally.create()
    yield made
    made.release()
    del made._page, made._fields  # pytest keeps the tally
    gc.collect()


def test_claims_of_an_open_lot_count(tally: Tally) -> None:
    taker = Tally.attach(tally.descriptor)
    lot = tally.open()
    assert tally.count == 0
    assert taker.claim(lot, 1)
    assert taker.claim(lot, 2)
    assert tally.count == 2
    assert tally.close() == 2


def test_a_claim_of_a_closed_lot_is_known_to_be_doubtful_and_does_not_count_for_the_next(tally: Tally) -> None:
    taker = Tally.attach(tally.descriptor)
    lot = tally.open()
    assert tally.close() == 0
    assert not taker.claim(lot, 1)
    following = tally.open()
    assert not taker.claim(lot, 2)
    assert tally.count == 0
    assert taker.claim(following, 1)
    assert tally.count == 1
    tally.close()


def test_it_is_watched_until_the_next_lot(tally: Tally) -> None:
    taker = Tally.attach(tally.descriptor)
    lot = tally.open()
    assert taker.claim(lot, 1)
    tally.watch()
    assert not taker.claim(lot, 2)
    assert taker.is_open(lot)
    assert taker.is_watched
    assert tally.close() == 2
    assert not taker.is_open(lot)
    assert not taker.is_watched
    following = tally.open()
    assert taker.claim(following, 1)
    assert not taker.is_watched
    tally.close()


def test_what_is_released_is_given_away_again_and_empty() -> None:
    first = Tally.create()
    others = [Tally.create() for _ in range(1000)]  # more than fit on a page
    assert len({tally.descriptor for tally in (first, *others)}) == 1001
    lot = first.open()
    first.claim(lot, 5)
    descriptor = first.descriptor
    first.release()
    again = [Tally.create() for _ in range(1000)]
    (same,) = [tally for tally in again if tally.descriptor == descriptor]
    assert same.open() == lot
    assert same.count == 0


def in_child(tally: Tally, act: Callable[[Tally, int, int], None]) -> tuple[int, int, int]:
    """Run `act(tally, read, write)` in a forked process; returns its number, and pipes from it and to it."""
    read, theirs = os.pipe()
    ours, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(read)
            os.close(write)
            act(Tally.attach(tally.descriptor), ours, theirs)
        finally:
            os._exit(0)
    os.close(theirs)
    os.close(ours)
    return pid, read, write


def claim_until_closed(tally: Tally, read: int, write: int) -> None:
    """For each lot that is told: how many claims found it open, and how many there were."""
    while told := os.read(read, 4):
        (lot,) = struct.unpack("=I", told)
        count = 1
        while tally.claim(lot, count):
            count += 1
        os.write(write, _TWO.pack(count - 1, count))


def test_whenever_a_lot_is_closed_claims_that_found_it_open_count_and_others_at_most_once(tally: Tally) -> None:
    pid, read, write = in_child(tally, claim_until_closed)
    draw = random.Random(1)
    doubtful = 0
    for _ in range(500):
        lot = tally.open()
        os.write(write, struct.pack("=I", lot))
        for _ in range(draw.randrange(2000)):
            tally.count  # noqa: B018  to let time pass
        final = tally.close()
        found_open, claimed = _TWO.unpack(os.read(read, _TWO.size))
        assert found_open <= final <= claimed == found_open + 1
        assert tally.count == claimed or final == claimed  # the last claim may be later than the close
        doubtful += final == claimed
    os.close(write)
    os.waitpid(pid, 0)
    os.close(read)
    assert doubtful < 500


def claim_and_say(tally: Tally, read: int, write: int) -> None:
    (lot,) = struct.unpack("=I", os.read(read, 4))
    count = 0
    while True:
        count += 1
        tally.claim(lot, count)
        os.write(write, struct.pack("=I", count))


def test_of_a_taker_that_is_killed_it_is_known_what_it_had(tally: Tally) -> None:
    for _ in range(20):
        pid, read, write = in_child(tally, claim_and_say)
        lot = tally.open()
        os.write(write, struct.pack("=I", lot))
        os.read(read, 4)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        said = 1
        while data := os.read(read, 4):
            (said,) = struct.unpack("=I", data)
        assert said <= tally.close() <= said + 1
        os.close(read)
        os.close(write)


def test_a_tally_of_a_dead_process_cannot_be_attached_to() -> None:
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(write, Tally.create().descriptor)
        os._exit(0)
    os.waitpid(pid, 0)
    descriptor = os.read(read, 1000)
    os.close(read)
    os.close(write)
    with pytest.raises(OSError, match=r"."):
        Tally.attach(descriptor)
