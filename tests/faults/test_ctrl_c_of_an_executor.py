"""Ctrl-C to a program with a `PoolExecutor`, while that starts, while a block waits for it and while Python exits."""

import signal

import pytest

from .program import Program
from .test_ctrl_c import INTERRUPTED

WATCH = """
    def joins(frame):
        return frame is not None and (frame.f_code.co_name == "join" or joins(frame.f_back))

    def watch():
        # Say when the main thread waits for an executor's thread.
        while not joins(sys._current_frames().get(threading.main_thread().ident)):
            time.sleep(0.001)
        say("waits")

    def work():
        try:
            say("works")
            spin()
        finally:
            say("cancelled")

    async def never_end():
        try:
            say("works")
            await fiber.await_cancel()
        finally:
            say("cancelled")
            with domains.protect():
                await asyncio.Event().wait()

    threading.Thread(target=watch, daemon=True).start()
    executor = domains.PoolExecutor(1)
"""


def test_ctrl_c_as_the_first_submit_starts_the_executor_leaves_no_thread(tmp_path):
    source = """
    executor = domains.PoolExecutor(1)
    began = threading.active_count()

    def interrupt(frame, event, argument):
        if frame.f_code is threading.Event.wait.__code__ and frame.f_back.f_code is threading.Thread.start.__code__:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    sys.setprofile(interrupt)
    try:
        executor.submit(abs, -1)
    except KeyboardInterrupt:
        say("interrupted")
    executor.shutdown()
    say(threading.active_count() - began)
    """
    with Program(source, tmp_path, "auto") as program:
        assert program.hear() == "interrupted"
        assert program.hear() == 0
        assert (program.wait(), program.errors) == (0, "")
        program.check_nothing_is_left()


def test_ctrl_c_as_a_block_waits_for_its_jobs_cancels_them(tmp_path):
    source = """
    try:
        with executor:
            future = executor.submit(work)
    except KeyboardInterrupt:
        say(future.cancelled())
    """
    with Program(WATCH + source, tmp_path, "auto") as program:
        assert {program.hear(), program.hear()} == {"works", "waits"}
        program.interrupt_group()
        assert [program.hear(), program.hear()] == ["cancelled", True]
        assert (program.wait(), program.errors) == (0, "")
        program.check_nothing_is_left()


def test_ctrl_c_as_python_waits_for_jobs_at_its_exit_cancels_them(tmp_path):
    source = """
    import atexit

    atexit.register(print, '"exit functions"')  # and what they leave in buffers
    atexit.register(say, "are called")
    executor.submit(work)
    executor.submit(say, "never")
    """
    with Program(WATCH + source, tmp_path, "auto") as program:
        assert {program.hear(), program.hear()} == {"works", "waits"}
        program.interrupt_group()
        assert program.hear_rest() == ['"cancelled"', '"are called"', '"exit functions"']
        assert program.wait() in INTERRUPTED
        assert program.errors == "KeyboardInterrupt\n"
        program.check_nothing_is_left()


def test_ctrl_c_that_comes_just_before_the_main_thread_sleeps_is_heard(tmp_path):
    source = """
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # that thread takes it, and the main one sleeps on
    executor.submit(work)
    """
    with Program(WATCH + source, tmp_path, "auto") as program:
        assert {program.hear(), program.hear()} == {"works", "waits"}
        program.interrupt_group()
        assert program.hear_rest() == ['"cancelled"']
        assert program.wait() in INTERRUPTED
        program.check_nothing_is_left()


@pytest.mark.parametrize("how", ["executor.submit(never_end)", "executor.submit(never_end).result()"])
def test_a_second_ctrl_c_ends_a_program_whose_jobs_do_not_end(tmp_path, how):
    source = f"""
    import atexit

    atexit.register(say, "exit functions")
    {how}
    """
    with Program(WATCH + source, tmp_path, "auto") as program:
        heard = [program.hear()]
        if "result" not in how:
            heard.append(program.hear())
        program.interrupt_group()
        heard += [program.hear() for _ in range(3 - len(heard))]
        assert sorted(heard) == ["cancelled", "waits", "works"]
        program.interrupt_group()
        assert program.hear_rest() == []
        assert program.wait() == -signal.SIGINT
        assert "Exception ignored" not in program.errors
        program.check_nothing_is_left()


def test_ctrl_c_as_a_submit_wakes_the_executors_loop_costs_no_later_submit(tmp_path):
    source = """
    sys.modules["uvloop"] = None  # its loop is no Python code that could be cut in two
    executor = domains.PoolExecutor(1)
    executor.submit(abs, -1).result()
    inbox = executor._inbox
    while inbox._is_awaited:
        time.sleep(0.001)

    def interrupt(frame, event, argument):
        if event == "call" and frame.f_code.co_name == "call_soon_threadsafe":
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    sys.setprofile(interrupt)
    try:
        executor.submit(abs, -2)
    except KeyboardInterrupt:
        say("interrupted")
    say(executor.submit(abs, -3).result(10))
    executor.shutdown()
    """
    with Program(source, tmp_path, "auto") as program:
        assert program.hear() == "interrupted"
        assert program.hear() == 3
        assert program.wait() == 0
        program.check_nothing_is_left()
