"""A supervisor restarts services by its strategy, within its intensity, and lets failures climb beyond it."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

import domains
from domains import Closed, DomainDied, Promise, Switch, fiber
from domains.errors import RestartsExceeded
from domains.supervisor import ServiceState, Supervisor


class Starts:
    """Told by services, through promises, that they have started: one promise for each start that is awaited."""

    def __init__(self, path):
        self.path = path

    def __call__(self, name):
        with open(self.path, "a") as file:
            file.write(f"{name} {os.getpid()}\n")

    def names(self):
        return [line.split()[0] for line in self._lines()]

    def pids(self, name):
        return [int(line.split()[1]) for line in self._lines() if line.split()[0] == name]

    def _lines(self):
        return Path(self.path).read_text().splitlines() if os.path.exists(self.path) else []

    async def wait_for(self, count):
        while len(self.names()) < count:
            await domains.scheduler.clock.sleep(0.002)


@pytest.fixture
def starts(tmp_path):
    return Starts(str(tmp_path / "starts"))


async def serve(starts, name):
    starts(name)
    await fiber.await_cancel()


async def serve_and_fail(starts, name, failures):
    starts(name)
    if len(starts.pids(name)) <= failures:
        raise LookupError(f"failure {len(starts.pids(name))}")
    await fiber.await_cancel()


def test_a_service_that_dies_is_started_again_in_a_new_domain(link, starts):
    async def main(env):
        async with Supervisor(env.domain_mgr) as supervisor:
            service = supervisor.start(serve, starts, "web", name="web")
            await starts.wait_for(1)
            os.kill(starts.pids("web")[0], signal.SIGKILL)
            await starts.wait_for(2)
            assert service.restarts == 1
            assert isinstance(service.failure, DomainDied)
            assert service.state is ServiceState.RUNNING
            await supervisor.stop(service)
            assert service.state is ServiceState.ENDED
        assert len(set(starts.pids("web"))) == 2

    domains.run(main, link=link)


def test_a_service_that_raises_is_started_again(link, starts):
    async def main(env):
        async with Supervisor(env.domain_mgr, backoff_seconds=0.0) as supervisor:
            service = supervisor.start(serve_and_fail, starts, "web", 2)
            await starts.wait_for(3)
            assert str(service.failure) == "failure 2"
            await supervisor.stop(service)

    domains.run(main, link=link)


async def serve_and_end(starts, how):
    starts("web")
    if len(starts.pids("web")) > 1:
        return
    if how == "exit":
        sys.exit(3)
    task = asyncio.ensure_future(fiber.await_cancel())
    task.cancel()
    await task


@pytest.mark.parametrize(("how", "failure"), [("exit", SystemExit), ("cancel", asyncio.CancelledError)])
def test_a_service_that_exits_or_is_cancelled_within_has_failed(link, starts, how, failure):  # S3, S66
    async def main(env):
        async with Supervisor(env.domain_mgr) as supervisor:
            service = supervisor.start(serve_and_end, starts, how)
        assert type(service.failure) is failure
        assert service.restarts == 1

    domains.run(main, link=link)


def test_a_service_may_fail_any_number_of_times(starts):
    async def main(env):
        async with Supervisor(env.domain_mgr, most_backoff_seconds=0.0) as supervisor:
            service = supervisor.start(serve_and_fail, starts, "web", 1)
            service._failures_in_a_row = 5000
            await starts.wait_for(2)
            await supervisor.stop(service)

    domains.run(main)


def test_a_service_whose_block_failed_before_it_began_has_ended(starts):
    async def main(env):
        with pytest.raises(KeyError):
            async with Supervisor(env.domain_mgr) as supervisor:
                service = supervisor.start(serve, starts, "web")
                raise KeyError("mine")
        assert service.state is ServiceState.ENDED
        assert supervisor.services == ()
        await supervisor.stop(service)

    domains.run(main)
    assert starts.names() == []


async def serve_until(starts, name, gate):
    starts(name)
    try:
        await fiber.await_cancel()
    finally:
        with domains.protect():
            await gate


def test_a_service_stopped_while_others_are_halted_stays_stopped(starts):
    async def main(env):
        gate, gatekeeper = Promise.create()
        async with Supervisor(env.domain_mgr, strategy="one_for_all") as supervisor:
            first = supervisor.start(serve, starts, "first")
            slow = supervisor.start(serve_until, starts, "slow", gate)
            await starts.wait_for(2)
            failing = supervisor.start(serve_and_fail, starts, "failing", 1)
            while slow.state is not ServiceState.RESTARTING:
                await domains.scheduler.clock.sleep(0.002)
            await supervisor.stop(first)
            gatekeeper.resolve(None)
            await starts.wait_for(5)
            assert first.state is ServiceState.ENDED
            for service in (failing, slow):
                await supervisor.stop(service)
        assert starts.names().count("first") == 1

    domains.run(main)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("one_for_one", ["b"]),
        ("one_for_all", ["a", "b", "c"]),
        ("rest_for_one", ["b", "c"]),
    ],
)
def test_the_strategy_says_what_is_restarted(link, starts, strategy, expected):
    async def main(env):
        async with Supervisor(env.domain_mgr, strategy=strategy) as supervisor:
            services = []
            for count, name in enumerate("abc"):
                services.append(supervisor.start(serve, starts, name, name=name))
                await starts.wait_for(count + 1)
            before = {name: starts.pids(name)[0] for name in "abc"}
            os.kill(before["b"], signal.SIGKILL)
            await starts.wait_for(3 + len(expected))
            assert sorted(starts.names()[3:]) == expected
            assert [service.name for service in services if service.restarts] == expected
            for name in expected:
                with pytest.raises(ProcessLookupError):
                    os.kill(before[name], 0)
            for service in reversed(services):
                await supervisor.stop(service)

    domains.run(main, link=link)


def test_two_services_that_die_together_are_each_restarted_once(link, starts):
    async def main(env):
        async with Supervisor(env.domain_mgr, strategy="one_for_all", max_restarts=2) as supervisor:
            services = [supervisor.start(serve, starts, name, name=name) for name in "ab"]
            await starts.wait_for(2)
            for name in "ab":
                os.kill(starts.pids(name)[0], signal.SIGKILL)
            await starts.wait_for(4)
            for _ in range(20):
                await fiber.yield_now()
            assert [service.state for service in services] == [ServiceState.RUNNING] * 2
            for service in services:
                await supervisor.stop(service)

    domains.run(main, link=link)


def test_too_many_restarts_fail_the_block_and_stop_the_others(link, starts):
    async def main(env):
        with pytest.raises(RestartsExceeded, match="after 2 restarts") as caught:
            async with Supervisor(
                env.domain_mgr, max_restarts=2, within_seconds=60.0, backoff_seconds=0.0
            ) as supervisor:
                supervisor.start(serve, starts, "good")
                supervisor.start(serve_and_fail, starts, "bad", 1000)
                await fiber.await_cancel()
        assert isinstance(caught.value.__cause__, LookupError)
        assert len(starts.pids("bad")) == 3
        for pid in starts.pids("good"):
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    domains.run(main, link=link)


def test_a_failure_climbs_to_the_switch_above(link, starts):
    async def supervise(env):
        async with Supervisor(env.domain_mgr, max_restarts=0) as supervisor:
            supervisor.start(serve_and_fail, starts, "bad", 1000)

    async def main(env):
        with pytest.raises(RestartsExceeded):
            async with Switch() as sw:
                sw.fork(supervise, env)
                await fiber.await_cancel()

    domains.run(main, link=link)


@pytest.mark.parametrize(
    ("restart", "fails", "expected"),
    [("always", False, 2), ("always", True, 2), ("on_failure", False, 1), ("on_failure", True, 2), ("never", True, 1)],
)
def test_restart_says_when_a_service_is_started_again(starts, restart, fails, expected):
    async def serve_once(starts, fails):
        starts("web")
        if len(starts.pids("web")) == 2:
            await fiber.await_cancel()
        if fails:
            raise LookupError("it failed")

    async def main(env):
        async with Supervisor(env.domain_mgr) as supervisor:
            service = supervisor.start(serve_once, starts, fails, restart=restart)
            await starts.wait_for(expected)
            if expected == 2:
                await supervisor.stop(service)
        assert service.state is ServiceState.ENDED
        assert (service.failure is not None) == fails
        assert supervisor.services == ()

    domains.run(main)
    assert len(starts.names()) == expected


def test_leaving_the_block_waits_for_services_that_end_by_themselves(link):
    async def main(env):
        promise, resolver = Promise.create()
        async with Switch() as sw:
            sw.fork(_resolve_after_turns, resolver)
            async with Supervisor(env.domain_mgr) as supervisor:
                supervisor.start(_await, promise)
            assert promise.is_resolved

    domains.run(main, link=link)


async def _await(promise):
    return await promise


async def _resolve_after_turns(resolver):
    for _ in range(50):
        await fiber.yield_now()
    resolver.resolve(None)


def test_leaving_the_block_by_an_exception_stops_all_services(link, starts):
    async def main(env):
        with pytest.raises(KeyError):
            async with Supervisor(env.domain_mgr) as supervisor:
                for name in "ab":
                    supervisor.start(serve, starts, name)
                await starts.wait_for(2)
                raise KeyError("mine")
        for name in "ab":
            with pytest.raises(ProcessLookupError):
                os.kill(starts.pids(name)[0], 0)
        with pytest.raises(Closed):
            supervisor.start(serve, starts, "late")

    domains.run(main, link=link)


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all"])
def test_a_service_stopped_while_it_waits_for_its_restart_stays_stopped(starts, strategy):
    async def main(env):
        async with Supervisor(
            env.domain_mgr, strategy=strategy, backoff_seconds=3600.0, most_backoff_seconds=3600.0
        ) as supervisor:
            service = supervisor.start(serve_and_fail, starts, "web", 1000)
            while service.state is not ServiceState.RESTARTING or service.restarts < 1:
                await domains.scheduler.clock.sleep(0.002)
            await supervisor.stop(service)

    domains.run(main)
    assert len(starts.names()) == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [("strategy", "all"), ("max_restarts", -1), ("within_seconds", -1.0), ("backoff_seconds", float("nan"))],
)
def test_bad_options_are_value_errors(option, value):
    async def main(env):
        with pytest.raises(ValueError, match=option):
            Supervisor(env.domain_mgr, **{option: value})

    domains.run(main)
