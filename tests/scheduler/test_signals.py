"""Ctrl-C and SIGTERM, sent to real programs: clean unwinding once, at once the second time, and the exit status.

Programs say by a line what they have come to, and signals are sent on that: nothing here depends on how long
something takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple

import pytest

from domains.scheduler import fiber
from domains.scheduler.cancel import protect
from domains.scheduler.run import event_loop_factory, run

PATIENCE_SECONDS = 30.0

PREAMBLE = """
import asyncio, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the shell has done
from domains import Cancelled, CancelScope, Switch, fiber, protect, run_in_thread
from domains.scheduler.clock import sleep
from domains.scheduler.run import event_loop_factory, run

def say(word):
    print(word, flush=True)

async def wait(name):
    try:
        await fiber.await_cancel()
    except Cancelled as cancelled:
        say(f"{name} cancelled because of {cancelled.reason!r}")
        raise

def start(main, **options):
    run(main, loop_factory=asyncio.new_event_loop if sys.argv[1] == "asyncio" else event_loop_factory(), **options)
"""


class End(NamedTuple):
    """How a program has ended: its exit status (minus the signal's number, if one killed it) and what it said."""

    status: int
    said: list[str]
    errors: str


class Program:
    """A Python program that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdin is not None
        self.stdin = process.stdin

    def says(self, expected: str) -> None:
        """Read its next line, which must be this one."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().rstrip("\n")
        if line != expected:
            self.process.kill()
            raise AssertionError(f"said {line!r}, not {expected!r}; {self.process.communicate()}")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> End:
        """Wait until it has ended."""
        output, errors = self.process.communicate(timeout=PATIENCE_SECONDS)
        return End(self.process.returncode, output.splitlines(), errors)


Start = Callable[[str], Program]


@pytest.fixture(name="start", params=["asyncio", "uvloop"])
def start_program(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start a program that is given by its text, on each kind of loop."""
    with contextlib.ExitStack() as started:

        def start(text: str) -> Program:
            process = subprocess.Popen(
                [sys.executable, "-c", PREAMBLE + textwrap.dedent(text), request.param],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.enter_context(process)
            started.callback(process.kill)
            return Program(process)

        yield start


def test_ctrl_c_unwinds_everything_once_and_raises_keyboard_interrupt(start: Start) -> None:
    program = start("""
        async def main():
            async with Switch() as switch:
                switch.on_release(say, "released")
                switch.fork(wait, "a")
                switch.fork(wait, "b")
                await fiber.yield_now()
                say("ready")
                await wait("main")
        start(main)
    """)
    program.says("ready")
    program.send(signal.SIGINT)
    end = program.end()
    assert end.status == -signal.SIGINT
    cancelled = "cancelled because of KeyboardInterrupt()"
    assert end.said == [f"a {cancelled}", f"b {cancelled}", f"main {cancelled}", "released"]
    assert "KeyboardInterrupt" in end.errors


def test_the_keyboard_interrupt_can_be_caught_around_the_run(start: Start) -> None:
    program = start("""
        async def main():
            say("ready")
            await sleep(1000)
        try:
            start(main)
        except KeyboardInterrupt as error:
            say(f"caught after {type(error.__cause__).__name__}")
        try:
            start(main)
        except KeyboardInterrupt:
            say("and again")
    """)
    program.says("ready")
    program.send(signal.SIGINT)
    program.says("caught after Cancelled")
    program.says("ready")
    program.send(signal.SIGINT)
    assert program.end() == End(0, ["and again"], "")


def test_sigterm_unwinds_and_exits_with_143(start: Start) -> None:
    program = start("""
        async def main():
            async with Switch() as switch:
                switch.on_release(say, "released")
                say("ready")
                await wait("main")
        start(main)
    """)
    program.says("ready")
    program.send(signal.SIGTERM)
    said = ["main cancelled because of SystemExit(143)", "released"]
    assert program.end() == End(143, said, "")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_a_hook_that_waits(start: Start, number: signal.Signals, status: int) -> None:
    program = start("""
        async def hang():
            try:
                say("releasing")
                await sleep(1000)
            finally:
                say("ended")

        async def main():
            async with Switch() as switch:
                switch.on_release(hang)
                say("ready")
                await wait("main")
        start(main)
    """)
    program.says("ready")
    program.send(number)
    assert program.process.stdout is not None
    program.process.stdout.readline()
    program.says("releasing")
    program.send(number)
    end = program.end()
    assert end.status == status
    assert end.said == ["ended"]


def test_a_first_signal_during_a_hook_lets_it_finish(start: Start) -> None:
    program = start("""
        async def release():
            say("releasing")
            await run_in_thread(sys.stdin.readline)
            say("released")

        async def main():
            async with Switch() as switch:
                switch.on_release(release)
            say(f"cancelled: {fiber.is_cancelled()}")
            await sleep(1000)
            say("not reached")
        signal.signal(signal.SIGUSR1, lambda *_: say("heard"))
        start(main)
    """)
    program.says("releasing")
    program.send(signal.SIGINT)
    program.send(signal.SIGUSR1)  # handled after the other, for its number is higher
    program.says("heard")
    program.stdin.write("go on\n")
    program.stdin.flush()
    end = program.end()
    assert end.status == -signal.SIGINT
    assert end.said == ["released", "cancelled: True"]


def test_a_second_signal_ends_cpu_bound_code(start: Start) -> None:
    program = start("""
        async def main():
            say("ready")
            while True:
                time.sleep(0)  # before 3.13 Python may set a signal aside that comes as `say` ends, until the next call
        signal.signal(signal.SIGUSR1, lambda *_: say("goes on"))
        start(main)
    """)
    program.says("ready")
    program.send(signal.SIGINT)
    program.send(signal.SIGUSR1)
    program.says("goes on")  # the first one waits for the fiber's next operation
    program.send(signal.SIGINT)
    end = program.end()
    assert end.status == -signal.SIGINT
    assert "KeyboardInterrupt" in end.errors


def test_a_second_signal_in_a_forked_fiber_is_reported_once(start: Start) -> None:
    program = start("""
        async def spin():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

        async def main():
            async with Switch() as switch:
                switch.fork(spin)
                await wait("main")
        start(main)
    """)
    end = program.end()
    assert (end.status, end.errors) == (143, "")


def test_cpu_bound_code_hears_of_a_first_signal_at_its_next_operation(start: Start) -> None:
    program = start("""
        heard = threading.Event()
        signal.signal(signal.SIGUSR1, lambda *_: heard.set())
        async def main():
            say("ready")
            while not heard.is_set():
                time.sleep(0)
            say("still here")
            try:
                await sleep(0)
            finally:
                say("unwound")
        start(main)
    """)
    program.says("ready")
    program.send(signal.SIGINT)
    program.send(signal.SIGUSR1)
    end = program.end()
    assert end.status == -signal.SIGINT
    assert end.said == ["still here", "unwound"]


def test_a_first_signal_waits_for_a_call_in_a_thread(start: Start) -> None:  # S60
    program = start("""
        async def call():
            say(f"the call returned {await run_in_thread(sys.stdin.readline)!r}")

        async def main():
            async with Switch() as switch:
                switch.fork(call)
                await fiber.yield_now()
                say("ready")
                await wait("main")
        start(main)
    """)
    program.says("ready")
    program.send(signal.SIGINT)
    program.says("main cancelled because of KeyboardInterrupt()")
    program.stdin.write("word\n")
    program.stdin.flush()
    end = program.end()
    assert end.status == -signal.SIGINT
    assert end.said == [r"the call returned 'word\n'"]


def test_a_second_signal_does_not_wait_for_a_call_in_a_thread(start: Start) -> None:
    program = start("""
        async def main():
            async with Switch() as switch:
                switch.fork(run_in_thread, threading.Event().wait)
                await fiber.yield_now()
                say("ready")
                await wait("main")
        start(main)
    """)
    program.says("ready")
    program.send(signal.SIGINT)
    program.says("main cancelled because of KeyboardInterrupt()")
    program.send(signal.SIGINT)
    assert program.end().status == -signal.SIGINT


def test_one_signal_abandons_a_cancellable_call(start: Start) -> None:  # S60
    program = start("""
        async def main():
            say("ready")
            await run_in_thread(threading.Event().wait, cancellable=True)
        start(main)
    """)
    program.says("ready")
    program.send(signal.SIGTERM)
    assert program.end() == End(143, [], "")


def test_a_second_signal_stops_code_that_catches_its_cancellation(start: Start) -> None:
    program = start("""
        async def stubborn():
            while True:
                try:
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    say("stays")

        async def main():
            async with Switch() as switch:
                switch.fork(stubborn)
                await fiber.yield_now()
                say("ready")
        start(main)
    """)
    program.says("ready")
    program.send(signal.SIGINT)
    program.says("stays")
    program.send(signal.SIGINT)
    assert program.end().status == -signal.SIGINT


def test_a_result_does_not_swallow_the_signal(start: Start) -> None:
    program = start("""
        async def main():
            say("ready")
            try:
                await sleep(1000)
            except Cancelled:
                return "a result"
        start(main)
    """)
    program.says("ready")
    program.send(signal.SIGTERM)
    assert program.end().status == 143


def test_a_failure_while_unwinding_is_raised_instead(start: Start) -> None:
    program = start("""
        def fail():
            raise ValueError("could not be released")

        async def main():
            async with Switch() as switch:
                switch.on_release(fail)
                say("ready")
                await sleep(1000)
        start(main)
    """)
    program.says("ready")
    program.send(signal.SIGTERM)
    end = program.end()
    assert end.status == 1
    assert "ValueError: could not be released" in end.errors


def test_a_handler_of_the_programs_own_is_left_alone(start: Start) -> None:
    program = start("""
        async def main():
            with CancelScope() as scope:
                loop = asyncio.get_running_loop()
                signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(scope.cancel))
                say("ready")
                await sleep(1000)
            say("handled" if scope.cancelled else "not handled")
        signal.signal(signal.SIGTERM, lambda *_: say("mine"))
        start(main)
    """)
    program.says("ready")
    program.send(signal.SIGTERM)
    program.says("mine")
    program.send(signal.SIGINT)
    assert program.end() == End(0, ["handled"], "")


def test_a_signal_that_hits_another_thread_wakes_the_sleeping_loop(start: Start) -> None:
    program = start("""
        def hit_me():
            say("ready")
            sys.stdin.readline()
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            threading.Event().wait()

        async def main():
            threading.Thread(target=hit_me, daemon=True).start()
            await wait("main")
        start(main)
    """)
    program.says("ready")
    program.stdin.write("go on\n")
    program.stdin.flush()
    assert program.end() == End(143, ["main cancelled because of SystemExit(143)"], "")


def test_protected_code_finishes_before_the_signal_is_heard(start: Start) -> None:
    program = start("""
        async def main():
            with protect():
                say("ready")
                await run_in_thread(sys.stdin.readline)
                await sleep(0)
                say("finished")
            fiber.check()
        signal.signal(signal.SIGUSR1, lambda *_: say("heard"))
        start(main)
    """)
    program.says("ready")
    program.send(signal.SIGINT)
    program.send(signal.SIGUSR1)
    program.says("heard")
    program.stdin.write("go on\n")
    program.stdin.flush()
    end = program.end()
    assert end.status == -signal.SIGINT
    assert end.said == ["finished"]


def test_a_forked_child_is_ended_by_signals_as_if_nothing_ran() -> None:
    async def main() -> list[int]:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        ended = []
        for _ in range(20):
            child = os.fork()
            if not child:
                signal.alarm(int(PATIENCE_SECONDS))
                while True:
                    signal.pause()
            os.kill(child, signal.SIGTERM)  # perhaps before it has come to life
            ended.append(os.waitpid(child, 0)[1])  # noqa: ASYNC222  # it is dead
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
        return ended

    assert run(main) == [signal.SIGTERM] * 20


def test_handlers_are_there_only_during_the_run() -> None:
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    before = [signal.getsignal(number) for number in numbers]
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)

    async def main() -> list[object]:
        return [signal.getsignal(number) for number in numbers]

    during = run(main, dump_on_signal=signal.SIGUSR1)
    assert during[2] != before[2]
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(wakeup) == wakeup


def test_a_run_in_another_thread_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    async def main() -> None:
        seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run, args=[main])
    thread.start()
    thread.join()
    assert seen == [before]


def _interrupted_at(call: int, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> tuple[object, int]:
    """Run a small program that Ctrl-C interrupts at this call or return of a function; its outcome, and how many."""
    seen = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal seen
        seen += 1
        if seen == call:
            signal.raise_signal(signal.SIGINT)

    async def main() -> str:
        await asyncio.sleep(0)
        return "done"

    outcome: object
    sys.setprofile(count)
    try:
        outcome = run(main, loop_factory=loop_factory)
    except BaseException as error:
        outcome = error
    finally:
        sys.setprofile(None)
    return outcome, seen


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, event_loop_factory()], ids=["asyncio", "preferred"])
def test_ctrl_c_at_any_call_of_a_run_ends_it_whole(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        outcome, calls = _interrupted_at(0, loop_factory)
        assert outcome == "done"
        assert calls > 100
        descriptors = os.listdir("/proc/self/fd") if sys.platform == "linux" else []
        gc.disable()  # Python ignores what is raised where garbage is told that it goes
        for call in range(1, calls - 10):  # the last ones are those that stop the counting
            outcome, _ = _interrupted_at(call, loop_factory)
            assert isinstance(outcome, KeyboardInterrupt), (call, outcome)
            assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers, call
            outcome = None
            assert len(os.listdir("/proc/self/fd") if sys.platform == "linux" else []) == len(descriptors), call
    finally:
        gc.enable()
        signal.signal(signal.SIGINT, before)


def test_a_signal_that_cannot_be_handled_leaves_the_others_as_they_were() -> None:
    async def main() -> None:
        """Never runs."""

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(OSError, match="Invalid argument"):
        run(main, dump_on_signal=signal.SIGKILL)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, event_loop_factory()], ids=["asyncio", "preferred"])
def test_a_run_that_a_second_signal_ended_is_forgotten(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    tasks = []

    async def main() -> None:
        tasks.append(weakref.ref(asyncio.current_task()))
        for _ in range(2):
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
        with protect():
            await fiber.await_cancel()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(main, loop_factory=loop_factory)
    finally:
        signal.signal(signal.SIGINT, before)
    while gc.collect():
        pass
    assert [task() for task in tasks] == [None]


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, event_loop_factory()], ids=["asyncio", "preferred"])
def test_a_second_signal_unwinds_tasks_that_were_waited_for_at_the_end(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    steps = []

    async def stubborn() -> None:
        try:
            try:
                await asyncio.Event().wait()
            finally:
                asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
                steps.append("waits")
                await asyncio.Event().wait()
        finally:
            steps.append("unwound")

    async def main() -> None:
        tasks.append(asyncio.ensure_future(stubborn()))
        await asyncio.sleep(0)
        signal.raise_signal(signal.SIGINT)
        await fiber.await_cancel()

    tasks: list[asyncio.Task[None]] = []  # so that nobody throws it away
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(main, loop_factory=loop_factory)
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps == ["waits", "unwound"]


def test_a_second_signal_that_comes_as_handlers_are_given_back_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def set_handler(number: int, handler: Any) -> Any:
        previous = real(number, handler)
        if number == signal.SIGTERM and handler is signal.SIG_DFL:
            signal.raise_signal(signal.SIGINT)
        return previous

    async def main() -> None:
        monkeypatch.setattr(signal, "signal", set_handler)
        signal.raise_signal(signal.SIGINT)
        await fiber.await_cancel()

    real = signal.signal
    before = real(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(main)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        real(signal.SIGINT, before)
