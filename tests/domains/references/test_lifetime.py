"""What was sent to another domain and dropped there leaves nothing behind, on either side, however often."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from domains import DomainDied, DomainsError, Mutex, NotPicklable, Promise, Resolver, Semaphore, Stream, Switch, timeout

from . import moments
from .remote import Opens, in_pool, turns
from .test_backpressure import MEGABYTE, peak_bytes

AT_ONCE = 500
_globals: list[Any] = []


async def drop(*things: Any) -> None:
    """Gets references, and forgets them."""


async def touch(*things: Any) -> None:
    """Asks them something first."""
    for thing in things:
        if isinstance(thing, Promise):
            assert not thing.is_resolved
        else:
            repr(thing)


async def tables() -> tuple[int, int, int, int]:
    """What this domain knows of others' objects, others of its, and what is on its way."""
    gc.collect()
    await asyncio.sleep(0)
    references = moments.registry()
    return (
        len(references._imports),
        len(references.exports),
        len(references._holds),
        len(references.calls._pending) + len(references.calls.served),
    )


async def until_empty(domain: Any, left: int = 0) -> None:
    """Wait for the last releases: each round trip lets what is under way arrive."""
    for _ in range(1000):
        if (await domain.call(tables))[0] == left:
            return
    raise AssertionError(await domain.call(tables))


async def peak() -> int:
    return peak_bytes()


def send_and_drop(count: int, make: Callable[[], Any], use: Callable[..., Any], link: str) -> None:
    async def main(pool: Any) -> None:
        references = pool._manager.references
        async with pool._manager.spawn() as domain:
            early = (0, 0)
            for begun in range(0, count, AT_ONCE):
                await domain.call(use, *[make() for _ in range(AT_ONCE)])
                if begun == count // 5 // AT_ONCE * AT_ONCE:
                    early = peak_bytes(), await domain.call(peak)
            await until_empty(domain)
            assert await domain.call(tables) == (0, 0, 0, 0)
            assert not references.exports
            assert not references._holds
            assert not references._by_identity
            late = peak_bytes(), await domain.call(peak)
            assert all(now - then < 8 * MEGABYTE for then, now in zip(early, late, strict=True)), (early, late)

    in_pool(main, link)


def promise() -> Promise[Any]:
    return Promise[Any].create()[0]


def resolver() -> Resolver[Any]:
    return Promise[Any].create()[1]


def stream() -> Stream[Any]:
    return Stream(1)


def semaphore() -> Semaphore:
    return Semaphore(1)


@pytest.mark.parametrize("use", [drop, touch])
def test_promises_that_were_sent_and_dropped_leave_nothing(link: str, use: Any) -> None:
    send_and_drop(20_000, promise, use, link)


@pytest.mark.parametrize("make", [resolver, stream, semaphore, Mutex])
def test_other_objects_that_were_sent_and_dropped_leave_nothing(make: Callable[[], Any]) -> None:
    send_and_drop(10_000, make, drop, "socketpair")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_million_promises_that_were_sent_and_dropped_leave_nothing() -> None:
    send_and_drop(1_000_000, promise, drop, "socketpair")


async def make_many(count: int) -> list[Any]:
    return [Stream(1) if number % 2 else Promise[Any].create()[0] for number in range(count)]


def test_results_that_hold_references_leave_nothing_when_they_are_dropped(link: str) -> None:
    async def main(pool: Any) -> None:
        references = pool._manager.references
        async with pool._manager.spawn() as domain:
            for _ in range(20):
                made = await domain.call(make_many, AT_ONCE)
                assert len({*map(id, made)}) == AT_ONCE
                assert len(references._imports) >= AT_ONCE
                del made
            gc.collect()
            while (await domain.call(tables))[1:] != (0, 0, 0):
                gc.collect()
            assert not references._imports

    in_pool(main, link)


async def take_and_drop(items: Stream[Any], count: int) -> None:
    for _ in range(count):
        await items.take()


async def send_through(items: Stream[Any], count: int) -> None:
    for number in range(count):
        await items.add(Stream(1) if number % 2 else Promise[Any].create()[0])


@pytest.mark.parametrize("direction", ["there", "here", "between two others"])
def test_references_inside_items_leave_nothing_when_they_are_dropped(link: str, direction: str) -> None:
    count = 2_000

    async def main(pool: Any) -> None:
        references = pool._manager.references
        items: Stream[Any] = Stream(10)
        async with pool._manager.spawn() as one, pool._manager.spawn() as other:
            async with Switch() as switch:
                if direction == "there":
                    switch.fork(one.call, take_and_drop, items, count)
                    switch.fork(send_through, items, count)
                elif direction == "here":
                    switch.fork(one.call, send_through, items, count)
                    switch.fork(take_and_drop, items, count)
                else:
                    switch.fork(one.call, send_through, items, count)
                    switch.fork(other.call, take_and_drop, items, count)
            gc.collect()
            for domain in (one, other):
                while await domain.call(tables) != (0, 0, 0, 0):
                    gc.collect()
            assert not references._imports
            assert not references._holds

    in_pool(main, link)


async def keep(thing: Any) -> Any:
    _globals.append(thing)
    own: Stream[Any] = Stream(5)
    return own


async def kept() -> Any:
    return _globals[0]


async def forget() -> None:
    _globals.clear()


def test_a_reference_that_is_kept_there_works_later_and_is_released_when_it_is_forgotten(link: str) -> None:
    async def main(pool: Any) -> None:
        references = pool._manager.references
        async with pool._manager.spawn() as domain:
            here: Stream[Any] = Stream(5)
            await domain.call(keep, here)
            for _ in range(3):
                assert (await domain.call(tables))[0] == 1
            assert await domain.call(kept) is here
            assert len(references.exports) == 1
            await domain.call(forget)
            await until_empty(domain)
            assert not references.exports

    in_pool(main, link)


async def tie(thing: Any) -> Any:
    """The object here holds the one there in an item, which holds the one here."""
    own: Stream[Any] = Stream(5)
    await own.add(thing)
    return own


def test_a_cycle_across_domains_dies_with_its_domain(link: str) -> None:
    async def main(pool: Any) -> None:
        references = pool._manager.references
        async with pool._manager.spawn() as domain:
            here: Stream[Any] = Stream(5)
            there = await domain.call(tie, here)
            await here.add(there)
            del here, there
            for _ in range(3):
                gc.collect()
                assert (await domain.call(tables))[:2] == (1, 1)
            assert len(references.exports) == 1
        gc.collect()
        assert not references.exports

    in_pool(main, link)


@pytest.mark.parametrize("option", [{"timeout": -1}, {"priority": 0.5}, {"retries": -1}])
def test_arguments_of_a_job_that_is_refused_are_not_held(option: dict[str, Any], link: str) -> None:
    async def main(pool: Any) -> None:
        with pytest.raises((TypeError, ValueError), match=next(iter(option))):
            await pool.submit(drop, Stream(1), weight=1.0, **option)

    in_pool(main, link)


class Meanwhile:
    """Does something while it is pickled."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def __reduce__(self) -> Any:
        self.act()
        return str, ("made",)


async def put(stream: Stream[Any], item: Any) -> None:
    await stream.add(item)


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("stays here")


@pytest.mark.parametrize("inner", [(drop, 1), (lambda: None,), (drop, Unpicklable())])
def test_a_pickle_that_is_made_in_the_midst_of_another_leaves_it_its_holds(inner: Any) -> None:
    async def main(pool: Any) -> None:
        stream: Stream[Any] = Stream(1)
        async with Switch() as sw:

            def submit() -> None:
                with contextlib.suppress(NotPicklable):
                    pool.submit_fork(sw, *inner, weight=1.0)

            await pool.submit(put, stream, Meanwhile(submit), weight=1.0)  # begins when the other has ended
        assert await stream.take() == "made"

    in_pool(main, "socketpair")


def submit_from_plain(pool: Any, given: Any) -> None:
    with pytest.raises(RuntimeError, match="make the submitting job `async`"):
        asyncio.run(pool.submit(drop, given, weight=1.0))


def test_what_a_plain_job_may_not_submit_is_not_held(link: str) -> None:
    async def main(pool: Any) -> None:
        await pool.submit(submit_from_plain, pool, Stream(1), weight=1.0)
        assert (await pool.submit(tables, weight=1.0))[2] == 0

    in_pool(main, link)


variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default=None)


@pytest.mark.parametrize("unfit", [Opens(), bytes(1 << 17), Unpicklable()])
def test_what_a_context_variable_holds_that_does_not_travel_is_not_held(unfit: Any) -> None:  # S12
    async def main(pool: Any) -> None:
        token = variable.set((unfit, Stream(1)))
        assert await pool.submit(variable.get, weight=1.0) is None
        variable.reset(token)

    in_pool(main, "socketpair")


def test_what_a_context_variable_holds_is_not_held_for_a_job_that_was_never_sent() -> None:  # S12
    async def main(pool: Any) -> None:
        token = variable.set(Stream(1))
        async with Switch() as sw:
            jobs = [pool.submit_fork(sw, drop, weight=1.0) for _ in range(20)]
            sw.cancel()
        assert all(job.is_resolved for job in jobs)
        variable.reset(token)

    in_pool(main, "socketpair")


_kept: list[Any] = []


async def make_promise() -> Promise[int]:
    promise: Promise[int]
    promise, resolver = Promise.create()
    _kept[:] = [resolver]
    return promise


async def keep_only(thing: Any) -> None:
    _kept[:] = [thing]


async def resolve_kept() -> None:
    _kept.pop().resolve(5)


async def await_kept() -> Any:
    with timeout(20):
        return await _kept.pop()


async def submit_keep_only(pool: Any, thing: Any) -> None:
    await pool.submit(keep_only, thing, weight=1.0)


async def hand_own_promise_to(pool: Any) -> None:
    """Its home hands it on, by way of the pool's home, and has no other use for it."""
    promise = await make_promise()
    await pool.submit(keep_only, promise, weight=1.0)


@pytest.mark.parametrize("by", ["call", "job", "job of a domain's", "job of its home's"])
def test_what_a_job_keeps_lives_on_though_its_submitter_forgets_it_first(link: str, by: str) -> None:
    async def main(pool: Any) -> int:
        async with pool._manager.spawn() as home, pool._manager.spawn() as other:
            if by == "call":
                await other.call(keep_only, await home.call(make_promise))
            elif by == "job":
                await pool.submit(keep_only, await home.call(make_promise), weight=1.0)
            elif by == "job of a domain's":
                await other.call(submit_keep_only, pool, await home.call(make_promise))
            else:
                await home.call(hand_own_promise_to, pool)
            gc.collect()
            await turns()
            await home.call(resolve_kept)  # on the link by which the release has left
            if by == "call":
                return await other.call(await_kept)
            return await pool.submit(await_kept, weight=1.0)

    assert in_pool(main, link) == 5


@pytest.mark.parametrize("ends", ["stays", "is killed"])
def test_what_a_job_was_handed_is_not_held_for_ever_after_it(link: str, ends: str) -> None:
    async def main(pool: Any) -> None:
        holds = pool._manager.references._holds
        async with pool._manager.spawn() as home:
            async with contextlib.AsyncExitStack() as stack:
                other = await stack.enter_async_context(pool._manager.spawn())
                await other.call(keep_only, await home.call(make_promise))
                if ends == "is killed":
                    os.kill(other.pid, signal.SIGKILL)  # perhaps before it has told the home
                    with pytest.raises(DomainDied):
                        await other.call(keep_only, None)
                for _ in range(1000):
                    if not holds:
                        return
                    await home.call(tables)
                raise AssertionError(holds)

    in_pool(main, link)


cannot_be_opened: contextvars.ContextVar[Any] = contextvars.ContextVar("cannot_be_opened")


def test_what_came_with_a_variable_that_could_not_be_opened_is_not_held_for_ever(link: str) -> None:
    async def main(pool: Any) -> None:
        token = cannot_be_opened.set((Stream(1), Opens()))
        try:
            assert await pool.submit(abs, -1, weight=1.0) == 1
        finally:
            cannot_be_opened.reset(token)

    in_pool(main, link)


async def forget_exports() -> None:
    """As if all who knew its objects had let go of them."""
    references = moments.registry()
    references.exports.clear()
    references._by_identity.clear()


def test_who_awaits_a_promise_that_its_home_has_forgotten_is_told(link: str) -> None:
    async def main(pool: Any) -> None:
        async with pool._manager.spawn() as home:
            promise = await home.call(make_promise)
            await home.call(forget_exports)
            with timeout(20), pytest.raises(DomainsError, match="not known"):
                await promise

    in_pool(main, link)
