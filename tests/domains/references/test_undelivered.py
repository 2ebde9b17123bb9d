"""What is handed to a job that never opens it hears of that: a promise whose resolver went there fails."""

import os

import pytest

import domains
from domains import Closed, DomainDied, DomainUnavailable, ExecutorPool, Promise, Stream, Switch


def _die(*_):
    os._exit(5)


def _resolve(resolver):
    resolver.resolve(None)


def _spin(start):
    start.resolve(os.getpid())
    while True:
        pass


@pytest.mark.parametrize("retries", [0, 3])
def test_a_resolver_that_waits_in_a_pool_that_gives_up_fails(link, retries):  # S37
    async def main(env):
        promise, resolver = Promise.create()
        async with ExecutorPool(env.domain_mgr, domain_count=1, initializer=_die) as pool:
            with pytest.raises(DomainUnavailable, match="cannot start"):
                await pool.submit(_resolve, resolver, weight=1.0, retries=retries)
            with pytest.raises(DomainUnavailable, match="cannot start"):
                await promise

    domains.run(main, link=link)


@pytest.mark.parametrize("how", ["died", "closed"])
def test_what_a_call_is_given_that_comes_too_late_is_not_held_and_a_resolver_fails(link, how):  # S37
    async def main(env):
        references = env.domain_mgr.references
        failure = DomainDied if how == "died" else Closed
        async with env.domain_mgr.spawn() as domain:
            if how == "died":
                with pytest.raises(DomainDied):
                    await domain.call(_die)
            else:
                domain._handle.finish()
            promise, resolver = Promise.create()
            for given in Stream(1), Stream(1), resolver:
                with pytest.raises(failure):
                    await domain.call(_resolve, given)
            assert not references._holds
            assert not references.exports
            with pytest.raises(failure):
                await promise

    domains.run(main, link=link)


async def _submit_behind(pool, submitted):
    promise, resolver = Promise.create()
    async with Switch() as switch:
        job = pool.submit_fork(switch, _resolve, resolver, weight=0.0)  # sent at once, and read by nobody
        submitted.resolve(None)
        with pytest.raises(DomainDied):
            await job
        with pytest.raises(DomainDied):
            await promise
    return "told"


def test_a_resolver_that_another_domain_submits_and_a_death_keeps_from_being_opened_fails(link):  # S37
    async def main(env):
        started, start = Promise.create()
        submitted, submit = Promise.create()
        async with (
            env.domain_mgr.spawn() as submitter,
            ExecutorPool(env.domain_mgr, domain_count=1) as pool,
            Switch() as switch,
        ):
            spinning = pool.submit_fork(switch, _spin, start, weight=1.0)
            process = await started
            told = switch.fork_promise(submitter.call, _submit_behind, pool, submit)
            await submitted
            while pool.stats().running < 2:
                await domains.fiber.yield_now()
            os.kill(process, 9)
            with pytest.raises(DomainDied):
                await spinning
            assert await told == "told"

    domains.run(main, link=link)
