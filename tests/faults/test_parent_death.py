"""However the parent goes, every domain and the launcher are gone within a second, and nothing is left."""

import os
import signal

import pytest

from .program import GONE_SECONDS, Program, wait_until_gone

CPU_BOUND = """
def announce_and_spin():
    say({"domain": os.getpid()})
    spin()

async def announce_and_spin_async():
    announce_and_spin()

async def main(env):
    async with ExecutorPool(env.domain_mgr, domain_count=2) as pool, env.domain_mgr.spawn() as domain, Switch() as sw:
        pool.submit_fork(sw, announce_and_spin, weight=1.0)
        pool.submit_fork(sw, announce_and_spin_async, weight=1.0)
        sw.fork(domain.call, announce_and_spin)

domains.run(main, link=LINK)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT], ids=lambda number: number.name)
def test_a_killed_parent_takes_domains_in_cpu_bound_loops_with_it(link, tmp_path, number):
    with Program(CPU_BOUND, tmp_path, link) as program:
        told = {program.hear()["domain"] for _ in range(3)}
        assert told < program.processes()  # and the launcher
        program.send_signal(number)
        assert program.wait() == -number
        program.check_nothing_is_left()


def test_a_parent_that_exits_without_a_word_takes_its_domains_with_it(link, tmp_path):
    source = """
    def announce_and_spin():
        say(os.getpid())
        spin()

    async def main(env):
        async with env.domain_mgr.spawn() as domain, Switch() as sw:
            sw.fork(domain.call, announce_and_spin)

    signal.signal(signal.SIGUSR1, lambda *_: os._exit(7))
    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link) as program:
        program.hear()
        program.send_signal(signal.SIGUSR1)
        assert program.wait() == 7
        program.check_nothing_is_left()


def test_domains_go_with_the_parent_also_where_a_process_that_it_has_forked_lives_on(link, tmp_path):
    source = """
    async def main(env):
        async with env.domain_mgr.spawn() as domain, Switch() as sw:
            assert await domain.call(abs, -1) == 1
            child = os.fork()
            if not child:
                signal.pause()
            sw.fork(domain.call, spin)
            say(child)
            await fiber.await_cancel()

    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link) as program:
        child = program.hear()
        others = program.processes() - {child}
        assert len(others) == 2  # the domain and the launcher
        program.send_signal(signal.SIGKILL)
        program.wait()
        assert not wait_until_gone(others, GONE_SECONDS)
        os.kill(child, signal.SIGKILL)
        program.check_nothing_is_left()


@pytest.mark.parametrize("count", [1, 4])
def test_a_parent_killed_while_its_domains_start_leaves_nothing(link, tmp_path, count):
    source = f"""
    async def main(env):
        handles = [env.domain_mgr.open() for _ in range({count})]
        os.kill(os.getpid(), signal.SIGKILL)

    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link) as program:
        assert program.wait() == -signal.SIGKILL
        # The launcher may only be importing: it ends as soon as it looks.
        program.check_nothing_is_left(seconds=5.0)


def test_domains_that_ignore_signals_and_what_they_started_go_with_the_parent(link, tmp_path):
    source = """
    import subprocess

    def deaf():
        for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
        subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL)
        say("deaf")
        while True:
            time.sleep(1000)

    async def main(env):
        await env.domain_mgr.run(deaf)

    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link) as program:
        assert program.hear() == "deaf"
        while len(program.processes()) < 3:  # a process has no environment yet as it begins
            pass
        program.send_signal(signal.SIGKILL)
        program.wait()
        program.check_nothing_is_left()


def check_it_unwinds(source, tmp_path, link):
    with Program(source, tmp_path, link) as program:
        assert program.hear() == "waiting"
        program.send_signal(signal.SIGKILL)
        program.wait()
        assert program.hear() == "unwound"
        program.check_nothing_is_left()


def test_fibers_in_a_domain_unwind_when_the_parent_dies(link, tmp_path):
    source = """
    async def job():
        try:
            say("waiting")
            await fiber.await_cancel()
        finally:
            say("unwound")

    async def main(env):
        await env.domain_mgr.run(job)

    domains.run(main, link=LINK)
    """
    check_it_unwinds(source, tmp_path, link)


def test_a_job_that_waits_for_one_of_its_own_unwinds_when_the_parent_dies(link, tmp_path):
    source = """
    async def waits(pool):
        try:
            async with Switch() as sw:
                pool.submit_fork(sw, fiber.await_cancel, weight=1.0)
                say("waiting")
        finally:
            say("unwound")

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.submit(waits, pool, weight=1.0)

    domains.run(main, link=LINK)
    """
    check_it_unwinds(source, tmp_path, link)
