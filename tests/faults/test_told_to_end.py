"""A domain that is told to end, by a signal, and again: it dies, and nobody takes that for a failure of what ran.

The signals come from the jobs themselves, so that each is heard before the next.
"""

import asyncio
import os
import signal

import pytest

import domains
from domains import DomainDied, ExecutorPool, Promise

STATUS = {signal.SIGTERM: (143, None), signal.SIGINT: (None, signal.SIGINT)}


def tell(number, times):
    for _ in range(times):
        os.kill(os.getpid(), number)


def be_told(number, times):
    tell(number, times)
    return times


async def be_told_async(number, times):
    tell(number, times)
    return times


async def be_told_later(number, times):
    asyncio.get_running_loop().call_soon(tell, number, times)
    await asyncio.sleep(1000)


async def be_told_under_protect(number, times):
    with domains.protect():
        for _ in range(times):
            os.kill(os.getpid(), number)
            await asyncio.sleep(0.001)
        await asyncio.sleep(1000)


class ToldAsItOpens:
    def __init__(self, number, times):
        self.told = number, times

    def __reduce__(self):
        return be_told, self.told


class ToldAsItIsPickled(ToldAsItOpens):
    def __reduce__(self):
        tell(*self.told)
        return int, ()


def echo(value):
    return value


def make(kind, *args):
    return kind(*args)


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize(
    "job",
    [
        lambda number: (be_told, number, 2),
        lambda number: (be_told_async, number, 2),
        lambda number: (be_told_later, number, 2),
        lambda number: (be_told_under_protect, number, 2),
        lambda number: (echo, ToldAsItOpens(number, 2)),
        lambda number: (make, ToldAsItIsPickled, number, 2),
    ],
    ids=["plain", "async", "later", "protect", "opens", "pickled"],
)
def test_a_domain_that_is_told_twice_dies_with_its_job(link, number, job):
    """The job's caller was not told to end."""

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(DomainDied) as died:
                await pool.submit(*job(number), weight=1.0)
            assert await pool.submit(echo, 2, weight=1.0) == 2
        return died.value.exitcode, died.value.signal

    assert domains.run(main, link=link) == STATUS[number]


async def hold(number):
    return domains.Lazy(lambda: be_told_async(number, 2))


async def fail(resolver, number):
    try:
        tell(number, 2)
    except BaseException as error:
        resolver.fail(error)
        raise


@pytest.mark.parametrize("number", STATUS)
def test_who_waits_for_a_value_that_is_made_there_hears_of_a_death(link, number):
    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            lazy = await domain.call(hold, number)
            with pytest.raises(DomainDied):
                await lazy.force()

    domains.run(main, link=link)


@pytest.mark.parametrize("number", STATUS)
def test_what_a_promise_came_to_by_the_signal_is_a_death(link, number):
    async def main(env):
        promise, resolver = Promise.create()
        async with env.domain_mgr.spawn() as domain:
            with pytest.raises(DomainDied):
                await domain.call(fail, resolver, number)
            with pytest.raises(DomainDied):
                await promise

    domains.run(main, link=link)


def be_told_the_first_time(file, number):
    if not file.exists():
        file.touch()
        tell(number, 2)
    return "the second time"


@pytest.mark.parametrize("number", STATUS)
def test_a_job_whose_domain_was_told_twice_is_tried_again(link, number, tmp_path):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            return await pool.submit(
                be_told_the_first_time, tmp_path / "told", number, weight=1.0, retries=1, backoff=0.0
            )

    assert domains.run(main, link=link) == "the second time"
