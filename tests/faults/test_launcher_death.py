"""The launcher's death ends its domains; the parent survives it with a clear error, and starts a new one."""

import glob
import os
import signal
import tempfile

import pytest

import domains
from domains import DomainDied, DomainUnavailable, ExecutorPool, Switch, fiber
from domains.launcher import lifeline
from domains.launcher.control import ControlSocket, Remove
from domains.launcher.warm import LauncherProcess

from .limits import without_capabilities
from .program import Program, wait_until_gone

GONE_SECONDS = 1.0


def launcher_of(env):
    return env.domain_mgr._provider._connection.process.pid


def _spin(start):
    start.resolve(os.getpid())
    while True:
        pass


async def _echo(value):
    await fiber.yield_now()
    return value


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=lambda number: number.name)
def test_the_launchers_death_ends_its_domains_and_a_new_one_serves_the_pool(link, number):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool, Switch() as sw:
            started, start = domains.Promise.create()
            spinning = pool.submit_fork(sw, _spin, start, weight=1.0)
            domain = await started
            first = launcher_of(env)
            os.kill(first, number)
            with pytest.raises(DomainDied, match=f"launcher process {first} ended"):
                await spinning
            assert not wait_until_gone([domain], GONE_SECONDS)
            assert [await pool.submit(_echo, n, weight=1.0) for n in range(10)] == list(range(10))
            assert launcher_of(env) != first

    domains.run(main, link=link)


def _become_nobody(start):
    os.setuid(65534)
    _spin(start)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_the_launchers_death_ends_a_domain_that_has_become_another_user(link):
    async def main(env):
        async with env.domain_mgr.spawn() as domain, Switch() as sw:
            started, start = domains.Promise.create()
            spinning = sw.fork_promise(domain.call, _become_nobody, start)
            await started
            os.kill(launcher_of(env), signal.SIGKILL)
            with pytest.raises(DomainDied, match="launcher"):
                await spinning
            assert not wait_until_gone([domain.pid], GONE_SECONDS)

    domains.run(main, link=link)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_a_domain_that_the_launcher_may_not_signal_harms_no_other(link, tmp_path):
    source = """
    def become_nobody(start, path):
        fifo = os.open(path, os.O_RDONLY)
        os.setuid(65534)
        start.resolve(None)
        os.read(fifo, 1)

    async def main(env):
        os.mkfifo(sys.argv[2])
        fifo = os.open(sys.argv[2], os.O_RDWR)
        async with env.domain_mgr.spawn() as other, env.domain_mgr.spawn() as nobody, Switch() as sw:
            assert await other.call(abs, -1) == 1
            started, start = Promise.create()
            sw.fork(nobody.call, become_nobody, start, sys.argv[2])
            await started
            nobody._handle.send_signal(signal.SIGURG)
            assert await env.domain_mgr.run(abs, -2) == 2
            assert await other.call(abs, -3) == 3
            os.write(fifo, b"x")
        say("end")

    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link, str(tmp_path / "fifo"), prefix=without_capabilities("kill")) as program:
        assert program.hear() == "end"
        assert program.wait() == 0, program.errors
        program.check_nothing_is_left()


def test_the_launcher_leaves_to_the_parent_what_is_sent_to_every_process(link):
    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            assert await domain.call(_echo, 1) == 1
            for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
                os.kill(launcher_of(env), number)
            assert await domain.call(_echo, 2) == 2
            async with env.domain_mgr.spawn() as other:
                assert await other.call(lambda: signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN)

    domains.run(main, link=link)


def test_the_launchers_death_fails_calls_and_later_domains_start(link):
    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            assert await domain.call(_echo, 1) == 1
            os.kill(launcher_of(env), signal.SIGKILL)
            with pytest.raises(DomainDied, match="launcher"):
                await domain.call(fiber.await_cancel)
        assert await env.domain_mgr.run(_echo, 2) == 2

    domains.run(main, link=link)


def test_a_launcher_that_dies_before_a_domain_has_started_makes_it_unavailable(link):
    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            os.kill(launcher_of(env), signal.SIGKILL)
            with pytest.raises(DomainUnavailable, match="launcher"):
                await domain.call(_echo, 1)
        assert await env.domain_mgr.run(_echo, 2) == 2

    domains.run(main, link=link)


def test_launchers_that_die_again_and_again_leave_nothing(link, tmp_path):
    source = """
    async def main(env):
        for round in range(5):
            async with env.domain_mgr.spawn() as domain:
                await domain.call(os.getpid)
                os.kill(env.domain_mgr._provider._connection.process.pid, signal.SIGKILL)
                try:
                    await domain.call(fiber.await_cancel)
                except DomainDied:
                    say("died")
        say("survived")

    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link) as program:
        assert [program.hear() for _ in range(6)] == ["died"] * 5 + ["survived"]
        assert program.wait() == 0
        program.check_nothing_is_left()


def test_a_parent_killed_after_its_launcher_leaves_nothing(link, tmp_path):
    source = """
    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            await domain.call(os.getpid)
            os.kill(env.domain_mgr._provider._connection.process.pid, signal.SIGKILL)
            try:
                await domain.call(fiber.await_cancel)
            except DomainDied:
                pass
        async with env.domain_mgr.spawn() as domain, Switch() as sw:
            await domain.call(os.getpid)
            sw.fork(domain.call, spin)
            say("ready")
            await fiber.await_cancel()

    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link) as program:
        assert program.hear() == "ready"
        program.send_signal(signal.SIGKILL)
        program.wait()
        program.check_nothing_is_left()


def test_a_stopped_launcher_does_not_keep_the_program_from_its_end(link, monkeypatch):
    monkeypatch.setattr("domains.launcher.local._CLOSING_SECONDS", 0.1)

    async def main(env):
        assert await env.domain_mgr.run(_echo, 1) == 1
        os.kill(launcher_of(env), signal.SIGSTOP)

    domains.run(main, link=link)


def _stop(pid):
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


def test_a_stopped_launcher_does_not_keep_anybody_from_leaving_a_block(link, monkeypatch):
    monkeypatch.setattr("domains.launcher.local._CLOSING_SECONDS", 0.1)
    monkeypatch.setattr("domains.domain_manager.FINISHING_SECONDS", 0.1)

    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            assert await domain.call(_echo, 1) == 1
            _stop(launcher_of(env))
        assert await env.domain_mgr.run(_echo, 2) == 2

    domains.run(main, link=link)


def test_the_launchers_death_leaves_no_directory_that_nobody_would_remove():
    def directories():
        return glob.glob(os.path.join(tempfile.gettempdir(), f"domains-{os.getpid()}-*"))

    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            assert await domain.call(_echo, 1) == 1
            assert len(directories()) == 1
            os.kill(launcher_of(env), signal.SIGKILL)
            with pytest.raises(DomainDied):
                await domain.call(fiber.await_cancel)
            assert directories() == []
        assert await env.domain_mgr.run(_echo, 2) == 2
        assert len(directories()) == 1

    domains.run(main, link="zmq")
    assert directories() == []


def test_a_launcher_that_parts_with_all_above_it_hears_its_parent_out(tmp_path, monkeypatch):
    above, end = os.pipe()
    os.close(end)  # whoever is above has begun to part, before the launcher runs
    monkeypatch.setattr(lifeline, "_inherited", above)
    launcher = LauncherProcess()
    os.close(above)
    remains = tmp_path / "remains"
    remains.mkdir()
    control = ControlSocket(launcher.take())
    control.send(Remove([str(remains)]))
    assert control.write()
    control.close()
    assert launcher.process.wait() == 0
    assert not remains.exists()
