"""What is ordered between domains: whoever hears that an add is done finds the item, wherever the homes are.

The stream's home is this process. One domain adds to it and tells another, by an object whose home is one of the two.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from domains import Mutex, Promise, Resolver, Semaphore, Stream, Switch, fiber

from . import moments
from .remote import in_pool


class Signals(NamedTuple):
    """By what one domain may let another know."""

    mutex: Mutex
    semaphore: Semaphore
    promise: Promise[None]
    resolver: Resolver[None]

    @classmethod
    def make(cls) -> Signals:
        return cls(Mutex(), Semaphore(1), *Promise[None].create())


Tell = Callable[[Signals], object]
TELLS: dict[str, Tell] = {
    "unlocks": lambda signals: signals.mutex.unlock(),
    "releases": lambda signals: signals.semaphore.release(),
    "resolves": lambda signals: signals.resolver.resolve(None),
    "fails": lambda signals: signals.resolver.fail(ValueError("told")),
}


async def add_and_tell(
    stream: Stream[int], how: str, where: str, theirs: Promise[Signals], ours: Resolver[Signals], heard: Promise[None]
) -> tuple[bool, bool]:
    """Whether something was on its way that is not known to have arrived: before it told the other, and after that."""
    mine = Signals.make()
    ours.resolve(mine)
    signals = mine if where == "here" else await theirs
    await signals.mutex.lock()
    await signals.semaphore.acquire()
    await stream.add(0)
    while not (mine.semaphore._waiters and mine.promise._first) and where == "here":
        await fiber.yield_now()  # until the other listens
    for number in range(1, 5):
        await stream.add(number)
    posted = moments.registry().calls._posted
    before = bool(posted)
    TELLS[how](signals)
    after = bool(posted)
    await heard
    if how != "unlocks":
        signals.mutex.unlock()
    if how != "releases":
        signals.semaphore.release()
    signals.resolver.try_resolve(None)
    del mine, signals
    gc.collect()
    return before, after


async def listen(
    stream: Stream[int], how: str, where: str, ours: Resolver[Signals], theirs: Promise[Signals], say: Resolver[None]
) -> int | None:
    mine = Signals.make()
    ours.resolve(mine)
    signals = await theirs if where == "here" else mine
    while not len(stream):
        await fiber.yield_now()  # until the other has what it is to give back
    async with Switch() as switch:
        heard = {"releases": switch.fork_promise(signals.semaphore.acquire)}
        heard["resolves"] = heard["fails"] = switch.fork_promise(await_outcome, signals.promise)
        if how == "unlocks":
            await signals.mutex.lock()
            signals.mutex.unlock()
        else:
            await heard[how]
        first = stream.take_nonblocking()
        say.resolve(None)
    return first


async def await_outcome(promise: Promise[None]) -> None:
    with contextlib.suppress(ValueError):
        await promise


@pytest.mark.parametrize("where", ["here", "there"])
@pytest.mark.parametrize("how", TELLS)
def test_who_is_told_that_items_were_added_finds_them(how: str, where: str, link: str) -> None:  # S71
    async def main(pool: Any) -> None:
        stream: Stream[int] = Stream(20)
        async with pool._manager.spawn() as one, pool._manager.spawn() as two, Switch() as switch:
            mine, hand_out_mine = Promise[Signals].create()
            theirs, hand_out_theirs = Promise[Signals].create()
            heard, say = Promise[None].create()
            adding = switch.fork_promise(one.call, add_and_tell, stream, how, where, theirs, hand_out_mine, heard)
            first = await two.call(listen, stream, how, where, hand_out_theirs, mine, say)
            assert first == 0
            assert await adding == (True, False)
        while len(stream):
            await stream.take()

    in_pool(main, link)


async def add_and_return(stream: Stream[int]) -> None:
    for number in range(5):
        await stream.add(number)


def test_a_result_comes_behind_what_was_added_to_the_parents_streams(link: str) -> None:  # S71
    async def main(pool: Any) -> None:
        stream: Stream[int] = Stream(20)
        for _ in range(20):
            await pool.submit(add_and_return, stream, weight=0.1)
            assert [stream.take_nonblocking() for _ in range(5)] == list(range(5))
            assert not len(stream)

    in_pool(main, link)


async def pass_on(source: Stream[int], target: Stream[int]) -> None:
    fences = 0
    calls = moments.registry().calls
    begin = calls.begin

    def count(target: Any, operation: str, args: Any) -> Any:
        nonlocal fences
        fences += operation == "fence"
        return begin(target, operation, args)

    calls.begin = count  # type: ignore[method-assign]
    async for number in source:
        await target.add(number)
    del calls.begin
    assert not fences


async def make_stream() -> Stream[int]:
    return Stream(100)


def test_items_pass_from_one_home_to_another_without_waiting_for_each_other(link: str) -> None:
    async def main(pool: Any) -> None:
        source: Stream[int] = Stream(50)
        async with pool._manager.spawn() as one, pool._manager.spawn() as two:
            target = await one.call(make_stream)
            for number in range(50):
                await source.add(number)
            source.close()
            await two.call(pass_on, source, target)
            assert [await target.take() for _ in range(50)] == list(range(50))

    in_pool(main, link)
