"""The same for what needs one word and no wait, or an answer at once: resolving, cancelling, asking, submitting."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from domains import DomainDied, Promise, Resolver, Stream, Switch, fiber

from . import moments
from .remote import in_pool


async def address() -> int:
    return moments.registry().address


async def die_at(side: str, kind: str, numbers: list[int], peer: int) -> None:
    moments.when(side, kind, 0, numbers, peer, moments.die)


async def die_resolving(resolver: Resolver[str], side: str) -> None:
    home, number = resolver.home, resolver.number  # type: ignore[attr-defined]
    await die_at(side, "ResolvePromise", [number], home)
    resolver.resolve("value")


@pytest.mark.parametrize("side", ["before sending", "after sending"])
def test_who_dies_as_it_resolves_has_resolved_or_fails_the_promise(side: str, link: str) -> None:  # S37
    async def main(pool: Any) -> None:
        promise, resolver = Promise[str].create()
        async with pool._manager.spawn() as domain:
            with pytest.raises(DomainDied):
                await domain.call(die_resolving, resolver, side)
            sent = side == "after sending"
            # ZeroMQ sends by a thread of its own, which may have died first.
            expected = {"value"} if sent and link == "socketpair" else {"value", "died"} if sent else {"died"}
            assert await get(promise) in expected

    in_pool(main, link)


async def make_promise() -> tuple[Promise[str], Resolver[str], Stream[int]]:
    return *Promise[str].create(), Stream(1)


async def resolve(resolver: Resolver[str]) -> str:
    resolver.resolve("value")
    return "resolved"


async def get(promise: Promise[str]) -> str:
    try:
        return await promise
    except DomainDied:
        return "died"


@pytest.mark.parametrize("side", ["before handling", "after handling"])
def test_a_home_that_dies_as_its_promise_is_resolved_leaves_nobody_waiting(side: str, link: str) -> None:  # S37
    async def main(pool: Any) -> None:
        async with pool._manager.spawn() as home, pool._manager.spawn() as user, Switch() as switch:
            promise, resolver, stream = await home.call(make_promise)
            assert await user.call(ask, stream) == "answered"  # they have met
            peer = await user.call(address)
            await home.call(die_at, side, "ResolvePromise", [resolver.number], peer)
            waiting = switch.fork_promise(get, promise)
            assert await user.call(resolve, resolver) == "resolved"
            assert await waiting in ({"died"} if side == "before handling" else {"died", "value"})

    in_pool(main, link)


async def die_cancelling(handle: Any, side: str) -> None:
    await die_at(side, "TellObject", [handle.number], handle.home)
    handle.cancel()


@pytest.mark.parametrize("side", ["before sending", "after sending"])
def test_who_dies_as_it_cancels_a_switch_has_cancelled_it_or_not(side: str, link: str) -> None:  # S24
    async def main(pool: Any) -> None:
        async with pool._manager.spawn() as domain, Switch() as outer:
            handed, hand_out = Promise[Any].create()
            ending = outer.fork_promise(wait_to_be_cancelled, hand_out)
            handle = await handed
            with pytest.raises(DomainDied):
                await domain.call(die_cancelling, handle, side)
            if side == "before sending" or link == "zmq":  # whose thread may have died before it was sent
                assert side == "after sending" or not ending.is_resolved
                handle.cancel()
            assert await ending == "cancelled"

    in_pool(main, link)


async def wait_to_be_cancelled(hand_out: Resolver[Any]) -> str:
    async with Switch() as switch:
        hand_out.resolve(switch.cancel_handle)
        await fiber.await_cancel()
    return "cancelled"


async def make_stream() -> Stream[int]:
    return Stream(1)


async def ask(stream: Stream[int]) -> str:
    try:
        len(stream)
    except DomainDied:
        return "died"
    return "answered"


@pytest.mark.parametrize("side", ["before handling", "after handling"])
@pytest.mark.parametrize("who", ["parent", "sibling"])
def test_who_asks_a_home_that_dies_is_told(side: str, who: str, link: str) -> None:  # S37
    async def main(pool: Any) -> None:
        async with pool._manager.spawn() as home, pool._manager.spawn() as user:
            stream = await home.call(make_stream)
            assert await (ask(stream) if who == "parent" else user.call(ask, stream)) == "answered"  # they have met
            peer = pool._manager.references.address if who == "parent" else await user.call(address)
            await home.call(die_at, side, "CallObject", [stream.number], peer)
            told = await (ask(stream) if who == "parent" else user.call(ask, stream))
            assert told == "died" or (side == "after handling" and told == "answered")

    in_pool(main, link)


async def wait_for(promise: Promise[None]) -> str:
    await promise
    return "done"


async def die_submitting(pool: Any, promise: Promise[None], side: str, kind: str) -> None:
    await die_at(side, kind, [pool.number], pool.home)
    await pool.submit(wait_for, promise, weight=0.1)


@pytest.mark.parametrize(
    ("side", "kind"),
    [
        ("before sending", "SubmitJob"),
        ("after sending", "SubmitJob"),
        ("before handling", "SubmittedEnded"),
        ("after handling", "SubmittedEnded"),
    ],
)
def test_who_dies_with_a_job_submitted_leaves_the_pool_free(side: str, kind: str, link: str) -> None:  # S68
    async def main(pool: Any) -> None:
        go, resolver = Promise[None].create()
        if kind == "SubmittedEnded":
            resolver.resolve(None)
        async with pool._manager.spawn() as domain:
            with pytest.raises(DomainDied):
                await domain.call(die_submitting, pool, go, side, kind)
            while pool.stats().running:
                await fiber.yield_now()
        resolver.try_resolve(None)
        assert await pool.submit(wait_for, go, weight=1.0) == "done"

    in_pool(main, link)


async def submit_and_wait(pool: Any, pid: Resolver[int]) -> str:
    try:
        await pool.submit(tell_pid_and_wait, pid, weight=1.0)
    except DomainDied as error:
        return str(error.signal)
    return "returned"


async def tell_pid_and_wait(pid: Resolver[int]) -> None:
    pid.resolve(os.getpid())
    await fiber.await_cancel()


def test_who_submitted_to_a_domain_that_dies_is_told(link: str) -> None:  # S68
    async def main(pool: Any) -> None:
        promise, resolver = Promise[int].create()
        async with pool._manager.spawn() as domain, Switch() as switch:
            there = switch.fork_promise(domain.call, submit_and_wait, pool, resolver)
            os.kill(await promise, signal.SIGKILL)
            assert await there == str(int(signal.SIGKILL))

    in_pool(main, link)
