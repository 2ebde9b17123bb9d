"""A domain that gives no sign of life is noticed where that was asked for, reported with its stacks, and replaced."""

import atexit
import os
import signal
import time
from pathlib import Path

import pytest

import domains
from domains import DomainDied, Switch, fiber
from domains.interruption import INTERRUPT_SIGNAL
from domains.supervisor import Supervisor

SECONDS = 0.3


def _stuck_in_c():
    import ctypes

    libc = ctypes.PyDLL(None)  # keeps the GIL, as C code may that never comes back
    lock = ctypes.create_string_buffer(128)
    libc.pthread_mutex_init(lock, None)
    libc.pthread_mutex_lock(lock)
    libc.pthread_mutex_lock(lock)  # waits for itself, whatever signals come


def _compute(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return "computed"


async def _pid():
    return os.getpid()


def test_a_stuck_call_into_c_is_reported_by_name_with_its_stack(link):
    async def main(env):
        with pytest.raises(DomainDied, match="no sign of life") as caught:
            async with env.domain_mgr.spawn("stuck", heartbeat_seconds=SECONDS) as domain:
                await domain.call(_stuck_in_c)
        return caught.value

    error = domains.run(main, link=link)
    assert error.domain == "stuck"
    assert "_stuck_in_c" in error.fatal_traceback


def test_a_stopped_domain_is_noticed_and_the_others_go_on(link):
    async def main(env):
        async with (
            env.domain_mgr.spawn("stopped", heartbeat_seconds=SECONDS) as stopped,
            env.domain_mgr.spawn("other", heartbeat_seconds=SECONDS) as other,
            Switch() as sw,
        ):
            os.kill(await stopped.call(_pid), signal.SIGSTOP)
            waiting = sw.fork_promise(stopped.call, _pid)
            assert await other.call(_pid) == other.pid
            with pytest.raises(DomainDied, match=r"'stopped'.*no sign of life"):
                await waiting
            assert await other.call(_pid) == other.pid

    domains.run(main, link=link)


def test_a_long_computation_and_an_idle_domain_are_alive(link):
    async def main(env):
        async with env.domain_mgr.spawn(heartbeat_seconds=SECONDS) as domain:
            assert await domain.call(_compute, 5 * SECONDS) == "computed"
            await domains.scheduler.clock.sleep(5 * SECONDS)
            assert await domain.call(_pid) == domain.pid

    domains.run(main, link=link)


def _ask_as_it_ends(path):
    def on_exit():
        os.kill(os.getpid(), INTERRUPT_SIGNAL)
        Path(path).write_text("ended")

    atexit.register(on_exit)


def test_an_exit_handler_is_not_disturbed_by_heartbeats(link, tmp_path):
    async def main(env):
        async with env.domain_mgr.spawn(heartbeat_seconds=60.0) as domain:
            await domain.call(_ask_as_it_ends, str(tmp_path / "exit"))
        assert (tmp_path / "exit").read_text() == "ended"

    domains.run(main, link=link)


def test_a_stuck_service_is_replaced(link, tmp_path):
    path = str(tmp_path / "starts")

    def stuck_at_first():
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        if len(Path(path).read_text().split()) == 1:
            os.kill(os.getpid(), signal.SIGSTOP)

    async def main(env):
        async with Supervisor(env.domain_mgr, heartbeat_seconds=SECONDS) as supervisor:
            service = supervisor.start(stuck_at_first)
        assert service.restarts == 1
        assert isinstance(service.failure, DomainDied)

    domains.run(main, link=link)


def test_without_a_heartbeat_a_stopped_domain_is_waited_for(link):
    async def main(env):
        async with env.domain_mgr.spawn() as domain, Switch() as sw:
            pid = await domain.call(_pid)
            os.kill(pid, signal.SIGSTOP)
            waiting = sw.fork_promise(domain.call, _pid)
            for _ in range(50):
                await fiber.yield_now()
            assert not waiting.is_resolved
            os.kill(pid, signal.SIGCONT)
            assert await waiting == pid

    domains.run(main, link=link)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_heartbeat_that_is_none_is_a_value_error(seconds):
    async def main(env):
        with pytest.raises(ValueError, match="heartbeat_seconds"):
            env.domain_mgr.spawn(heartbeat_seconds=seconds)
        with pytest.raises(ValueError, match="heartbeat_seconds"):
            domains.ExecutorPool(env.domain_mgr, heartbeat_seconds=seconds)

    domains.run(main)


def test_a_pool_replaces_a_domain_that_gives_no_sign_of_life(link):
    async def main(env):
        async with domains.ExecutorPool(env.domain_mgr, domain_count=1, heartbeat_seconds=SECONDS) as pool:
            first = await pool.submit(_pid, weight=1.0)
            with pytest.raises(DomainDied, match="no sign of life") as caught:
                await pool.submit(_stuck_in_c, weight=1.0)
            assert await pool.submit(_pid, weight=1.0) != first
            return caught.value.fatal_traceback

    assert "_stuck_in_c" in domains.run(main, link=link)


def test_a_heartbeat_must_be_a_number_of_seconds():
    async def main(env):
        with pytest.raises(TypeError, match="heartbeat_seconds"):
            env.domain_mgr.spawn(heartbeat_seconds="1")
        with pytest.raises(TypeError, match="heartbeat_seconds"):
            domains.ExecutorPool(env.domain_mgr, heartbeat_seconds="1")

    domains.run(main)
