"""`fiber.dump()`: the tree of switches and fibers, their states, what each waits for, where, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import io
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from domains import Mutex, Promise, Stream, Switch, fiber, move_on_after, protect, run_in_thread, timeout
from domains.scheduler.clock import sleep
from domains.scheduler.context import root_contexts

Run = Callable[[Callable[[], Awaitable[Any]]], Any]


def line_of(word: str) -> str:
    """This file and the line that holds the word, which is in a comment there."""
    lines, first = inspect.getsourcelines(sys.modules[__name__])
    (number,) = [number for number, line in enumerate(lines, first or 1) if line.endswith(f"# {word}\n")]
    return f"at {__file__}:{number}"


def the_line(text: str, word: str) -> str:
    """The one line of a dump that holds a word."""
    (line,) = [line for line in text.splitlines() if word in line]
    return line


def test_the_tree_shows_switches_scopes_and_fibers_where_they_belong(run: Run) -> None:
    async def main() -> str:
        async with Switch("outer") as outer:
            outer.fork_daemon(fiber.await_cancel, name="background")
            with protect(), timeout(1000):
                async with Switch("inner") as inner:
                    inner.fork(fiber.await_cancel, name="worker")
                    await fiber.yield_now()
                    text = fiber.dump()
                    inner.cancel()
        return text

    shape = [line.partition(" waits")[0].partition(" runs")[0] for line in run(main).splitlines()]
    assert shape == [
        "root",
        "  switch 'main', open",
        "    switch 'outer', open",
        "      daemons of switch 'outer'",
        "        fiber 'background'",
        "      protect",
        "        timeout",
        "          switch 'inner', open",
        "            fiber 'main'",
        "            fiber 'worker'",
    ]


def test_a_waiting_fiber_shows_its_operation_its_target_its_place_and_for_how_long(run: Run) -> None:
    async def main() -> str:
        mutex = Mutex("the lock")

        async def waiter() -> None:
            await mutex.lock()  # waits here

        async with Switch() as switch:
            await mutex.lock()
            switch.fork(waiter)
            await fiber.yield_now()
            text = fiber.dump()
            mutex.unlock()
        return text

    line = the_line(run(main), "waiter")
    expected = (
        r"fiber 'waiter' waits in Mutex\.lock on <mutex 'the lock', held by fiber 'main', 1 waiting> for \d+\.\d{3} s"
    )
    assert re.match(rf"\s+{expected}, {re.escape(line_of('waits here'))}$", line)


def test_how_long_it_waits_is_counted_from_the_beginning_of_its_wait(run: Run) -> None:
    async def main() -> tuple[float, float]:
        def seconds() -> float:
            found = re.search(r" for (\d+\.\d+) s", the_line(fiber.dump(), "await_cancel"))
            assert found is not None
            return float(found[1])

        async with Switch() as switch:
            switch.fork(fiber.await_cancel)
            await fiber.yield_now()
            first = seconds()
            await sleep(0.02)
            second = seconds()
            switch.cancel()
        return first, second

    first, second = run(main)
    assert second - first >= 0.019


def test_the_states_of_fibers(run: Run) -> None:
    async def main() -> dict[str, str]:
        promise: Promise[None]
        promise, resolver = Promise.create()
        event = asyncio.Event()

        async def new() -> None:
            """Is dumped before it begins."""

        async def ready() -> None:
            await promise

        async def elsewhere() -> None:
            await event.wait()

        async with Switch() as switch:
            switch.fork(ready)
            switch.fork(elsewhere)
            await fiber.yield_now()
            switch.fork(new)
            resolver.resolve(None)
            text = fiber.dump()
            event.set()
        return {name: the_line(text, f"'{name}' ").split(",")[0] for name in ["main", "new", "ready", "elsewhere"]}

    assert {name: line.strip() for name, line in run(main).items() if name != "main"} == {
        "new": "fiber 'new' has not begun",
        "ready": "fiber 'ready' can run",
        "elsewhere": "fiber 'elsewhere' waits in other code",
    }


def test_the_running_fiber_shows_who_calls(run: Run) -> None:
    async def main() -> str:
        return fiber.dump()  # calls here

    assert the_line(run(main), "fiber 'main'").strip() == f"fiber 'main' runs, {line_of('calls here')}"


def test_a_fiber_that_awaits_a_task_shows_the_task(run: Run) -> None:
    async def main() -> str:
        task = asyncio.create_task(asyncio.sleep(1000), name="a library's")
        with move_on_after(1000) as scope:
            async with Switch() as switch:
                switch.fork(lambda: task, name="caller")
                await fiber.yield_now()
                text = fiber.dump()
                scope.cancel()
        return text

    assert 'waits in other code on <Task pending name="a library\'s"' in the_line(run(main), "fiber 'caller'")


def test_tasks_that_are_no_fibers_are_listed_below(run: Run) -> None:
    async def main() -> list[str]:
        event = asyncio.Event()

        async def plain() -> None:
            await event.wait()

        task = asyncio.create_task(plain(), name="plain")
        await asyncio.sleep(0)
        text = fiber.dump()
        event.set()
        await task
        return text.splitlines()

    lines = run(main)
    assert lines[-1].startswith("task 'plain', no fiber, at ")


def test_a_plain_task_in_an_operation_of_ours_is_a_tree_of_its_own(run: Run) -> None:
    async def main() -> str:
        stream: Stream[int] = Stream(1)
        task = asyncio.create_task(stream.take(), name="plain")
        await asyncio.sleep(0)
        text = fiber.dump()
        await stream.add(1)
        await task
        return text

    text = run(main)
    assert "\ntask 'plain'\n  fiber 'plain' waits in Stream.take on <stream of capacity 1, 0 items> for" in text
    assert "no fiber" not in text


def test_a_plain_task_that_has_ended_leaves_nothing_to_show(run: Run) -> None:
    """And nothing for the garbage collector, which a service with many such tasks would wait for."""

    async def main() -> tuple[int, int]:
        gc.disable()
        try:
            before = len(root_contexts())
            for _ in range(100):
                await asyncio.create_task(sleep(0))
            return before, len(root_contexts())
        finally:
            gc.enable()

    before, after = run(main)
    assert after <= before + 1  # asyncio may still hold the last task


def test_a_cancelled_switch_shows_why_and_what_holds_it_up(run: Run) -> None:
    async def main() -> str:
        texts: list[str] = []

        async def release() -> None:
            texts.append(fiber.dump())

        async def fail() -> None:
            raise ValueError("no luck")

        try:
            async with Switch("unlucky") as switch:
                switch.on_release(release)
                switch.fork(fail)
        except ValueError:
            pass
        return texts[0]

    assert the_line(run(main), "unlucky").strip() == (
        "switch 'unlucky', releasing, cancelled because of ValueError('no luck')"
    )


def test_a_call_in_a_thread_shows_the_function(run: Run) -> None:
    async def main() -> str:
        begun, opened = threading.Event(), threading.Event()

        def call() -> None:
            begun.set()
            opened.wait(20)

        async with Switch() as switch:
            switch.fork(run_in_thread, call)
            await run_in_thread(begun.wait)
            text = fiber.dump()
            opened.set()
        return text

    assert re.search(r"waits in run_in_thread on <function .*call at", run(main))


def test_what_cannot_be_shown_or_is_too_long_does_not_break_the_dump(run: Run) -> None:
    class Hidden(Exception):
        def __repr__(self) -> str:
            raise RuntimeError("not shown")

    class Long(Exception):
        def __repr__(self) -> str:
            return "x" * 10_000

    async def main() -> str:
        texts: list[str] = []
        for error in (Hidden(), Long()):
            try:
                async with Switch() as switch:
                    switch.fail(error)
                    texts.append(fiber.dump())
            except (Hidden, Long):
                pass
        return "".join(texts)

    text = run(main)
    assert "cancelled because of <Hidden, whose repr raises RuntimeError>" in text
    assert "xxx..." in text
    assert max(len(line) for line in text.splitlines()) < 400


def test_the_dump_is_returned_and_written_to_a_file(run: Run) -> None:
    file = io.StringIO()

    async def main() -> str:
        return fiber.dump(file)

    assert run(main) == file.getvalue()
    assert file.getvalue().startswith("root\n")


def test_a_task_that_is_thrown_away_inside_a_switch_is_not_shown() -> None:
    async def stuck() -> None:
        with contextlib.suppress(RuntimeError):  # nothing can wait as it is thrown away
            async with Switch("left behind"):
                await asyncio.Event().wait()

    async def begin() -> str:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # it was pending
        task = asyncio.ensure_future(stuck())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task
        return fiber.dump()

    loop = asyncio.new_event_loop()
    assert "left behind" in loop.run_until_complete(begin())
    loop.close()
    del loop
    gc.disable()  # what is left of the task itself must not be collected a second later
    try:
        gc.collect()
        assert "left behind" not in fiber.dump()
    finally:
        gc.enable()


def test_dumping_changes_nothing(run: Run) -> None:
    async def main() -> list[str]:
        trace: list[str] = []

        async def work(name: str) -> None:
            for turn in range(3):
                trace.append(f"{name}{turn}")
                fiber.dump()
                await fiber.yield_now()

        await fiber.both(lambda: work("a"), lambda: work("b"))
        return trace

    assert run(main) == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_a_signal_writes_the_dump_to_standard_error_and_the_program_goes_on() -> None:
    program = """
        import signal, sys
        from domains import Stream, Switch, fiber, run, run_in_thread

        async def main():
            stream = Stream(1)
            async with Switch("service") as switch:
                switch.fork_daemon(stream.take, name="hangs")
                await fiber.yield_now()
                print("ready", flush=True)
                await run_in_thread(sys.stdin.readline)
            print("done")
        run(main, dump_on_signal=signal.SIGUSR1)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGUSR1)
            lines = []
            while not (lines and "fiber 'hangs'" in lines[-1]):
                lines.append(process.stderr.readline())
                assert lines[-1], "the dump ends too early"
            output, _ = process.communicate("go on\n", timeout=30)
        finally:
            process.kill()
    assert lines[0] == "root\n"
    assert any("switch 'service', open" in line for line in lines)
    assert "waits in Stream.take on <stream of capacity 1, 0 items> for" in lines[-1]
    assert output == "done\n"
    assert process.returncode == 0
