"""Everything at once, at random: whatever dies, fails, is cancelled, recycled or late, every job ends exactly once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

import pytest

import domains
from domains import DomainDied, ExecutorPool, Switch, fiber
from domains.domain import DomainHandle
from domains.job import Job
from domains.pool.dispatch import Dispatcher


def work(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


async def work_async(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise LookupError


async def divide(pool: ExecutorPool, depth: int) -> int:
    if not depth:
        return 1
    return sum(await fiber.map(lambda _: pool.submit(divide, pool, depth - 1, weight=0.4), range(2)))


async def _use(pool: ExecutorPool, chance: random.Random) -> None:
    options = {
        "weight": chance.choice([0.0, 0.1, 0.5, 1.0]),
        "priority": chance.randrange(3),
        "retries": chance.randrange(3),
        "backoff": 0.001,
        "timeout": chance.choice([None, None, 0.01, 0.2]),
    }
    kinds = {"plain": 6, "async": 6, "die": 1, "fail": 2, "divide": 2, "map": 2, "map and leave": 2}
    (kind,) = chance.choices(list(kinds), list(kinds.values()))
    if kind == "plain":
        assert await pool.submit(work, 0.002, **options) == 0.002
    elif kind == "async":
        assert await pool.submit(work_async, 0.01, **options) == 0.01
    elif kind == "die":
        await pool.submit(die, **options)
    elif kind == "fail":
        await pool.submit(fail, retry_on=LookupError, **options)
    elif kind == "divide":
        assert await pool.submit(divide, pool, 2, **options) == 4
    else:
        taken = [n async for n in pool.map(abs, range(30), weight=0.5)] if kind == "map" else []
        assert taken == list(range(30)) or kind != "map"
        if kind == "map and leave":
            async for _ in pool.map(work, [0.001] * 20, weight=0.5, ordered=False):
                break


@pytest.mark.parametrize("seed", range(4))
def test_every_job_ends_once_and_the_pool_is_whole_again(seed: int, link: str) -> None:
    chance = random.Random(seed)
    ended = []

    async def user(pool: ExecutorPool) -> None:
        await asyncio.sleep(chance.random() * 0.3)
        try:
            with domains.move_on_after(chance.choice([None, None, None, 0.05])):
                await _use(pool, chance)
        except* (DomainDied, TimeoutError, LookupError):
            pass
        ended.append(1)

    async def main(env: domains.Environment) -> tuple[int, int, float]:
        async with ExecutorPool(
            env.domain_mgr,
            min_domains=1,
            max_domains=2,
            max_jobs=chance.choice([None, 10, 30]),
            idle=0.05,
            grace=0.5,
        ) as pool:
            async with Switch() as switch:
                for _ in range(60):
                    switch.fork(user, pool)
            assert [await pool.submit(abs, -n, weight=1.0) for n in range(4)] == [0, 1, 2, 3]
            while any(domain.jobs for domain in pool.stats().domains):  # of maps that were dropped
                await fiber.yield_now()
            return pool.stats()[:3]

    assert domains.run(main, link=link) == (0, 0, 0.0)
    assert len(ended) == 60


def test_a_finalizer_may_cancel_a_job_whose_domain_has_just_ended(monkeypatch):
    lost = Dispatcher.lost

    async def main(env: domains.Environment) -> None:
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as switch:

            def lose_and_cancel(*args):
                lost(*args)
                switch.cancel()

            monkeypatch.setattr(Dispatcher, "lost", lose_and_cancel)
            job = pool.submit_fork(switch, die, weight=1.0)
            with pytest.raises(DomainDied):
                await job

    domains.run(main)


def test_a_finalizer_may_cancel_a_job_whose_domain_is_known_to_have_ended(monkeypatch):
    lost = Dispatcher.lost

    async def main(env: domains.Environment) -> None:
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            async with Switch() as switch:

                def cancel_and_lose(*args):
                    switch.cancel()
                    lost(*args)

                monkeypatch.setattr(Dispatcher, "lost", cancel_and_lose)
                begun, waits = (pool.submit_fork(switch, die, weight=1.0) for _ in range(2))
            for job in begun, waits:
                with pytest.raises(domains.Cancelled):
                    await job
            assert pool.stats()[:3] == (0, 0, 0.0)

    domains.run(main)


def test_a_finalizer_may_cancel_jobs_while_those_that_wait_are_failed(monkeypatch):
    fail = Job.fail

    async def main(env: domains.Environment) -> None:
        async with Switch() as others, Switch() as switch:

            def cancel_and_fail(*args):
                switch.cancel()
                fail(*args)

            with pytest.raises(LookupError):
                async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
                    promises = [pool.submit_fork(whose, abs, 1, weight=1.0) for whose in (others, switch, others)]
                    monkeypatch.setattr(Job, "fail", cancel_and_fail)
                    raise LookupError
            assert all(promise.is_resolved for promise in promises)

    domains.run(main)


async def _wait_for(begun: domains.Resolver[None], gate: domains.Promise[str]) -> str:
    begun.resolve(None)
    return await gate


def test_a_finalizer_may_cancel_a_job_while_it_is_taken_back(monkeypatch):
    hand_back = DomainHandle._hand_back

    async def main(env: domains.Environment) -> str:
        begun, resolver = domains.Promise[None].create()
        gate, opener = domains.Promise[str].create()
        async with ExecutorPool(env.domain_mgr, domain_count=1, grace=0.2) as pool, Switch() as others:
            running = pool.submit_fork(others, _wait_for, resolver, gate, weight=1.0)
            await begun
            async with Switch() as switch:
                pool.submit_fork(switch, abs, 1, weight=1.0)  # is sent ahead
                (member,) = pool._dispatch._members
                while member.jobs < 2:
                    await fiber.yield_now()

                def cancel_and_hand_back(*args):
                    switch.cancel()
                    return hand_back(*args)

                monkeypatch.setattr(DomainHandle, "_hand_back", cancel_and_hand_back)
                pool._dispatch.take_back(member)
            assert pool.stats()[:2] == (0, 1)
            opener.resolve("done")
            return await running

    assert domains.run(main) == "done"


@pytest.mark.parametrize("step", ["_assign", "_send"])
def test_a_finalizer_that_cancels_jobs_while_they_are_dealt_cancels_them_and_no_others(step, monkeypatch):
    async def main(env: domains.Environment) -> list[int]:
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as others:
            async with Switch() as switch:
                do = getattr(Dispatcher, step)

                def cancel_and_do(*args, **options):  # as the collector of garbage may, in the midst of anything
                    switch.cancel()
                    return do(*args, **options)

                monkeypatch.setattr(Dispatcher, step, cancel_and_do)
                kept = []
                for n in range(3):
                    pool.submit_fork(switch, work_async, 3600.0, weight=0.1)
                    kept.append(pool.submit_fork(others, abs, -n, weight=0.1))
            results = [await promise for promise in kept]
            assert pool.stats()[:3] == (0, 0, 0.0)
            return results

    assert domains.run(main) == [0, 1, 2]


class _CancelsAsItIsPickled:
    def __init__(self, switch: Switch) -> None:
        self._switch = switch

    def __reduce__(self):
        self._switch.cancel()
        return int, ()


def test_a_switch_may_be_cancelled_while_a_job_is_submitted_that_belongs_to_it():
    async def main(env: domains.Environment) -> None:
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            jobs = []
            async with Switch() as switch:
                jobs.append(pool.submit_fork(switch, abs, _CancelsAsItIsPickled(switch), weight=1.0))
            with pytest.raises(domains.Cancelled):
                await jobs[0]
            assert pool.stats()[:3] == (0, 0, 0.0)

    domains.run(main)
