"""Ctrl-C at any moment, to every process of the group, ends the program once, with one report, and leaves nothing."""

import contextlib
import os
import signal
import time

import pytest

from .program import PATIENCE_SECONDS, Program, reports

INTERRUPTED = (-signal.SIGINT, 128 + signal.SIGINT)
"""What a shell shows as 130."""


def check_interrupted_once(program):
    assert program.wait() in INTERRUPTED, program.errors
    assert reports(program.errors) == 1, program.errors
    assert program.errors.rstrip().endswith("KeyboardInterrupt")
    program.check_nothing_is_left()


MOMENTS = {
    "jobs compute": """
        def job():
            say("now")
            spin()

        async def main(env):
            async with ExecutorPool(env.domain_mgr, domain_count=2) as pool, Switch() as sw:
                pool.submit_fork(sw, job, weight=1.0)
        """,
    "jobs wait": """
        async def job():
            say("now")
            await fiber.await_cancel()

        async def main(env):
            async with env.domain_mgr.spawn() as domain:
                await domain.call(job)
        """,
    "the program waits": """
        async def main(env):
            async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
                await pool.submit(os.getpid, weight=1.0)
                say("now")
                await fiber.await_cancel()
        """,
    "domains start": """
        async def main(env):
            async with ExecutorPool(env.domain_mgr, domain_count=4) as pool:
                say("now")
                await pool.submit(os.getpid, weight=1.0)
                await fiber.await_cancel()
        """,
    "the pool closes": """
        async def job():
            with domains.protect():
                say("now")
                await asyncio.sleep(0.3)

        async def main(env):
            async with ExecutorPool(env.domain_mgr, domain_count=2) as pool, Switch() as sw:
                for _ in range(2):
                    pool.submit_fork(sw, job, weight=1.0)
        """,
    "many results are on their way": """
        async def main(env):
            async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
                say("now")
                async for _ in pool.map(abs, iter(int, 1), weight=1.0):
                    pass
        """,
}


@pytest.mark.parametrize("moment", list(MOMENTS))
def test_ctrl_c_ends_the_program_once_while(link, tmp_path, moment):
    with Program(MOMENTS[moment] + "\n        domains.run(main, link=LINK)\n", tmp_path, link) as program:
        assert program.hear() == "now"
        program.interrupt_group()
        check_interrupted_once(program)


@pytest.mark.parametrize("milliseconds", [0, 20, 40, 60, 80, 100, 130, 160, 200, 300])
def test_ctrl_c_ends_a_program_that_starts(link, tmp_path, milliseconds):
    source = """
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
            await pool.submit(spin, weight=1.0)

    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link, "announce") as program:
        assert program.hear() == "started"  # before that it is Python that starts and imports its own
        time.sleep(milliseconds / 1000)  # any moment will do: these are many different ones
        deadline = time.monotonic() + PATIENCE_SECONDS
        program.interrupt_group()
        while program.process.poll() is None and time.monotonic() < deadline:
            if was_lost_by_python(program.errors):
                program.interrupt_group()
                break
            time.sleep(0.01)
        assert program.wait() in INTERRUPTED, program.errors
        assert reports(program.errors) == 1, program.errors
        program.check_nothing_is_left(seconds=5.0)  # a launcher that is still importing ends when it looks


def was_lost_by_python(errors):
    """It came as Python took the lock of an import away, before ours hold it: there nothing can be raised."""
    return "Exception ignored in" in errors and "<frozen importlib._bootstrap>" in errors


def test_jobs_unwind_at_ctrl_c(link, tmp_path):
    source = """
    async def job():
        try:
            say("now")
            await fiber.await_cancel()
        finally:
            say("unwound")

    async def main(env):
        try:
            async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
                await pool.submit(job, weight=1.0)
        finally:
            say("parent")

    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link) as program:
        assert program.hear() == "now"
        program.interrupt_group()
        assert [program.hear(), program.hear()] == ["unwound", "parent"]
        check_interrupted_once(program)


def test_a_second_ctrl_c_ends_a_program_that_does_not_unwind(link, tmp_path):
    source = """
    async def main(env):
        async with env.domain_mgr.spawn() as domain, Switch() as sw:
            sw.fork(domain.call, spin)
            try:
                say("now")
                await fiber.await_cancel()
            finally:
                say("again")
                spin_by_calls()

    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link) as program:
        assert program.hear() == "now"
        program.interrupt_group()
        assert program.hear() == "again"
        program.interrupt_group()
        assert program.wait() in INTERRUPTED
        program.check_nothing_is_left()


_WAITING_THREAD = """
    import concurrent.futures

    def wait_for(future):
        try:
            say(repr(future.exception()))
        except concurrent.futures.CancelledError:
            say("cancelled")

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.ready()
            future = pool.as_executor().submit(spin)
            while not future.running():
                await fiber.yield_now()
            os.kill(pool.stats().domains[0].pid, signal.SIGSTOP)  # it answers nothing any more
            threading.Thread(target=wait_for, args=(future,)).start()
            try:
                say("now")
                await fiber.await_cancel()
            finally:
                say("again")
                spin_by_calls()
"""


def told_after_two_interrupts(program):
    assert program.hear() == "now"
    program.send_signal(signal.SIGINT)
    assert program.hear() == "again"
    program.send_signal(signal.SIGINT)
    told = program.hear()
    assert program.wait() in INTERRUPTED
    program.check_nothing_is_left()
    return told


def test_a_second_ctrl_c_tells_threads_that_wait_for_an_executor(link, tmp_path):
    with Program(_WAITING_THREAD + "    domains.run(main, link=LINK)", tmp_path, link) as program:
        told = told_after_two_interrupts(program)
    # As the program heard that the domain was killed, or had ended before.
    assert told == "cancelled" or "loop of this executor's pool is closed" in told


def test_a_third_ctrl_c_tells_threads_that_wait_for_an_executor(tmp_path):
    source = """
    from domains.launcher.local import LocalProcess, LocalProvider

    def abandon_interrupted(self):
        signal.raise_signal(signal.SIGINT)
        abandon(self)

    abandon, LocalProvider.abandon = LocalProvider.abandon, abandon_interrupted
    LocalProcess.kill = lambda self: None  # so that the domain ends with the launcher only, when nobody hears it
    domains.run(main, link=LINK)
    """
    with Program(_WAITING_THREAD + source, tmp_path, "socketpair") as program:
        assert "loop of this executor's pool is closed" in told_after_two_interrupts(program)


def test_a_service_manager_that_terminates_every_process_lets_the_program_unwind(link, tmp_path):
    source = """
    async def job():
        try:
            say("now")
            await fiber.await_cancel()
        finally:
            say("job")

    async def main(env):
        try:
            async with env.domain_mgr.spawn() as domain:
                await domain.call(job)
        finally:
            say("parent")

    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link) as program:
        assert program.hear() == "now"
        for pid in [program.pid, *program.processes()]:
            with contextlib.suppress(ProcessLookupError):  # it may have unwound before the last of them hears of it
                os.kill(pid, signal.SIGTERM)
        assert {program.hear(), program.hear()} == {"job", "parent"}
        assert program.wait() == 128 + signal.SIGTERM
        assert program.errors == ""
        program.check_nothing_is_left()
