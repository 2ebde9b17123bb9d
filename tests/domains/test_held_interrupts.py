"""A Ctrl-C that comes while modules are imported is raised, once, when they are whole."""

import asyncio
import signal
import subprocess
import sys
import threading

import psutil
import pytest

import domains
from domains.held_interrupts import interrupts_held
from domains.scheduler.run import event_loop_factory


@pytest.fixture(autouse=True)
def python_handles_interrupts():
    # A shell that runs the tests in the background ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_an_interrupt_is_raised_at_the_end_and_once():
    steps = []
    with pytest.raises(KeyboardInterrupt):
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            steps.append("whole")
        steps.append("never")
    assert steps == ["whole"]


def test_one_that_another_thread_receives_is_held_as_well():
    listening, heard = threading.Event(), threading.Event()

    def receive():
        listening.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        heard.set()

    thread = threading.Thread(target=receive)
    thread.start()
    steps = []
    with pytest.raises(KeyboardInterrupt), interrupts_held():
        listening.set()
        heard.wait()
        thread.join()
        steps.append("whole")
    assert steps == ["whole"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_program_has_set_itself_is_called_at_the_end(number):
    calls = []
    before = signal.signal(number, lambda number, _: calls.append(number))
    try:
        with interrupts_held():
            signal.raise_signal(number)
            assert calls == []
        assert calls == [number]
    finally:
        signal.signal(number, before)


def test_a_handler_that_raises_as_it_is_given_back_keeps_no_other_from_that(monkeypatch):
    def terminate(*_):
        raise SystemExit("terminated")

    def set_handler(number, handler):
        previous = real(number, handler)
        if handler is terminate:
            signal.raise_signal(number)
        return previous

    real = signal.signal
    before = real(signal.SIGTERM, terminate)
    try:
        with pytest.raises(SystemExit, match="terminated"), interrupts_held():
            monkeypatch.setattr(signal, "signal", set_handler)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        real(signal.SIGTERM, before)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, event_loop_factory()])
def test_an_event_loop_hears_of_one_signal_once(loop_factory):
    calls = []

    async def main():
        heard = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, lambda: (calls.append("interrupt"), heard.set()))
        try:
            with interrupts_held():
                signal.raise_signal(signal.SIGINT)
            await heard.wait()
            for _ in range(3):  # a second one would have come by now
                await asyncio.sleep(0)
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, signal.default_int_handler)

    loop = loop_factory()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    assert calls == ["interrupt"]


@pytest.mark.parametrize("name", ["LauncherProcess.__init__", "Popen._execute_child", "LauncherProcess.close"])
@pytest.mark.parametrize("event", ["call", "return"])
def test_a_launcher_that_an_interrupt_finds_half_started_or_ended_is_not_left_behind(name, event):
    def interrupt(frame, what, _):
        if what == event and frame.f_code.co_qualname == name:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    async def main(env):
        """It needs no domain, so nobody takes the launcher."""

    before = psutil.Process().children()  # earlier tests may have left multiprocessing's own, which lives on
    sys.setprofile(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            domains.run(main)
    finally:
        sys.setprofile(None)
    assert psutil.Process().children() == before


def test_a_signal_that_python_does_not_handle_is_left_alone():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_within_comes_along_as_the_context():
    with pytest.raises(KeyboardInterrupt) as caught, interrupts_held():
        signal.raise_signal(signal.SIGINT)
        raise LookupError("within")
    assert isinstance(caught.value.__context__, LookupError)


def test_in_another_thread_nothing_is_done():
    handlers = []

    def within():
        with interrupts_held():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=within)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


_INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class CtrlC:
    # As one of our modules is looked for, in the midst of the import of others.
    def find_spec(self, name, path, target=None):
        if name == {inner!r}:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, CtrlC())
import domains
try:
    {statement}
except KeyboardInterrupt:
    print("interrupted", all(name in sys.modules for name in ({inner!r}, {outer!r})))
"""


@pytest.mark.parametrize(
    ("statement", "inner", "outer"),
    [
        ("from domains import ExecutorPool", "domains.failures", "domains.pool.executor"),
        ("domains.testing", "domains.scheduler.mock", "domains.testing"),
        ("domains.run(print)", "domains.env", "domains.program"),
    ],
)
def test_imports_are_whole_when_the_interrupt_comes(statement, inner, outer):
    source = _INTERRUPTED.format(statement=statement, inner=inner, outer=outer)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "interrupted True\n", done.stderr
