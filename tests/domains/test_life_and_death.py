"""What a domain is born with, what is seen of it, and what runs as it ends."""

import asyncio
import atexit
import os
import random
import signal
import sys
import threading
import time

import pytest

import domains
from domains import DomainDied, ExecutorPool, Promise, Switch, fiber
from domains.domain import DomainHandle

from ..faults.limits import without_capabilities
from ..faults.program import Program

# Birth


def _signals():
    # Handlers as `module.name`, since some are functions that cannot travel.
    handlers = {}
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        handlers[int(number)] = getattr(handler, "__qualname__", None) or str(handler)
    return handlers, set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def test_signal_handlers_and_masks_of_the_parent_are_not_inherited(link):
    def mine(number, frame):
        raise AssertionError("the parent's handler")

    async def main(env):
        return await env.domain_mgr.run(_signals)

    plain, _ = domains.run(main, link=link)
    previous = [(number, signal.signal(number, mine)) for number in (signal.SIGUSR1, signal.SIGALRM, signal.SIGHUP)]
    ignored = [(number, signal.signal(number, signal.SIG_IGN)) for number in (signal.SIGUSR2, signal.SIGTERM)]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD})
    try:
        handlers, blocked = domains.run(main, link=link)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in previous + ignored:
            signal.signal(number, handler)
    assert handlers == plain
    assert not blocked


def test_random_generators_differ_between_domains(link):
    async def main(env):
        random.seed(1)
        plain = [await env.domain_mgr.run(_random) for _ in range(3)]
        return plain, [await env.domain_mgr.run(_numpy_random) for _ in range(3)]

    plain, numpy = domains.run(main, link=link)
    assert len(set(plain)) == 3
    assert len(set(numpy)) == 3


def _random():
    return random.random()  # of the module, not a copy of the parent's generator


def _numpy_random():
    import numpy

    return float(numpy.random.random())


def test_a_domain_has_one_thread_and_leads_a_process_group_of_its_own(link):
    async def main(env):
        return await env.domain_mgr.run(lambda: (threading.active_count(), os.getpgrp() == os.getpid()))

    assert domains.run(main, link=link) == (1, True)


def test_a_domain_works_in_the_directory_of_its_parent(link, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    async def main(env):
        return await env.domain_mgr.run(os.getcwd)

    assert domains.run(main, link=link) == str(tmp_path)


def test_a_program_may_run_in_a_directory_that_it_may_not_enter(link, tmp_path):
    source = """
    os.mkdir(sys.argv[2])
    os.chdir(sys.argv[2])
    os.chmod(sys.argv[2], 0)

    async def main(env):
        say(await env.domain_mgr.run(os.getcwd))

    domains.run(main, link=LINK)
    """
    directory = str(tmp_path / "closed")
    prefix = without_capabilities("dac_override", "dac_read_search")
    with Program(source, tmp_path, link, directory, prefix=prefix) as program:
        assert program.hear() == directory
        assert program.wait() == 0, program.errors


def test_a_domain_has_the_environment_variables_of_its_parent(link, monkeypatch):
    monkeypatch.setenv("DOMAINS_TEST_VARIABLE", "seen")

    async def main(env):
        return await env.domain_mgr.run(os.getenv, "DOMAINS_TEST_VARIABLE")

    assert domains.run(main, link=link) == "seen"


def test_a_domain_has_what_its_parent_has_changed_since_the_first_was_started(link, monkeypatch):
    names = ["DOMAINS_TEST_SET", "DOMAINS_TEST_CHANGED", "DOMAINS_TEST_DELETED"]
    monkeypatch.setenv(names[1], "before")
    monkeypatch.setenv(names[2], "before")

    async def main(env):
        await env.domain_mgr.run(os.getpid)
        monkeypatch.setenv(names[0], "\udcff")
        monkeypatch.setenv(names[1], "after")
        monkeypatch.delenv(names[2])
        return await env.domain_mgr.run(lambda: [os.getenv(name) for name in names])

    assert domains.run(main, link=link) == ["\udcff", "after", None]


def test_a_domain_starts_while_threads_delete_variables(monkeypatch):
    class Variables(dict):
        """One is deleted just before it is looked up."""

        def __getitem__(self, name):
            if name == b"DOMAINS_TEST_DELETED":
                self.pop(name, None)
            return super().__getitem__(name)

    variables = Variables(os.environb._data)
    for environ in (os.environ, os.environb):
        monkeypatch.setattr(environ, "_data", variables)

    async def start(env):
        monkeypatch.setenv("DOMAINS_TEST_DELETED", "before")
        return await env.domain_mgr.run(abs, -1)

    async def main(env):
        return [await start(env), await start(env)]

    monkeypatch.setenv("DOMAINS_TEST_DELETED", "before")  # as the launcher is started
    assert domains.run(main) == [1, 1]


def test_a_domain_has_the_time_zone_that_its_parent_has_set(monkeypatch):
    async def main(env):
        await env.domain_mgr.run(os.getpid)
        monkeypatch.setenv("TZ", "NPT-5:45")
        return await env.domain_mgr.run(lambda: (time.tzname, time.localtime(0).tm_min))

    assert domains.run(main) == (("NPT", "NPT"), 45)


# What is seen


def test_what_a_domain_prints_is_seen_in_whole_lines(link, tmp_path):  # S63
    source = """
    LINES = 300

    def printer(letter):
        for number in range(LINES):
            print(letter * 50, number)
        sys.stdout.write("no newline at the end " + letter)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool, Switch() as sw:
            for letter in "abcd":
                sw.fork(env.domain_mgr.run, printer, letter)

    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link) as program:
        lines = program.hear_rest()
        assert program.wait() == 0
    whole = [f"{letter * 50} {number}" for letter in "abcd" for number in range(300)]
    text = "\n".join(lines) + "\n"
    for letter in "abcd":
        assert text.count("no newline at the end " + letter) == 1
        text = text.replace("no newline at the end " + letter, "")
    assert sorted(text.split("\n")[:-1]) == sorted(whole) or sorted(filter(None, text.split("\n"))) == sorted(whole)


def test_what_a_domain_printed_before_it_was_killed_is_seen(link, tmp_path):  # S63
    source = """
    def print_and_die():
        print("a whole line")
        os.kill(os.getpid(), signal.SIGKILL)

    async def main(env):
        try:
            await env.domain_mgr.run(print_and_die)
        except DomainDied:
            print("died", flush=True)

    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link) as program:
        assert program.hear_rest() == ["a whole line", "died"]
        assert program.wait() == 0


# The end


def test_a_domains_end_cancels_daemons_runs_exit_handlers_and_flushes(link, tmp_path):  # S62
    source = """
    import atexit

    async def daemon():
        try:
            await fiber.await_cancel()
        finally:
            print("daemon cancelled")

    async def job():
        atexit.register(print, "exit handler")
        task = asyncio.get_running_loop().create_task(daemon())
        kept.append(task)
        await asyncio.sleep(0)
        sys.stdout.reconfigure(line_buffering=False)
        print("job")

    kept = []

    async def main(env):
        await env.domain_mgr.run(job)
        print("parent", flush=True)

    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link) as program:
        assert program.hear_rest() == ["job", "daemon cancelled", "exit handler", "parent"]
        assert program.wait() == 0
        assert program.errors == ""


def test_what_jobs_left_behind_is_torn_down_as_a_domain_ends(link, tmp_path):  # S62
    (tmp_path / "left.py").write_text(
        """
import atexit
import os

class Object:
    def __del__(self):
        os.write(os.open("deleted", os.O_WRONLY | os.O_CREAT), b"deleted")
"""
    )

    def job():
        sys.path.insert(0, str(tmp_path))
        os.chdir(tmp_path)
        import left  # type: ignore[import-not-found]

        left.object = left.Object()
        left.file = open("flushed", "w")  # noqa: SIM115 - it is left open
        left.file.write("flushed")
        domains.domain_state.file = open("kept", "w")  # noqa: SIM115
        domains.domain_state.file.write("kept")

    async def main(env):
        await env.domain_mgr.run(job)

    domains.run(main, link=link)
    for name in "deleted", "flushed", "kept":
        assert (tmp_path / name).read_text() == name


@pytest.mark.parametrize("kind", ["SystemExit(5)", "KeyboardInterrupt()"])
def test_an_exit_in_a_job_is_its_failure_and_the_domain_goes_on(link, tmp_path, kind):  # S66
    source = f"""
    def leave():
        raise {kind}

    async def leave_async():
        raise {kind}

    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            first = await domain.call(os.getpid)
            for f in leave, leave_async:
                try:
                    await domain.call(f)
                except {kind.partition("(")[0]} as error:
                    say(type(error).__name__)
            assert await domain.call(os.getpid) == first
        say("end")

    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link) as program:
        name = kind.partition("(")[0]
        assert [program.hear() for _ in range(3)] == [name, name, "end"]
        assert program.wait() == 0
        assert program.errors == ""


def test_an_exit_handler_that_never_ends_is_cut_short(link, monkeypatch):
    monkeypatch.setattr("domains.domain_manager.FINISHING_SECONDS", 0.1)

    def job():
        atexit.register(threading.Event().wait)

    async def main(env):
        await env.domain_mgr.run(job)

    domains.run(main, link=link)


@pytest.mark.parametrize("times", [1, 2])
def test_an_exit_handler_that_never_ends_is_cut_short_also_if_somebody_cancels_the_task_meanwhile(times, monkeypatch):
    monkeypatch.setattr("domains.domain_manager.FINISHING_SECONDS", 0.1)
    close = DomainHandle.close

    async def cancel_and_close(handle, seconds):
        for turn in range(times):
            asyncio.get_running_loop().call_later(turn * 0.01, asyncio.current_task().cancel)
        await close(handle, seconds)

    monkeypatch.setattr(DomainHandle, "close", cancel_and_close)

    def job():
        atexit.register(threading.Event().wait)

    async def main(env):
        with pytest.raises(asyncio.CancelledError):
            async with env.domain_mgr.spawn() as domain:
                await domain.call(job)
        assert not domain.alive
        assert [asyncio.current_task().uncancel() for _ in range(times)] == [*range(times)][::-1]
        await asyncio.sleep(0)

    domains.run(main)


def test_a_time_limit_of_asyncio_waits_for_the_end_of_a_domain(monkeypatch):
    close = DomainHandle.close

    async def main(env):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit:

                async def expire_and_close(handle, seconds):
                    limit.reschedule(asyncio.get_running_loop().time())
                    await close(handle, seconds)

                monkeypatch.setattr(DomainHandle, "close", expire_and_close)
                async with env.domain_mgr.spawn() as domain:
                    await domain.call(abs, -1)
        assert not domain.alive

    domains.run(main)


async def _wait_and_never_end(ready):
    atexit.register(threading.Event().wait)
    ready.resolve(None)
    await fiber.await_cancel()


def test_a_domain_that_is_terminated_as_it_finishes_may_not_take_for_ever_either(link, monkeypatch):
    monkeypatch.setattr("domains.domain.FINISHING_SECONDS", 0.1)

    async def main(env):
        async with Switch() as sw:
            async with env.domain_mgr.spawn() as domain:
                is_ready, ready = domains.Promise.create()
                call = sw.fork_promise(domain.call, _wait_and_never_end, ready)
                await is_ready
                os.kill(domain.pid, signal.SIGTERM)
            with pytest.raises(DomainDied, match="said goodbye and does not end"):
                await call

    domains.run(main, link=link)


def test_a_thread_that_a_job_left_running_does_not_keep_its_domain(link, monkeypatch):
    monkeypatch.setattr("domains.domain_manager.FINISHING_SECONDS", 0.1)

    def job():
        threading.Thread(target=threading.Event().wait).start()

    async def main(env):
        await env.domain_mgr.run(job)

    domains.run(main, link=link)


# A domain that does not read


def test_a_domain_that_does_not_read_makes_its_callers_wait(link):
    """What is sent to it is bounded: the senders wait, and nothing is lost."""
    block = bytes(1 << 15)  # goes through the link itself

    def busy(start, path):
        start.resolve(None)
        with open(path) as fifo:
            fifo.read()

    async def main(env, path):
        started, start = Promise.create()
        async with env.domain_mgr.spawn() as domain, Switch() as sw:
            sw.fork(domain.call, busy, start, path)
            await started
            lengths = []
            while not domain._handle.link.is_congested:
                lengths.append(sw.fork_promise(domain.call, len, block))
                await fiber.yield_now()
            sent = len(domain._handle.jobs)
            lengths += [sw.fork_promise(domain.call, len, block) for _ in range(100)]
            for _ in range(20):
                await fiber.yield_now()
            assert len(domain._handle.jobs) == sent, "the others have not been sent"
            os.close(os.open(path, os.O_WRONLY))  # the domain reads again
            assert [await length for length in lengths] == [len(block)] * len(lengths)

    import tempfile

    with tempfile.TemporaryDirectory() as tmp:
        path = os.path.join(tmp, "fifo")
        os.mkfifo(path)
        domains.run(lambda env: main(env, path), link=link)


def test_a_pool_whose_domain_does_not_read_goes_on_with_the_others(link, tmp_path):
    block = bytes(1 << 19)
    path = str(tmp_path / "fifo")
    os.mkfifo(path)

    def busy(start):
        start.resolve(None)
        with open(path) as fifo:
            fifo.read()

    async def main(env):
        started, start = Promise.create()
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool, Switch() as sw:
            pool.submit_fork(sw, busy, start, weight=1.0)
            await started
            lengths = [pool.submit_fork(sw, len, block, weight=1.0) for _ in range(50)]
            assert [await length for length in lengths] == [len(block)] * 50
            os.close(os.open(path, os.O_WRONLY))

    domains.run(main, link=link)
