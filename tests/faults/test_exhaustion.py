"""What runs out gives a clear error to the call that needed it; what already runs goes on."""

import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

import pytest

import domains
from domains import DomainUnavailable, ExecutorPool, Switch
from domains.ipc import frames
from domains.pool.dispatch import Dispatcher
from domains.pool.members import Members

from .limits import no_more_descriptors, without_capabilities
from .program import Program


async def _echo(value):
    return value


def test_no_more_descriptors_fails_the_start_of_a_domain_and_leaks_none(link, tmp_path):
    source = """
    import gc, resource

    async def echo(value):
        return value

    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            assert await domain.call(echo, 1) == 1
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            before = descriptors()
            errors, left = set(), {0}
            for more in range(40):  # each step of a start fails once
                resource.setrlimit(resource.RLIMIT_NOFILE, (before + more, hard))
                try:
                    async with env.domain_mgr.spawn(heartbeat_seconds=60.0) as other:
                        await other.call(echo, 2)
                    break
                except DomainUnavailable as error:
                    errors.add("Too many open files" in str(error))
                assert await domain.call(echo, 3) == 3
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                if LINK != "zmq":  # which closes its own in a thread
                    gc.collect()
                    left.add(descriptors() - before)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            async with env.domain_mgr.spawn() as other:
                assert await other.call(echo, 4) == 4
            say([sorted(errors), more > 3, sorted(left)])
            assert await domain.call(echo, 5) == 5
        say("end")

    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link) as program:
        assert program.hear() == [[True], True, [0]]
        assert program.hear() == "end"
        assert program.wait() == 0, program.errors
        program.check_nothing_is_left()


def test_jobs_that_fail_as_they_are_submitted_belong_to_their_switch_all_the_same():
    async def main(env):
        async with ExecutorPool(env.domain_mgr, min_domains=0, max_domains=1) as pool:
            async with Switch() as sw:
                with no_more_descriptors():
                    promises = [pool.submit_fork(sw, abs, -n, weight=1.0) for n in range(256)]
                assert promises[-1].is_resolved
                for promise in promises:
                    with pytest.raises(DomainUnavailable, match="Too many open files"):
                        await promise

    domains.run(main)


def test_a_pool_whose_domains_could_not_be_started_for_a_while_goes_on():
    async def main(env):
        async with ExecutorPool(env.domain_mgr, min_domains=0, max_domains=1) as pool:
            with no_more_descriptors(), pytest.raises(DomainUnavailable, match="Too many open files"):
                await pool.submit(_echo, 1, weight=1.0)
            return await pool.submit(_echo, 2, weight=1.0)

    assert domains.run(main) == 2


async def _submit_another(pool, began, go_on):
    began.resolve(None)
    await go_on
    return await pool.submit(abs, -1, weight=0.1)


def test_a_job_of_a_retired_domain_that_waits_for_another_fails_if_no_domain_can_be_started_for_it():
    async def main(env):
        began, start = domains.Promise.create()
        go_on, resolver = domains.Promise.create()
        async with ExecutorPool(env.domain_mgr, domain_count=1, max_jobs=1) as pool, Switch() as switch:
            job = pool.submit_fork(switch, _submit_another, pool, start, go_on, weight=1.0)
            await began
            with no_more_descriptors():
                resolver.resolve(None)
                with pytest.raises(DomainUnavailable, match="Too many open files"):
                    await job
            return await pool.submit(abs, -2, weight=1.0)

    assert domains.run(main) == 2


@pytest.mark.parametrize("ordered", [True, False])
def test_a_map_whose_groups_fail_as_they_are_submitted_raises_why(ordered):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, min_domains=0, max_domains=1) as pool:
            results = pool.map(abs, range(512), weight=1.0, buffer=512, chunk=1, ordered=ordered)
            with no_more_descriptors(), pytest.raises(DomainUnavailable, match="Too many open files"):
                await results

    domains.run(main)


def test_a_program_may_have_more_descriptors_open_than_select_can_take(link, tmp_path):
    source = """
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    kept = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]

    async def main(env):
        say(await env.domain_mgr.run(abs, -1))

    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link) as program:
        assert program.hear() == 1
        assert program.wait() == 0, program.errors
        program.check_nothing_is_left()


def test_no_more_descriptors_in_the_launcher_leaves_its_domains_alone(link):
    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            assert await domain.call(_echo, 1) == 1
            launcher = env.domain_mgr._provider._connection.process.pid
            limits = resource.prlimit(launcher, resource.RLIMIT_NOFILE)
            have = len(os.listdir(f"/proc/{launcher}/fd"))
            reasons = set()
            for more in range(20):
                resource.prlimit(launcher, resource.RLIMIT_NOFILE, (have + more, limits[1]))
                try:
                    assert await env.domain_mgr.run(_echo, 2) == 2
                except domains.DomainsError as error:
                    reasons.add(str(error))  # some were born, with the limit, and need more for the rest
                assert await domain.call(_echo, 3) == 3
            assert any("could not be started" in reason and "Too many open files" in reason for reason in reasons)
            resource.prlimit(launcher, resource.RLIMIT_NOFILE, limits)
            assert env.domain_mgr._provider._connection.process.pid == launcher
            assert await env.domain_mgr.run(_echo, 4) == 4

    domains.run(main, link=link)


def test_a_pool_whose_domains_die_at_birth_fails_its_jobs_though_each_may_have_only_one(monkeypatch):
    recruit, assign = Members._recruit, Dispatcher._assign

    async def main(env):
        async with ExecutorPool(env.domain_mgr, min_domains=0, max_domains=1, max_jobs=1) as pool, Switch() as sw:
            assert await pool.submit(_echo, 1, weight=1.0) == 1
            while pool.stats().domains:
                await domains.fiber.yield_now()
            launcher = env.domain_mgr._provider._connection.process.pid

            def stop_and_recruit(members):  # so that the domain has its job before it is known that it cannot start
                os.kill(launcher, signal.SIGSTOP)
                recruit(members)

            def assign_and_go_on(*args):
                os.kill(launcher, signal.SIGCONT)
                return assign(*args)

            monkeypatch.setattr(Members, "_recruit", stop_and_recruit)
            monkeypatch.setattr(Dispatcher, "_assign", assign_and_go_on)
            have = len(os.listdir(f"/proc/{launcher}/fd"))
            resource.prlimit(launcher, resource.RLIMIT_NOFILE, (have, have))
            for promise in [pool.submit_fork(sw, _echo, n, weight=1.0) for n in range(5)]:
                with pytest.raises(DomainUnavailable, match=r"cannot start.*Too many open files"):
                    await promise

    domains.run(main)


def test_too_many_descriptors_on_their_way_fail_the_start_of_a_domain(link, tmp_path):
    source = """
    import asyncio, errno, resource, socket

    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            assert await domain.call(abs, -1) == 1
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))  # which goes for those on their way as well
            here, there = socket.socketpair()
            refusal = None
            while refusal is None:  # those of all processes of a user count, and others may take theirs back meanwhile
                try:
                    while True:
                        socket.send_fds(here, [b"x"], [0] * 50)
                except OSError as error:
                    assert error.errno == errno.ETOOMANYREFS
                try:
                    await env.domain_mgr.run(abs, -2)
                except DomainUnavailable as error:
                    refusal = error
            say(str(refusal))
            here.close()
            there.close()
            result = None
            while result is None:
                try:
                    result = await env.domain_mgr.run(abs, -3)
                except DomainUnavailable:
                    await asyncio.sleep(0.01)  # others have too many on their way now
            say(result)
            assert await domain.call(abs, -4) == 4

    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link, prefix=without_capabilities("sys_resource", "sys_admin")) as program:
        assert "Too many references" in program.hear()
        assert program.hear() == 3
        assert program.wait() == 0, program.errors
        program.check_nothing_is_left()


def _allocate_more_than_allowed():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    try:
        return len(bytearray(1 << 31))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_no_more_memory_is_the_jobs_failure(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            before = await pool.submit(os.getpid, weight=1.0)
            with pytest.raises(MemoryError):
                await pool.submit(_allocate_more_than_allowed, weight=1.0)
            assert await pool.submit(os.getpid, weight=1.0) == before

    domains.run(main, link=link)


def test_no_more_memory_for_an_answer_is_the_jobs_failure(link):
    def too_large_to_send():
        value = "x" * (1 << 28)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 24), resource.RLIM_INFINITY))
        return value

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises((domains.NotPicklable, MemoryError)):
                await pool.submit(too_large_to_send, weight=1.0)
            assert await pool.submit(_echo, 1, weight=1.0) == 1

    domains.run(main, link=link)


def _take_small_frames_only():
    frames.MOST_ENVELOPE_BYTES = 10_000  # as if there were no memory for larger ones


def test_a_job_that_no_domain_can_receive_fails_and_those_around_it_do_not():
    async def main(env):
        async with (
            ExecutorPool(env.domain_mgr, domain_count=1, initializer=_take_small_frames_only) as pool,
            Switch() as sw,
        ):
            await pool.ready()
            given = b"before", bytes(1 << 15), b"after"
            before, poison, after = [pool.submit_fork(sw, len, data, weight=1.0) for data in given]
            with pytest.raises(domains.DomainDied, match=r"'len' had ended, which none of 3 domains could begin"):
                await poison
            return await before, await after

    assert domains.run(main) == (6, 5)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is full")
def test_a_full_disk_is_the_failure_of_the_job_that_writes(link):
    def write():
        with open("/dev/full", "w") as file:
            file.write("x" * 100_000)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(OSError, match="No space left"):
                await pool.submit(write, weight=1.0)
            assert await pool.submit(_echo, 1, weight=1.0) == 1

    domains.run(main, link=link)


def test_no_place_for_sockets_fails_the_start_of_a_domain(monkeypatch, tmp_path):
    async def main(env):
        monkeypatch.setattr(tempfile, "tempdir", "/missing")
        with pytest.raises(DomainUnavailable, match="could not be started"):
            await env.domain_mgr.run(_echo, 1)
        monkeypatch.undo()
        assert await env.domain_mgr.run(_echo, 2) == 2

    domains.run(main, link="zmq")


@pytest.mark.skipif(os.geteuid() == 0, reason="the limit does not hold for root")
def test_no_more_processes_fails_the_start_of_a_domain(link, tmp_path):
    source = """
    import resource

    async def echo(value):
        return value

    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            assert await domain.call(echo, 1) == 1
            launcher = env.domain_mgr._provider._connection.process.pid
            hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
            limits = resource.prlimit(launcher, resource.RLIMIT_NPROC, (1, hard))
            try:
                await env.domain_mgr.run(echo, 2)
            except DomainUnavailable as error:
                say(str(error))
            assert await domain.call(echo, 3) == 3
            resource.prlimit(launcher, resource.RLIMIT_NPROC, limits)
            say(await env.domain_mgr.run(echo, 4))

    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link) as program:
        assert "cannot fork" in program.hear()
        assert program.hear() == 4
        assert program.wait() == 0, program.errors


@pytest.mark.parametrize("executable", ["/nonexistent/python", "", None])
def test_an_interpreter_that_is_not_there_is_told_at_the_first_domain(monkeypatch, link, executable):
    monkeypatch.setattr(sys, "executable", executable)
    why = "No such file" if executable else f"no Python interpreter.*sys.executable is {executable!r}"

    async def main(env):
        with pytest.raises(DomainUnavailable, match=f"launcher.*{why}"):
            await env.domain_mgr.run(_echo, 1)

    domains.run(main, link=link)


def test_a_frozen_program_does_not_start_itself_as_its_launcher(monkeypatch, tmp_path):
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(sys, "frozen", True, raising=False)

    async def main(env):
        with pytest.raises(DomainUnavailable, match="frozen"):
            await env.domain_mgr.run(_echo, 1)

    domains.run(main)
    assert not (tmp_path / "started").exists()
