"""`map` over a pool: lazy, bounded, in order or as finished, in groups that follow the jobs' duration."""

import asyncio
import contextlib
import functools
import gc
import itertools
import os
import resource
import threading
import time
import traceback

import numpy
import pytest

import domains
from domains import ExecutorPool, NotPicklable, Stream, fiber
from domains.pool.mapping import MapResults
from domains.pool.source import open_source
from domains.scheduler.run import run as run_locally


def run(main, link="socketpair"):
    return domains.run(main, link=link)


def square(x):
    return x * x


async def square_async(x):
    await asyncio.sleep(0)
    return x * x


class Calls:
    def __init__(self, f):
        self.f = f

    async def __call__(self, x):
        return await self.f(x)


class Square:
    """What is made of a number, rather than called with one."""

    def __init__(self, x):
        self.x = x

    async def __call__(self):
        raise AssertionError("nobody calls it")

    def __eq__(self, other):
        return self.x**2 == other


@pytest.mark.parametrize(
    "f",
    [
        square,
        square_async,
        Calls(square_async),
        lambda x: square_async(x),
        functools.partial(Calls(square_async)),
        Square,
    ],
    ids=["plain", "async", "async call", "returns a coroutine", "partial", "class"],
)
def test_awaiting_a_map_gives_all_results_as_a_list(link, f):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
            return await pool.map(f, range(2000), weight=1.0), await pool.map(f, [], weight=1.0)

    assert run(main, link) == ([n * n for n in range(2000)], [])


async def _take_one(results):
    async for _ in results:
        return


async def _await_all(results):
    await results


@pytest.mark.parametrize("use", [_take_one, _await_all, MapResults.aclose])
def test_what_was_taken_or_given_up_cannot_be_awaited(use):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            results = pool.map(square, range(100), weight=1.0)
            await use(results)
            with pytest.raises(RuntimeError, match="call map again"):
                await results
            await results.aclose()

    run(main)


def test_a_map_over_an_endless_iterable_is_left_early(link):
    async def main(env):
        got = []
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
            async with contextlib.aclosing(pool.map(square, itertools.count(), weight=1.0)) as results:
                async for result in results:
                    got.append(result)
                    if len(got) == 1000:
                        break
            stats = pool.stats()
        return got, stats.queued, stats.running

    assert run(main, link) == ([n * n for n in range(1000)], 0, 0)


def test_leaving_early_interrupts_what_runs(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
            await pool.ready()
            before = {domain.pid for domain in pool.stats().domains}
            async with contextlib.aclosing(pool.map(time.sleep, [0, 3600, 3600, 3600], weight=1.0, chunk=1)) as results:
                async for _ in results:
                    break
            return before == {domain.pid for domain in pool.stats().domains}

    assert run(main, link)


def test_an_unordered_map_gives_results_as_they_finish(tmp_path):
    release = tmp_path / "release"

    def job(n):
        while n == 0 and not release.exists():
            time.sleep(0.001)
        return n

    async def main(env):
        got = []
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
            async for n in pool.map(job, range(5), weight=1.0, ordered=False, chunk=1):
                got.append(n)
                if len(got) == 4:
                    release.touch()
        return got

    got = run(main)
    assert got[-1] == 0
    assert sorted(got) == [0, 1, 2, 3, 4]


def test_a_failing_iterable_fails_the_map_and_cancels_what_it_began():
    def source():
        yield 1
        raise LookupError("no more")

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(LookupError, match="no more"):
                await pool.map(square, source(), weight=1.0)
            stats = pool.stats()
            return stats.queued, stats.running

    assert run(main) == (0, 0)


def test_a_result_is_there_before_the_source_has_another_item(link):
    async def main(env):
        got = []
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            stream = Stream(1)
            await stream.add(2)
            async for result in pool.map(square, stream, weight=1.0):
                got.append(result)
                if len(got) < 4:
                    await stream.add(result)  # without this there would be no more
                else:
                    stream.close()
        return got

    assert run(main, link) == [4, 16, 256, 65536]


@pytest.mark.parametrize("buffer", [None, 5])
def test_an_async_source_is_read_no_further_than_results_are_taken(buffer):
    async def main(env):
        read = []

        async def source():
            for n in itertools.count():
                read.append(n)
                yield n

        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            results = pool.map(square, source(), weight=1.0, buffer=buffer, chunk=1)
            assert await anext(results) == 0
            while pool.stats().running or pool.stats().queued:
                await fiber.yield_now()
            await results.aclose()
        return len(read)

    assert run(main) <= (buffer or 6)


@pytest.mark.parametrize("failing", [False, True])
def test_leaving_a_map_early_ends_what_reads_its_async_source(failing):
    ended = []

    async def source():
        try:
            yield 0
            await fiber.await_cancel()
        finally:
            await asyncio.sleep(0)
            ended.append(asyncio.current_task())

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with contextlib.suppress(ZeroDivisionError):
                async with contextlib.aclosing(
                    pool.map(lambda n: 1 / (n if failing else 1), source(), weight=1.0)
                ) as results:
                    async for _ in results:
                        break
            return len(ended), [task for task in asyncio.all_tasks() if task in ended]

    assert run(main) == (1, [])


def test_a_failing_async_source_fails_the_map_and_cancels_what_it_began(link):
    async def source():
        yield 3600
        await asyncio.sleep(0)
        raise LookupError("no more")

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(LookupError, match="no more"):
                await pool.map(time.sleep, source(), weight=1.0)
            stats = pool.stats()
            return stats.queued, stats.running

    assert run(main, link) == (0, 0)


def test_a_source_that_is_full_is_quiet():
    async def numbers():
        for n in itertools.count():
            yield n

    async def main():
        told = []
        source = open_source(numbers(), lambda: told.append(1))
        assert source.take(1, 3, 3) == []
        while len(told) < 2:  # the first item, and as many as may be
            await fiber.yield_now()
        for _ in range(10):
            assert source.take(4, 4, 3) == []
            await fiber.yield_now()
        assert len(told) == 2
        assert source.take(1, 4, 3) == [0, 1, 2]
        await source.close()

    run_locally(main)


def test_a_source_that_swallows_its_cancellation_is_read_no_further():
    async def source():
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                yield 1
                await asyncio.sleep(3600)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            results = pool.map(square, source(), weight=1.0)
            assert await anext(results) == 1
            await results.aclose()

    run(main)


@pytest.mark.parametrize("is_object", [False, True])
def test_light_async_jobs_of_a_map_fill_a_domain(tmp_path, is_object):
    async def meet(n):
        (tmp_path / str(n)).touch()
        while len(os.listdir(tmp_path)) < 50:  # noqa: ASYNC110  # they meet by files
            await asyncio.sleep(0.001)
        return n

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            return await pool.map(Calls(meet) if is_object else meet, range(50), weight=0.02)

    assert run(main) == list(range(50))


def test_awaitables_of_a_plain_function_go_on_beside_each_other_in_a_group():
    async def meet(n):
        _met.append(n)
        while len(_met) < 8:  # noqa: ASYNC110  # they meet in a list
            await asyncio.sleep(0)
        return n

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            return await pool.map(lambda n: meet(n), range(8), weight=1.0, chunk=8)

    assert run(main) == list(range(8))


_met: list[int] = []


def square_some_later(x):
    return square_async(x) if x % 3 else square(x)


@pytest.mark.parametrize("first", [0, 1])
def test_a_function_may_return_what_is_awaited_for_some_items_and_not_for_others(first):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            items = range(first, 20)
            squares = [square(n) for n in items]
            assert await pool.map(square_some_later, items, weight=1.0, chunk=20) == squares
            executor = pool.as_executor()
            chunks = executor.map(square_some_later, items, chunksize=20)
            assert await domains.run_in_thread(list, chunks) == squares

    run(main)


@pytest.mark.parametrize("failing", [0, 5])
def test_awaitables_of_a_group_that_fails_are_all_awaited(capfd, failing):
    async def fail(n):
        if n == failing:
            raise LookupError(n)
        await fiber.await_cancel()

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(LookupError):
                await pool.map(lambda n: fail(n), range(8), weight=1.0, chunk=8)
            await pool.submit(gc.collect, weight=1.0)

    run(main)
    assert "never awaited" not in capfd.readouterr().err


def test_quick_jobs_travel_in_ever_larger_groups_and_slow_ones_alone(link):
    sent = []

    def source(count):
        for n in range(count):
            sent.append(n)
            yield n

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.map(square, source(20_000), weight=1.0)
            answered = pool.stats().domains[0].answered
            await pool.map(time.sleep, [0.02] * 10, weight=1.0)
            return answered, pool.stats().domains[0].answered - answered

    quick, slow = run(main, link)
    assert len(sent) == 20_000
    assert quick < 2000  # groups have grown beyond ten items
    assert slow == 10


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"chunk": 0}, ValueError),
        ({"chunk": "big"}, ValueError),
        ({"buffer": 0}, ValueError),
        ({"weight": 1.5}, ValueError),
        ({"weight": 10**400}, ValueError),
        ({"weight": numpy.True_}, TypeError),
    ],
)
def test_arguments_are_checked_at_the_call(arguments, error):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(error):
                pool.map(square, [1], **{"weight": 1.0, **arguments})

    run(main)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_an_item_that_cannot_travel_is_named_by_its_place_in_the_input(link, chunk):
    async def main(env):
        references = env.domain_mgr.references
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            items = [0, 1, 2, 3, Stream(1), {"pictures": [1, threading.Lock()]}, threading.Lock()]
            with pytest.raises(NotPicklable) as caught:
                await pool.map(repr, items, weight=1.0, chunk=chunk)
            while references.exports:
                await pool.submit(gc.collect, weight=1.0)
            assert not references._holds
            assert await pool.map(abs, [-1], weight=1.0) == [1]
        return caught.value

    error = run(main, link)
    assert error.what == "the input of a map of 'repr': xs[5]['pictures'][1] (type _thread.lock)"
    assert "arguments" not in "".join(traceback.format_exception(error))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_million_items_pass_in_flat_memory():
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
            total = taken = peak = 0
            async for result in pool.map(abs, range(10_000_000), weight=1.0):
                total += result
                taken += 1
                if taken == 1_000_000:
                    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak

    total, growth_kib = run(main)
    assert total == 10_000_000 * 9_999_999 // 2
    assert growth_kib < 16_000
