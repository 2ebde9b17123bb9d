"""Weights, on random schedules: what runs at a time, in which order it starts, and that nobody waits in vain."""
# ruff: noqa: ASYNC110 - jobs tell the tests by files where they are

import asyncio
import fcntl
import os
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import domains
from domains import ExecutorPool, Switch
from tests.domains.weighted_jobs import be_busy, die, meet, place, run_for_turns, run_plain, take_log

_SETTINGS = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)

weights = st.one_of(st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 1.0]), st.floats(0.0, 1.0))
jobs = st.lists(st.tuples(weights, st.integers(0, 5), st.booleans()), min_size=1, max_size=40)


def millionths(weight):
    return max(round(weight * 1_000_000), 1) if weight else 0


def check_log(log, schedule):
    """Every job begins and ends once; none begins while the weights of the running ones make 1.0 or more."""
    running = {}
    for event, number in log:
        weight = millionths(schedule[number][0])
        if event == "begin":
            assert number not in running
            assert not weight or sum(running.values()) < 1_000_000
            running[number] = weight
        else:
            del running[number]
    assert not running


@_SETTINGS
@given(jobs)
def test_a_domain_starts_jobs_in_order_while_their_weights_are_below_one(schedule):  # S64 S65
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            async with Switch() as sw:
                for number, (weight, turns, plain) in enumerate(schedule):
                    f = run_plain if plain else run_for_turns
                    pool.submit_fork(sw, f, number, turns, None, weight=weight)
            return await pool.submit(take_log, weight=1.0), pool.stats()

    log, stats = domains.run(main)
    check_log(log, schedule)
    begun = [number for event, number in log if event == "begin"]
    assert sorted(begun) == list(range(len(schedule)))
    with_weight = [number for number in begun if millionths(schedule[number][0])]
    assert with_weight == sorted(with_weight)
    assert (stats.queued, stats.running, stats.weight) == (0, 0, 0.0)


@_SETTINGS
@given(jobs, st.lists(st.integers(0, 39), max_size=10))
def test_cancelling_some_jobs_leaves_the_others_and_the_account_intact(schedule, cancelled):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
            async with Switch() as outer:
                switches = {}

                async def submit(number, weight, turns, plain):
                    async with Switch() as sw:
                        switches[number] = sw
                        f = run_plain if plain else run_for_turns
                        pool.submit_fork(sw, f, number, turns, None, weight=weight)

                for number, (weight, turns, plain) in enumerate(schedule):
                    outer.fork(submit, number, weight, turns, plain)
                await domains.fiber.yield_now()
                await domains.fiber.yield_now()
                for number in cancelled:
                    if number in switches:
                        switches[number].cancel()
            return pool.stats()

    stats = domains.run(main)
    assert (stats.queued, stats.running, stats.weight) == (0, 0, 0.0)


def test_a_light_job_behind_a_plain_one_moves_to_a_domain_that_becomes_idle(link, tmp_path):  # S65
    begin, first, second = tmp_path / "begin", tmp_path / "first", tmp_path / "second"

    def hold(begin, path):
        begin.touch()
        while not path.exists():
            time.sleep(0.001)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool, Switch() as sw:
            other = pool.submit_fork(sw, hold, tmp_path / "other", second, weight=0.6)
            held = pool.submit_fork(sw, hold, begin, first, weight=0.5)
            # One of the two domains has this one behind a plain job that it cannot overtake.
            light = pool.submit_fork(sw, abs, -3, weight=0.1)
            while not (begin.exists() and (tmp_path / "other").exists()):
                await asyncio.sleep(0.001)
            second.touch()
            await other
            result = await light
            first.touch()
            await held
            return result

    assert domains.run(main, link=link) == 3


def test_more_light_jobs_than_can_be_offered_at_a_time_all_run_together(tmp_path):  # S65
    begin, fifo, count = tmp_path / "begin", str(tmp_path / "fifo"), 1000
    os.mkfifo(fifo)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as sw:
            (member,) = pool._dispatch._members
            pipe = member.handle.claims._writing
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
            pool.submit_fork(sw, be_busy, begin, fifo, weight=0.0)
            while not begin.exists():
                await asyncio.sleep(0.001)
            jobs = [pool.submit_fork(sw, meet, count, weight=0.00001) for _ in range(count)]
            await domains.fiber.yield_now()
            offered = pool.stats().running - 1
            os.close(os.open(fifo, os.O_WRONLY))
            for job in jobs:
                await job
            return offered, pool.stats()

    offered, stats = domains.run(main)
    assert offered == 512
    assert (stats.queued, stats.running, stats.weight) == (0, 0, 0.0)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_higher_priority_starts_first_though_no_more_can_be_offered(weight, tmp_path):  # S64
    begin, fifo = tmp_path / "begin", str(tmp_path / "fifo")
    os.mkfifo(fifo)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool, Switch() as sw:
            (member,) = pool._dispatch._members
            fcntl.fcntl(member.handle.claims._writing, fcntl.F_SETPIPE_SZ, 4096)
            pool.submit_fork(sw, be_busy, begin, fifo, weight=0.0)
            while not begin.exists():
                await asyncio.sleep(0.001)
            for _ in range(600):
                pool.submit_fork(sw, place, weight=0.00001)
            await domains.fiber.yield_now()
            assert pool.stats().queued
            urgent = sw.fork_promise(lambda: pool.submit(place, weight=weight, priority=1))
            for _ in range(10):  # in the second turn the others are taken back, and soon after it is sent
                await asyncio.sleep(0)
            os.close(os.open(fifo, os.O_WRONLY))
            return await urgent

    assert domains.run(main) == 1


@pytest.mark.parametrize("count", [1, 3])
def test_jobs_sent_ahead_to_a_domain_that_dies_are_run_elsewhere(link, count):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=count) as pool:
            for _ in range(100):  # teaches the pool that jobs are short, so that it sends ahead
                await pool.submit(abs, 1, weight=1.0)
            async with Switch() as sw:
                killed = pool.submit_fork(sw, die, weight=1.0)
                others = [pool.submit_fork(sw, abs, -n, weight=1.0) for n in range(300)]
                with pytest.raises(domains.DomainDied):
                    await killed
                return [await promise for promise in others]

    assert domains.run(main, link=link) == list(range(300))
