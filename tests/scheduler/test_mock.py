"""Virtual time and deadlocks (S57 to S60)."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from domains import (
    CancelScope,
    Deadlock,
    DomainUnavailable,
    Environment,
    Promise,
    Stream,
    Switch,
    fiber,
    move_on_after,
    protect,
    run_in_thread,
    testing,
    timeout,
)
from domains.scheduler.clock import sleep


async def test_a_day_of_sleeps_takes_no_time(env: Environment) -> None:  # S58
    began = time.monotonic()
    for _ in range(24):
        await env.clock.sleep(3600)
    assert env.clock.now() == 24 * 3600
    assert time.monotonic() - began < 60


async def test_time_jumps_as_far_as_is_asked(env: Environment) -> None:  # S58
    expected = 0.0
    for seconds in (1e8, 1e15, 1.0, 1e300, 1.0):
        for wait in (asyncio.sleep, sleep):
            await wait(seconds)
            expected += seconds
            assert env.clock.now() == expected


async def test_time_jumps_only_when_nothing_is_runnable(env: Environment) -> None:  # S58
    seen: list[float] = []

    async def busy() -> None:
        for _ in range(100):
            await fiber.yield_now()
            seen.append(env.clock.now())

    async with Switch() as switch:
        switch.fork(busy)
        switch.fork(sleep, 0.001)
    assert set(seen) == {0.0}


async def test_time_stands_still_while_a_thread_is_awaited(env: Environment) -> None:  # S58 S60
    go = threading.Event()

    async def release() -> None:
        go.set()

    async with Switch() as switch:
        with timeout(0.001):
            switch.fork(release)
            await run_in_thread(go.wait)
        with timeout(0.001):
            await asyncio.to_thread(go.wait)
    assert env.clock.now() == 0.0


async def test_real_input_is_waited_for_in_real_time() -> None:  # S58
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        with timeout(60):
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
        with move_on_after(0.01) as scope:
            await reader.read(0 if reader.at_eof() else 1)
        assert scope.cancelled or reader.at_eof()
        writer.close()
        await writer.wait_closed()


async def test_another_thread_may_still_resolve_a_promise() -> None:  # S58
    promise: Promise[int]
    promise, resolver = Promise.create()
    thread = threading.Timer(0.01, resolver.resolve, [5])
    thread.start()
    assert await promise == 5
    thread.join()


async def test_a_signal_handler_may_still_bring_something() -> None:  # S58
    promise: Promise[str]
    promise, resolver = Promise.create()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR2, resolver.resolve, "signalled")
    thread = threading.Timer(0.01, signal.raise_signal, [signal.SIGUSR2])
    thread.start()
    thread.join()
    assert await promise == "signalled"
    loop.remove_signal_handler(signal.SIGUSR2)


def test_a_deadlock_names_every_stuck_fiber_its_switch_operation_and_line() -> None:  # S59
    async def main() -> None:
        stream: Stream[int] = Stream(0, label="orders")

        async def taker() -> None:
            await stream.take()

        async with Switch("shop") as switch:
            switch.fork(taker, name="clerk")
            await asyncio.Event().wait()

    with pytest.raises(Deadlock) as caught:
        testing.run(main)
    message = str(caught.value)
    lines = Path(__file__).read_text().splitlines()
    place = f"{__file__}:{next(number for number, text in enumerate(lines, 1) if 'await stream.take()' in text)}"
    assert re.search(rf"fiber 'clerk' of switch 'shop' waits in Stream.take on <stream 'orders'.* at {place}", message)
    assert "fiber 'main' of switch 'shop' waits in other code" in message


def test_a_deadlock_is_told_at_any_depth_and_whatever_cannot_be_shown() -> None:  # S59
    class Unspeakable(Stream[int]):
        def __repr__(self) -> str:
            raise ValueError

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(sys.getrecursionlimit()):
                stack.enter_context(CancelScope())
            assert "fiber 'main' runs" in fiber.dump()
            await Unspeakable(1).take()

    with pytest.raises(Deadlock, match=r"fiber 'main' of .*Stream.take on <Unspeakable, whose repr raises ValueError>"):
        testing.run(main)


async def sleeps_for_ever() -> None:
    await asyncio.sleep(math.inf)


async def waits_without_a_limit() -> None:
    async with asyncio.timeout(math.inf):
        await asyncio.Event().wait()


@pytest.mark.parametrize("main", [sleeps_for_ever, waits_without_a_limit])
def test_an_infinite_deadline_of_asyncios_is_none(main: Callable[[], Awaitable[None]]) -> None:  # S58 S59
    with pytest.raises(Deadlock, match="fiber 'main'"):
        testing.run(main)


def test_the_program_unwinds_before_the_deadlock_is_raised() -> None:  # S59
    trace: list[str] = []

    async def main() -> None:
        try:
            await sleep(math.inf)
        finally:
            await asyncio.sleep(5)
            trace.append("unwound")

    with pytest.raises(Deadlock):
        testing.run(main)
    assert trace == ["unwound"]


def test_a_deadlock_that_is_swallowed_is_raised_all_the_same() -> None:  # S59
    async def main() -> str:
        with move_on_after(None):
            try:
                await Promise.create("never")[0]
            except asyncio.CancelledError:
                return "went on"
        raise AssertionError

    with pytest.raises(Deadlock, match="never"):
        testing.run(main)


def test_a_deadlock_in_protected_code_does_not_hang() -> None:  # S59
    async def main() -> None:
        with protect():
            await Promise.create("never")[0]

    with pytest.raises(Deadlock, match="never"):
        testing.run(main)


def test_a_stuck_plain_task_is_named_too() -> None:  # S59
    async def stuck() -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        task = asyncio.create_task(stuck(), name="plain one")
        await asyncio.wait([task])

    with pytest.raises(Deadlock, match=r"task 'plain one' at .*test_mock\.py"):
        testing.run(main)


async def test_daemons_alone_are_no_deadlock() -> None:  # S59
    async with Switch() as switch:
        switch.fork_daemon(sleep, math.inf)


def test_what_main_raises_comes_out() -> None:
    async def main() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        testing.run(main)


def test_a_failure_while_unwinding_from_a_deadlock_is_its_cause() -> None:  # S59
    async def main() -> None:
        try:
            await sleep(math.inf)
        finally:
            raise KeyError("x")

    with pytest.raises(Deadlock) as caught:
        testing.run(main)
    assert isinstance(caught.value.__cause__, KeyError)


async def test_there_are_no_other_domains_in_virtual_time(env: Environment) -> None:
    with pytest.raises(DomainUnavailable, match=r"domains\.run"):
        await env.domain_mgr.run(print)


async def test_a_run_within_a_run_is_refused_before_a_loop_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domains.scheduler.mock.MockLoop", None)
    with pytest.raises(RuntimeError, match="await the function"):
        testing.run(fiber.yield_now)


def test_randomness_is_the_same_on_each_run() -> None:
    async def main(env: Environment) -> float:
        return env.random.random()

    assert testing.run(main) == testing.run(main)
