"""asyncio both ways: any asyncio library runs in a fiber, and our operations work in any asyncio task (S30, S31)."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import aiohttp
import anyio
import httpx
import pytest
from aiohttp import web

from domains import (
    Cancelled,
    CancelScope,
    Condition,
    Mutex,
    Promise,
    Semaphore,
    Stream,
    Switch,
    fiber,
    move_on_after,
    protect,
    run_in_thread,
    timeout,
)
from domains.scheduler.clock import sleep
from domains.scheduler.run import event_loop_factory

Run = Callable[[Callable[[], Awaitable[Any]]], Any]

AGES = 1000.0
"""Seconds that no test waits for."""
SOON = 0.01


@pytest.fixture(params=["asyncio", "uvloop"])
def run_plainly(request: pytest.FixtureRequest) -> Run:
    """`run_plainly(main)`: by asyncio's own runner, with no fiber or switch of ours."""
    factory = asyncio.new_event_loop if request.param == "asyncio" else event_loop_factory()

    def run_it(main: Callable[[], Awaitable[Any]]) -> Any:
        async def await_it() -> Any:
            result = await main()
            assert cancelling() == 0
            return result

        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(await_it())

    return run_it


def cancelling() -> int:
    """How many cancellations asyncio believes that this task has not taken yet."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


@contextlib.asynccontextmanager
async def served(*routes: web.RouteDef) -> AsyncIterator[str]:
    """An aiohttp server on a free port; gives its address."""
    application = web.Application()
    application.add_routes(routes)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


# Libraries in fibers


def test_aiohttp_serves_and_asks_in_fibers(run: Run) -> None:
    async def double(request: web.Request) -> web.Response:
        return web.json_response(2 * int(request.match_info["number"]))

    async def main() -> list[int]:
        async with Switch() as switch:
            address = await switch.enter(served(web.get("/{number}", double)))
            client = await switch.enter(aiohttp.ClientSession())

            async def ask(number: int) -> int:
                async with client.get(f"{address}/{number}") as response:
                    return cast(int, await response.json())

            return await fiber.map(ask, range(20), max_fibers=5)
        raise AssertionError

    assert run(main) == [2 * number for number in range(20)]


def test_cancelling_a_fiber_hangs_up_its_aiohttp_request(run: Run) -> None:
    async def main() -> None:
        arrived, hung_up = asyncio.Event(), asyncio.Event()

        async def never(request: web.Request) -> web.Response:
            arrived.set()
            try:
                await asyncio.sleep(AGES)
            finally:
                hung_up.set()
            raise AssertionError

        async with served(web.get("/", never)) as address, aiohttp.ClientSession() as client:
            async with Switch() as switch:
                switch.fork(client.get, address)
                await arrived.wait()
                switch.cancel()
            await hung_up.wait()
        assert cancelling() == 0

    run(main)


def test_an_aiohttp_handler_waits_in_our_operations(run: Run) -> None:
    """The handler's task is none of ours."""

    async def main() -> str:
        words: Stream[str] = Stream(0)

        async def say(request: web.Request) -> web.Response:
            async with Switch() as switch:
                word = switch.fork_promise(words.take)
                return web.Response(text=await word)
            raise AssertionError

        async with served(web.get("/", say)) as address, aiohttp.ClientSession() as client, Switch() as switch:
            switch.fork(words.add, "hello")
            async with client.get(address) as response:
                return await response.text()
        raise AssertionError

    assert run(main) == "hello"


def test_a_client_that_hangs_up_cancels_our_operations_in_its_handler(run: Run) -> None:
    async def main() -> None:
        words: Stream[str] = Stream(1)
        arrived = asyncio.Event()
        ends: Stream[BaseException] = Stream(1)

        async def say(request: web.Request) -> web.Response:
            try:
                async with Switch() as switch:
                    switch.fork(words.take)
                    arrived.set()
            except asyncio.CancelledError as error:
                ends.add_nonblocking(error)
                raise
            raise AssertionError

        async with served(web.get("/", say)) as address, aiohttp.ClientSession() as client:
            with CancelScope() as scope:
                async with Switch() as switch:
                    switch.fork(client.get, address)
                    await arrived.wait()
                    scope.cancel()
            await ends.take()
            await words.add("still there")
            assert words.take_nonblocking() == "still there"

    run(main)


def test_our_timeout_ends_an_aiohttp_request(run: Run) -> None:  # S31
    async def main() -> None:
        async def never(request: web.Request) -> web.Response:
            await asyncio.sleep(AGES)
            raise AssertionError

        async with served(web.get("/", never)) as address, aiohttp.ClientSession() as client:
            with pytest.raises(TimeoutError, match="longer than"), timeout(SOON):
                await client.get(address)
            assert cancelling() == 0

    run(main)


def test_aiohttps_own_timeout_is_no_cancellation_of_ours(run: Run) -> None:
    async def main() -> None:
        async def never(request: web.Request) -> web.Response:
            await asyncio.sleep(AGES)
            raise AssertionError

        async with served(web.get("/", never)) as address, aiohttp.ClientSession() as client:
            with timeout(AGES):
                with pytest.raises(TimeoutError):
                    await client.get(address, timeout=aiohttp.ClientTimeout(total=SOON))
                fiber.check()
                assert cancelling() == 0

    run(main)


def test_httpx_asks_in_fibers(run: Run) -> None:
    async def hello(request: web.Request) -> web.Response:
        return web.Response(text=request.match_info["name"])

    async def main() -> list[str]:
        async with served(web.get("/{name}", hello)) as address, httpx.AsyncClient() as client:

            async def ask(name: str) -> str:
                return (await client.get(f"{address}/{name}")).text

            return await fiber.map(ask, ["a", "b", "c"])

    assert run(main) == ["a", "b", "c"]


def test_cancelling_a_fiber_unwinds_httpx_and_the_client_goes_on(run: Run) -> None:
    async def main() -> str:
        arrived = asyncio.Event()

        async def never(request: web.Request) -> web.Response:
            arrived.set()
            await asyncio.sleep(AGES)
            raise AssertionError

        async def hello(request: web.Request) -> web.Response:
            return web.Response(text="hello")

        limits = httpx.Limits(max_connections=1)
        async with served(web.get("/never", never), web.get("/", hello)) as address:
            async with httpx.AsyncClient(limits=limits) as client:
                async with Switch() as switch:
                    switch.fork(client.get, f"{address}/never")
                    await arrived.wait()
                    switch.cancel()
                return (await client.get(address)).text  # its only connection was given back

    assert run(main) == "hello"


def test_httpxs_own_timeout_is_no_cancellation_of_ours(run: Run) -> None:
    async def main() -> None:
        async def never(request: web.Request) -> web.Response:
            await asyncio.sleep(AGES)
            raise AssertionError

        async with (
            served(web.get("/", never)) as address,
            httpx.AsyncClient(timeout=httpx.Timeout(None, read=SOON)) as client,
        ):
            with timeout(AGES):
                with pytest.raises(httpx.ReadTimeout):
                    await client.get(address)
                fiber.check()
            assert cancelling() == 0

    run(main)


# anyio's scopes and groups


def test_fibers_work_in_anyios_task_group(run: Run) -> None:
    async def main() -> list[int]:
        numbers: Stream[int] = Stream(1)
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(numbers.add, number)
            return [await numbers.take() for _ in range(3)]
        raise AssertionError

    assert run(main) == [0, 1, 2]


def test_our_scope_cancels_anyios_task_group_inside(run: Run) -> None:
    async def main() -> list[str]:
        trace: list[str] = []

        async def wait(name: str) -> None:
            try:
                await anyio.sleep(AGES)
            finally:
                trace.append(name)

        with move_on_after(SOON) as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(wait, "a")
                group.start_soon(wait, "b")
        assert scope.cancelled
        assert cancelling() == 0
        await fiber.yield_now()
        await anyio.lowlevel.checkpoint()
        return sorted(trace)

    assert run(main) == ["a", "b"]


def test_anyios_scope_inside_ours_ends_our_operation(run: Run) -> None:
    async def main() -> None:
        stream: Stream[int] = Stream(1)
        with timeout(AGES):
            with anyio.move_on_after(SOON) as scope:
                await stream.take()
            assert scope.cancelled_caught
            fiber.check()
            assert cancelling() == 0
            await stream.add(1)
            assert await stream.take() == 1

    run(main)


def test_our_scope_inside_anyios_is_ended_by_either(run: Run) -> None:
    async def main() -> None:
        with anyio.move_on_after(AGES) as outer:
            with move_on_after(SOON) as inner:
                await anyio.sleep(AGES)
            assert inner.cancelled
            await anyio.lowlevel.checkpoint()
        assert not outer.cancel_called
        with anyio.move_on_after(SOON) as outer:
            with move_on_after(AGES) as inner:
                await fiber.await_cancel()
        assert outer.cancelled_caught
        assert not inner.cancelled
        fiber.check()
        assert cancelling() == 0

    run(main)


def test_our_cancellation_passes_anyios_scope_without_being_caught(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError, match="longer than"), timeout(SOON):
            with anyio.move_on_after(AGES) as scope:
                await anyio.sleep(AGES)
        assert not scope.cancelled_caught
        assert cancelling() == 0

    run(main)


def test_anyio_cancels_a_switch_of_ours_and_its_fibers(run: Run) -> None:
    async def main() -> list[str]:
        trace: list[str] = []

        async def wait(name: str) -> None:
            try:
                await fiber.await_cancel()
            finally:
                trace.append(name)

        with anyio.CancelScope() as scope:
            async with Switch() as switch:
                switch.fork(wait, "a")
                switch.fork(wait, "b")
                await fiber.yield_now()
                scope.cancel()
        assert scope.cancelled_caught
        assert cancelling() == 0
        fiber.check()
        return trace

    assert run(main) == ["a", "b"]


def test_anyios_threads_run_in_fibers(run: Run) -> None:
    async def main() -> list[int]:
        return await fiber.map(lambda x: anyio.to_thread.run_sync(abs, x), [-1, -2, -3])

    assert run(main) == [1, 2, 3]


# asyncio's timeouts and ours, whichever is outside


@pytest.mark.parametrize("wait", [asyncio.sleep, sleep])
def test_asyncios_timeout_inside_ours(run: Run, wait: Callable[[float], Awaitable[None]]) -> None:  # S31
    async def main() -> None:
        with timeout(AGES):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(SOON):
                    await wait(AGES)
            assert cancelling() == 0
            await wait(0)
            fiber.check()
        with pytest.raises(TimeoutError, match="longer than"), timeout(SOON):
            async with asyncio.timeout(AGES) as inner:
                await wait(AGES)
        assert not inner.expired()
        assert cancelling() == 0
        await wait(0)

    run(main)


@pytest.mark.parametrize("wait", [asyncio.sleep, sleep])
def test_our_timeout_inside_asyncios(run: Run, wait: Callable[[float], Awaitable[None]]) -> None:  # S31
    async def main() -> None:
        async with asyncio.timeout(AGES):
            with pytest.raises(TimeoutError, match="longer than"), timeout(SOON):
                await wait(AGES)
            assert cancelling() == 0
            await wait(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON) as outer:
                with move_on_after(AGES) as inner:
                    await wait(AGES)
        assert outer.expired()
        assert not inner.cancelled
        assert cancelling() == 0
        await wait(0)

    run(main)


@pytest.mark.parametrize("wait", [asyncio.sleep, sleep])
def test_when_both_timeouts_have_expired_the_inner_one_is_raised_first(
    run: Run, wait: Callable[[float], Awaitable[None]]
) -> None:
    """The fiber did not come to wait in between, so both hit the same wait."""

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON) as outer:
                with move_on_after(SOON):
                    threading.Event().wait(3 * SOON)
                    await wait(AGES)
                await wait(AGES)
        assert outer.expired()
        with pytest.raises(TimeoutError, match="longer than"), timeout(SOON):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SOON):
                    threading.Event().wait(3 * SOON)
                    await wait(AGES)
            await wait(AGES)
        assert cancelling() == 0
        await wait(0)

    run(main)


def test_asyncios_timeout_works_in_a_block_that_our_cancellation_has_left(run: Run) -> None:
    """Our delivery is taken back when its scope ends, so that later scopes of asyncio see a clean account."""

    async def main() -> None:
        for _ in range(20):
            with move_on_after(0) as ours:
                await asyncio.sleep(AGES)
            assert ours.cancelled
            assert cancelling() == 0
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await asyncio.sleep(AGES)
            assert cancelling() == 0

    run(main)


def test_cleaning_up_in_foreign_code_is_not_interrupted_twice(run: Run) -> None:
    """Foreign code hears once of each cancellation, as it would from asyncio."""

    async def main() -> list[str]:
        trace: list[str] = []

        async def careful() -> None:
            try:
                await asyncio.sleep(AGES)
            finally:
                await asyncio.sleep(SOON)
                trace.append("cleaned up")
                async with asyncio.timeout(AGES):
                    await asyncio.sleep(SOON)
                trace.append("with a timeout")

        async with Switch() as switch:
            switch.fork(careful)
            await fiber.yield_now()
            switch.cancel()
        return trace

    assert run(main) == ["cleaned up", "with a timeout"]


def test_foreign_cleaning_up_under_protect_keeps_asyncios_account(run: Run) -> None:
    async def main() -> None:
        with move_on_after(0) as outer:
            try:
                await asyncio.sleep(AGES)
            finally:
                with protect():
                    assert cancelling() == 1  # ours, which the scope outside takes back
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.001):
                            await asyncio.sleep(AGES)
                    with pytest.raises(TimeoutError), timeout(0.001):
                        await asyncio.sleep(AGES)
                    assert cancelling() == 1
        assert outer.cancelled
        assert cancelling() == 0

    run(main)


# asyncio's own structures in fibers


def test_a_task_group_in_a_fiber_runs_our_operations(run: Run) -> None:
    async def main() -> list[int]:
        stream: Stream[int] = Stream(0)
        async with asyncio.TaskGroup() as group:
            group.create_task(stream.add(1))
            group.create_task(stream.add(2))
            taken = [await stream.take(), await stream.take()]
        assert cancelling() == 0
        return taken

    assert run(main) == [1, 2]


def test_a_failing_task_group_withdraws_our_operations_in_it(run: Run) -> None:
    async def main() -> None:
        stream: Stream[int] = Stream(1)

        async def fail() -> None:
            await fiber.yield_now()
            raise ValueError("in a task")

        with pytest.raises(ExceptionGroup) as raised:
            async with asyncio.TaskGroup() as group:
                group.create_task(stream.take())
                group.create_task(fail())
                await stream.take()
        assert [str(error) for error in raised.value.exceptions] == ["in a task"]
        assert cancelling() == 0
        fiber.check()
        await stream.add(1)
        assert stream.take_nonblocking() == 1

    run(main)


def test_our_scope_ends_a_task_group_and_its_tasks(run: Run) -> None:
    async def main() -> list[str]:
        trace: list[str] = []

        async def wait(name: str, operation: Awaitable[None]) -> None:
            try:
                await operation
            except asyncio.CancelledError:
                trace.append(name)
                raise

        with move_on_after(SOON) as scope:
            async with asyncio.TaskGroup() as group:
                group.create_task(wait("ours", sleep(AGES)))
                group.create_task(wait("asyncio's", asyncio.sleep(AGES)))
        assert scope.cancelled
        assert cancelling() == 0
        return sorted(trace)  # a task group keeps its tasks in no order

    assert run(main) == ["asyncio's", "ours"]


def test_a_switch_in_a_task_of_a_task_group_fails_the_group(run: Run) -> None:
    async def main() -> None:
        async def fail() -> None:
            raise ValueError("in a fiber")

        async def task() -> None:
            async with Switch() as switch:
                switch.fork(fail)

        with pytest.raises(ExceptionGroup) as raised:
            async with asyncio.TaskGroup() as group:
                group.create_task(task())
        assert str(raised.value.exceptions[0]) == "in a fiber"

    run(main)


def test_fibers_share_asyncios_queue_lock_and_event(run: Run) -> None:
    async def main() -> list[int]:
        queue: asyncio.Queue[int] = asyncio.Queue(1)
        lock, done = asyncio.Lock(), asyncio.Event()
        taken: list[int] = []

        async def produce() -> None:
            for number in range(10):
                async with lock:
                    await queue.put(number)
            done.set()

        async def consume() -> None:
            for _ in range(10):
                taken.append(await queue.get())
            await done.wait()

        await fiber.both(produce, consume)
        return taken

    assert run(main) == list(range(10))


def test_to_thread_and_our_thread_run_side_by_side(run: Run) -> None:
    async def main() -> list[str]:
        barrier = threading.Barrier(2, timeout=20)

        def meet() -> str:
            barrier.wait()
            return "met"

        return list(await fiber.pair(lambda: asyncio.to_thread(meet), lambda: run_in_thread(meet)))

    assert run(main) == ["met", "met"]


def test_streams_of_asyncio_serve_fibers(run: Run) -> None:
    async def main() -> list[bytes]:
        ended: Stream[str] = Stream(10)

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                writer.write(line.upper())
                await writer.drain()
            writer.close()
            await ended.add("a connection")  # in a task of asyncio's

        async def ask(word: bytes) -> bytes:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(word + b"\n")
            answer = await reader.readline()
            writer.close()
            await writer.wait_closed()
            return answer

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()[:2]
        answers = await fiber.map(ask, [b"a", b"b", b"c"])
        for _ in answers:
            await ended.take()
        server.close()
        await server.wait_closed()
        return answers

    assert run(main) == [b"A\n", b"B\n", b"C\n"]


def test_a_cancelled_read_of_a_stream_leaves_the_bytes_for_the_next(run: Run) -> None:
    async def main() -> bytes:
        async with Switch() as switch:
            connected: Stream[asyncio.StreamWriter] = Stream(1)

            async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await connected.add(writer)

            server = await asyncio.start_server(keep, "127.0.0.1", 0)
            switch.on_release(server.close)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
            switch.on_release(writer.close)
            peer = await connected.take()
            switch.on_release(peer.close)
            with move_on_after(SOON) as scope:
                await reader.readline()
            assert scope.cancelled
            peer.write(b"whole\n")
            return await reader.readline()
        raise AssertionError

    assert run(main) == b"whole\n"


def test_a_subprocess_talks_to_a_fiber(run: Run) -> None:
    async def main() -> tuple[bytes, int | None]:
        code = "import sys; print(sys.stdin.read().upper(), end='')"
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdin=pipe, stdout=pipe)
        output, _ = await process.communicate(b"hello")
        return output, process.returncode

    assert run(main) == (b"HELLO", 0)


def test_a_cancelled_fiber_kills_its_subprocess_in_a_release_hook(run: Run) -> None:
    async def main() -> int | None:
        async with Switch() as switch:
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(1000)")

            async def end() -> None:
                process.kill()
                await process.wait()  # protected, in asyncio's code

            switch.on_release(end)
            switch.fork(process.wait)
            await fiber.yield_now()
            switch.cancel()
        return process.returncode

    assert run(main) == -9


def test_awaiting_a_task_from_a_cancelled_fiber_cancels_the_task(run: Run) -> None:
    """As everywhere in asyncio; a shield keeps it going."""

    async def main() -> tuple[bool, bool]:
        awaited = asyncio.create_task(asyncio.sleep(AGES))
        shielded = asyncio.create_task(asyncio.sleep(SOON, "done"))
        async with Switch() as switch:
            switch.fork(lambda: awaited)
            switch.fork(lambda: asyncio.shield(shielded))
            await fiber.yield_now()
            switch.cancel()
        await asyncio.wait([awaited])
        assert await shielded == "done"
        return awaited.cancelled(), shielded.cancelled()

    assert run(main) == (True, False)


# Our operations in plain tasks


def test_every_primitive_works_in_a_plain_task(run_plainly: Run) -> None:
    async def main() -> str:
        promise: Promise[str]
        promise, resolver = Promise.create()
        mutex, semaphore, condition = Mutex(), Semaphore(1), Condition()
        stream: Stream[str] = Stream(0)

        async def other() -> None:
            async with mutex.rw():
                await stream.add("taken")
            async with semaphore:
                resolver.resolve("resolved")
            await sleep(0)
            condition.broadcast()

        async with semaphore:
            task = asyncio.create_task(other())
            assert await stream.take() == "taken"
        async with mutex.ro():
            waiting = asyncio.create_task(condition.wait_no_mutex())
            assert await promise == "resolved"
        await waiting
        await task
        fiber.check()
        return "done"

    assert run_plainly(main) == "done"


def test_a_switch_opened_in_a_plain_task_is_a_whole_one(run_plainly: Run) -> None:  # S15, S16
    async def main() -> list[str]:
        trace: list[str] = []

        async def fail() -> None:
            await fiber.yield_now()
            raise ValueError("a fiber failed")

        async def wait() -> None:
            try:
                await asyncio.sleep(AGES)
            finally:
                trace.append("unwound")

        with pytest.raises(ValueError, match="a fiber failed"):
            async with Switch() as switch:
                switch.on_release(trace.append, "released")
                switch.fork(wait)
                switch.fork(fail)
                await asyncio.sleep(AGES)
        return trace

    assert run_plainly(main) == ["unwound", "released"]


def test_cancelling_a_plain_task_unwinds_its_switch_and_fibers(run_plainly: Run) -> None:  # S30
    async def main() -> list[str]:
        trace: list[str] = []

        async def wait(name: str, operation: Callable[[], Awaitable[None]]) -> None:
            try:
                await operation()
            except asyncio.CancelledError:
                trace.append(name)
                raise

        async def task() -> None:
            async with Switch() as switch:
                switch.on_release(trace.append, "released")
                switch.fork(wait, "ours", fiber.await_cancel)
                switch.fork(wait, "asyncio's", lambda: asyncio.sleep(AGES))
                await fiber.await_cancel()

        cancelled = asyncio.create_task(task())
        await asyncio.sleep(SOON)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert cancelled.cancelled()
        return trace

    assert run_plainly(main) == ["ours", "asyncio's", "released"]


@pytest.mark.parametrize("at_the_same_moment", [False, True])
def test_wait_for_around_a_take_loses_no_item(run_plainly: Run, at_the_same_moment: bool) -> None:  # S41
    async def main() -> int:
        stream: Stream[int] = Stream(1)
        task = asyncio.create_task(stream.take())
        await asyncio.sleep(0)
        if at_the_same_moment:
            await stream.add(1)  # the take is done; its task has not run yet
            task.cancel()
            try:
                return await task
            except asyncio.CancelledError:
                raise AssertionError("the item was lost") from None
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.take(), SOON)
        task.cancel()
        await asyncio.wait([task])
        await stream.add(1)
        return await stream.take()

    assert run_plainly(main) == 1


def test_gather_runs_our_operations_and_its_cancellation_withdraws_them(run_plainly: Run) -> None:
    async def main() -> list[int]:
        stream: Stream[int] = Stream(2)
        gathered = asyncio.gather(stream.take(), stream.take())
        await asyncio.sleep(0)
        gathered.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gathered
        await stream.add(1)
        await stream.add(2)
        return list(await asyncio.gather(stream.take(), stream.take()))

    assert run_plainly(main) == [1, 2]


def test_timeouts_of_both_kinds_keep_a_plain_tasks_account(run_plainly: Run) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON):
                with timeout(AGES):
                    await sleep(AGES)
        with pytest.raises(TimeoutError, match="longer than"), timeout(SOON):
            async with asyncio.timeout(AGES):
                await asyncio.sleep(AGES)
        assert cancelling() == 0

    run_plainly(main)


def test_a_foreign_cancel_of_a_fiber_is_its_failure(run: Run) -> None:  # S30
    async def main() -> list[str]:
        trace: list[str] = []
        tasks: list[asyncio.Task[Any]] = []

        async def victim() -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.append(task)
            await asyncio.sleep(AGES)

        async def other() -> None:
            try:
                await fiber.await_cancel()
            except Cancelled:
                trace.append("the rest is cancelled")
                raise

        with pytest.raises(asyncio.CancelledError) as raised:
            async with Switch() as switch:
                switch.fork(victim)
                switch.fork(other)
                await fiber.yield_now()
                tasks[0].cancel("by hand")
        assert raised.value.args == ("by hand",)
        assert cancelling() == 0
        fiber.check()
        return trace

    assert run(main) == ["the rest is cancelled"]


def test_a_foreign_cancel_that_comes_with_ours_is_not_swallowed(run: Run) -> None:
    async def main() -> None:
        async def body() -> None:
            with CancelScope() as scope:
                task = asyncio.current_task()
                assert task is not None
                scope.cancel()
                task.cancel("by hand")
                await asyncio.sleep(AGES)
            raise AssertionError("nobody heard of the foreign cancel")

        task = asyncio.create_task(body())
        await asyncio.wait([task])
        assert task.cancelled()

    run(main)


def test_an_async_generator_of_a_library_is_closed_when_its_fiber_is_cancelled(run: Run) -> None:
    async def main() -> list[str]:
        trace: list[str] = []

        async def ticks() -> AsyncIterator[int]:
            try:
                while True:
                    yield 1
                    await asyncio.sleep(SOON)
            finally:
                trace.append("closed")

        async def consume() -> None:
            async with contextlib.aclosing(cast(Any, ticks())) as source:
                async for _ in source:
                    pass

        with move_on_after(3 * SOON):
            await consume()
        return trace

    assert run(main) == ["closed"]


def test_our_operations_outside_of_any_task_say_what_is_wrong(run: Run) -> None:
    async def main() -> BaseException | None:
        caught: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

        def callback() -> None:
            try:
                fiber.check()
            except RuntimeError as error:
                caught.set_result(error)
            else:
                caught.set_result(None)

        asyncio.get_running_loop().call_soon(callback)
        return await caught

    assert isinstance(run(main), RuntimeError)
    with pytest.raises(RuntimeError):
        fiber.check()
