"""A stream under random adds, takes, cancellations, time-outs, closing: each item leaves once, in order, or stays."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from domains import Closed, Stream
from domains.scheduler.clock import sleep

from .interleaving import Interleaving, play, programs, thorough

NOTHING = object()


@thorough
@given(
    st.integers(0, 3),
    programs("add", "take", "add", "take", "add_nonblocking", "take_nonblocking"),
    st.booleans(),
)
def test_every_item_of_a_completed_add_is_taken_once_in_order_or_still_there(
    capacity: int, steps: list[tuple[Any, ...]], close: bool
) -> None:  # S39 S40 S41 S42
    stream: Stream[int] = Stream(capacity)
    entered: list[int] = []  # what went in without waiting, in order
    left: list[int] = []  # what nonblocking calls took

    def begin(interleaving: Interleaving, step: tuple[Any, ...]) -> None:
        kind, seconds, _ = step
        if kind == "add":
            interleaving.begin("add", stream.add, seconds)
        elif kind == "take":
            interleaving.begin("take", lambda _: stream.take(), seconds)
        elif kind == "add_nonblocking":
            number = 1000 + len(entered)
            if stream.add_nonblocking(number):
                entered.append(number)
        else:
            item = stream.take_nonblocking()
            if item is not None:
                left.append(item)

    async def finish(interleaving: Interleaving) -> None:
        await sleep(10)
        if close:
            stream.close()
        else:
            interleaving.cancel_all()
        await sleep(10)
        assert all(operation.state != "running" for operation in interleaving.begun)
        remaining = []
        while not stream.is_empty:
            remaining.append(stream.take_nonblocking())
        taken = [operation.value for operation in interleaving.done("take")]
        added = [operation.number for operation in interleaving.done("add")]
        assert sorted(taken + left + remaining) == sorted(added + entered), interleaving.begun
        # Those who take are served in the order of their takes.
        served = [operation.value for operation in interleaving.begun if operation in interleaving.done("take")]
        assert [item for item in served if item < 1000] == sorted(item for item in served if item < 1000)
        for operation in interleaving.begun:
            if operation.state == "failed":
                assert close
                assert isinstance(operation.error, Closed)

    play(steps, begin, finish)
