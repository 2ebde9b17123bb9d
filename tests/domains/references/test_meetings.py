"""Domains that share a parent talk directly, over a link of their own."""

from __future__ import annotations

import gc
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

import domains
from domains import Condition, ConnectionLost, DomainDied, Promise, Resolver, Stream, Switch, fiber, timeout
from domains.ipc.zeromq import ZeroMQLink
from domains.protocol import Bound, Meet
from domains.references import routes
from domains.references.meetings import Meetings

from . import moments
from .remote import in_pool, signal_by, turns, wait_for


async def make_stream_and_echo(streams: Resolver[Any]) -> None:
    """Hands out two streams that have their home here, and sends back what comes on one over the other."""
    there: Stream[int] = Stream(0)
    back: Stream[int] = Stream(0)
    streams.resolve((there, back))
    async for item in there:
        await back.add(item)


async def talk(streams: Promise[Any], ready: Resolver[None], writing: int, reading: int) -> int:
    """Talks to the other domain: once to meet it, and then while the parent cannot do anything."""
    there, back = await streams
    await there.add(0)
    total = await back.take()
    ready.resolve(None)
    await turns()
    os.read(reading, 1)  # the parent is about to block
    for number in range(100):
        await there.add(number)
        total += await back.take()
    there.close()
    os.write(writing, b"d")
    return total


def test_two_domains_talk_while_their_parent_is_busy(link: str) -> None:
    async def main(pool: Any) -> int:
        from_here, to_here = os.pipe()
        from_there, to_there = os.pipe()
        streams: Promise[Any]
        ready: Promise[None]
        streams, resolve_streams = Promise.create("streams")
        ready, resolve_ready = Promise.create("ready")
        pid = os.getpid()

        async def talk_by_pipes(streams: Promise[Any], ready: Resolver[None]) -> int:
            writing = os.open(f"/proc/{pid}/fd/{to_here}", os.O_WRONLY)
            reading = os.open(f"/proc/{pid}/fd/{from_there}", os.O_RDONLY)
            try:
                return await talk(streams, ready, writing, reading)
            finally:
                os.close(writing)
                os.close(reading)

        try:
            async with Switch() as switch:
                pool.submit_fork(switch, make_stream_and_echo, resolve_streams, weight=1.0)
                talking = pool.submit_fork(switch, talk_by_pipes, streams, resolve_ready, weight=1.0)
                await ready
                os.write(to_there, b"g")
                os.read(from_here, 1)  # blocks the loop, and with it whatever goes by way of the parent
                return await talking
        finally:
            for descriptor in (from_here, to_here, from_there, to_there):
                os.close(descriptor)

    assert in_pool(main, link, 2) == sum(range(100))


async def serve_for_ever(streams: Resolver[Any]) -> None:
    stream: Stream[int] = Stream(0)
    streams.resolve((stream, os.getpid()))
    await Promise.create("never")[0]


async def wait_for_the_dead(streams: Promise[Any], condition: Condition) -> list[str]:
    stream, pid = await streams
    seen: list[str] = []
    async with Switch() as switch:
        waiting = [switch.fork_promise(stream.add, 1), switch.fork_promise(stream.take)]
        os.kill(pid, signal.SIGKILL)
        for promise in waiting:
            try:
                await promise
            except DomainDied as error:
                seen.append(str(error.signal))
    try:
        await stream.take()
    except DomainDied as error:
        seen.append(str(error.signal))
    return seen


def test_the_death_of_a_sibling_ends_every_wait_for_it(link: str) -> None:  # S37
    async def main(pool: Any) -> list[str]:
        streams: Promise[Any]
        streams, resolve = Promise.create("streams")
        async with pool._manager.spawn("served") as served, Switch() as switch:
            dying = switch.fork_promise(served.call, serve_for_ever, resolve)
            seen: list[str] = await pool.submit(wait_for_the_dead, streams, Condition(), weight=1.0)
            with pytest.raises(DomainDied):
                await dying
        return seen

    seen = in_pool(main, link)
    assert seen[0] == seen[-1] == str(int(signal.SIGKILL))


def resolve_and_block(resolvers: Any, reading: int, pid: int) -> None:
    """A plain job: what it says is heard while it still runs."""
    resolvers.resolve("said")
    descriptor = os.open(f"/proc/{pid}/fd/{reading}", os.O_RDONLY)
    os.read(descriptor, 1)
    os.close(descriptor)


def test_a_plain_job_meets_a_sibling_and_is_heard_before_it_ends(link: str) -> None:
    async def listen(hand_out: Resolver[Any]) -> str:
        promise: Promise[str]
        promise, resolver = Promise.create("word")
        hand_out.resolve(resolver)
        return await promise

    async def main(pool: Any) -> str:
        reading, writing = os.pipe()
        handed: Promise[Any]
        handed, hand_out = Promise.create("resolver")
        try:
            async with Switch() as switch:
                listening = pool.submit_fork(switch, listen, hand_out, weight=1.0)
                resolver = await handed
                pool.submit_fork(switch, resolve_and_block, resolver, reading, os.getpid(), weight=1.0)
                heard = await listening
                os.write(writing, b"g")
            return heard
        finally:
            os.close(reading)
            os.close(writing)

    assert in_pool(main, link, 2) == "said"


def exhaust() -> int:
    """From now on this domain can open nothing any more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
    _opened.extend(iter(open_something, None))
    return os.getpid()


_opened: list[int] = []


def open_something() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return None


async def echo_from(hand_out: Resolver[Any]) -> list[int]:
    """Hands out two streams that have their home here, and sends back what comes on one over the other."""
    there: Stream[int] = Stream(2)
    back: Stream[int] = Stream(2)
    hand_out.resolve((there, back))
    seen = []
    async for item in there:
        seen.append(item)
        await back.add(item)
    return seen


async def talk_to(streams: tuple[Any, Any]) -> list[int]:
    there, back = streams
    heard = []
    for number in range(100):
        await there.add(number)
        heard.append(await back.take())
    there.close()
    return heard


@pytest.mark.parametrize("exhausted", ["home", "speaker"])
def test_two_domains_of_which_one_can_open_nothing_talk_by_way_of_their_parent(link: str, exhausted: str) -> None:
    async def main(pool: Any) -> None:
        manager = pool._manager
        handed: Promise[Any]
        handed, hand_out = Promise.create("streams")
        async with manager.spawn() as home, manager.spawn() as speaker, Switch() as switch:
            domain = {"home": home, "speaker": speaker}[exhausted]
            pid = await domain.call(exhaust)
            echoing = switch.fork_promise(home.call, echo_from, hand_out)
            assert await speaker.call(talk_to, await handed) == list(range(100))
            assert await echoing == list(range(100))
            assert await domain.call(os.getpid) == pid

    in_pool(main, link)


class Told:
    """The parent, of which only what it says matters, and the routes, which are never used."""

    address = 1
    pickling = None

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.tell: dict[type, Any] = {}

    def handle(self, message_type: type, handler: Any) -> None:
        self.tell[message_type] = handler

    def send(self, message: Any) -> None:
        self.heard.append(message)


def test_a_domain_that_ends_meets_nobody_any_more() -> None:
    async def main() -> list[Any]:
        told: Any = Told()
        arena: Any = None
        meetings = Meetings(told, told, arena)
        await meetings.close()
        told.tell[Meet](Meet(2, "domain 2", "ipc:///nowhere", True, b"", b"", b""), ())
        return told.heard

    assert domains.run(main) == [Bound(1, 2, False)]


kept: dict[str, Any] = {}


async def make_filled_stream() -> Stream[int]:
    stream: Stream[int] = Stream(100)
    stream.add_nonblocking(1)
    kept["mine"] = stream
    return stream


async def meet_and_cut(stream: Stream[int]) -> None:
    """Uses a stream of a sibling, and has the direct link to it end by a fault."""
    assert await stream.take() == 1
    references = moments.registry()
    link = references.link_to(stream.home)  # type: ignore[attr-defined]
    assert isinstance(link, ZeroMQLink)
    routes._VERDICT_SECONDS = 0.05
    link.abort(ConnectionLost("a fault"))
    while stream.home in references._routes:  # type: ignore[attr-defined]
        await fiber.yield_now()
    kept["theirs"] = stream


async def ask() -> str:
    return outcome_of_asking()


def outcome_of_asking() -> str:
    try:
        return str(len(kept["theirs"]))
    except ConnectionLost:
        return "lost"


async def drop_and_wait() -> None:
    references = moments.registry()
    home = kept.pop("theirs").home
    gc.collect()
    while home not in references._unreachable:
        await fiber.yield_now()
    await turns()


async def ask_again(stream: Stream[int]) -> str:
    with timeout(20):
        try:
            await stream.take()
        except ConnectionLost:
            return "lost"
    return "heard"


@pytest.mark.parametrize("how", ["fiber", "plain", "again"])
def test_whoever_uses_what_is_behind_a_direct_link_that_was_cut_is_told(link: str, how: str) -> None:
    async def main(env: domains.Environment) -> str:
        async with env.domain_mgr.spawn() as home, env.domain_mgr.spawn() as user:
            stream = await home.call(make_filled_stream)
            await user.call(meet_and_cut, stream)
            if how != "again":
                return await user.call(ask if how == "fiber" else outcome_of_asking)
            await user.call(drop_and_wait)
            return await user.call(ask_again, stream)

    assert domains.run(main, link=link) == "lost"


async def nephew(made: Resolver[Stream[int]], go: Promise[Stream[Any]]) -> list[int]:
    mine: Stream[int] = Stream(10)
    made.resolve(mine)
    await (await go).add("hello")
    return [await mine.take(), await mine.take()]


async def hand_on_nephew(manager: Any, to_uncle: Stream[Any], ready: Resolver[None], go: Promise[None]) -> list[int]:
    async with manager.spawn() as domain, Switch() as switch:
        made: Promise[Stream[int]]
        made, make = Promise.create()
        tell, told = Promise[Stream[Any]].create()
        ends = switch.fork_promise(domain.call, nephew, make, tell)
        stream = await made
        await to_uncle.add("warm")  # so that there is a direct link
        ready.resolve(None)
        await go
        await to_uncle.add(stream)
        told.resolve(to_uncle)
        return await ends


async def uncle(made: Resolver[Stream[Any]], done: str) -> None:
    inbox: Stream[Any] = Stream(10)
    made.resolve(inbox)
    assert await inbox.take() == "warm"
    stream = await inbox.take()
    async with Switch() as switch:
        switch.fork(stream.add, 1)  # waits for a way to the nephew: their common relative is busy
        assert await inbox.take() == "hello"
        switch.fork(stream.add, 2)
        await turns()
        signal_by(done)


def test_nothing_overtakes_what_waits_for_a_way(link: str, tmp_path: Path) -> None:  # S71
    done = str(tmp_path / "done")
    os.mkfifo(done)

    async def main(env: domains.Environment) -> list[int]:
        made: Promise[Stream[Any]]
        made, make = Promise.create()
        ready, resolve_ready = Promise[None].create()
        go, resolve_go = Promise[None].create()
        async with env.domain_mgr.spawn() as b, env.domain_mgr.spawn() as a, Switch() as switch:
            switch.fork(b.call, uncle, make, done)
            items = switch.fork_promise(a.call, hand_on_nephew, env.domain_mgr, await made, resolve_ready, go)
            await ready
            resolve_go.resolve(None)
            await turns()
            wait_for(done)  # and nothing else
            return await items

    assert domains.run(main, link=link) == [1, 2]
