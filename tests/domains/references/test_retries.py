"""What a job that is run again was given still works in the domain that runs it then."""

from __future__ import annotations

import contextvars
import os
import signal
from typing import Any

import pytest

from domains import DomainDied, Promise, Resolver, Stream, Switch, domain_state, fiber

from .remote import in_pool


async def die_the_first_time(stream: Stream[int], resolver: Resolver[str]) -> str:
    item = await stream.take()
    if item == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    resolver.resolve(f"resolved at the attempt with {item}")
    return f"returned at the attempt with {item}"


given: contextvars.ContextVar[tuple[Stream[int], Resolver[str]]] = contextvars.ContextVar("given")


async def die_the_first_time_with_what_a_variable_holds() -> str:
    return await die_the_first_time(*given.get())


def test_a_retried_job_still_reaches_the_objects_that_it_was_given(link: str) -> None:
    async def main(pool: Any) -> list[str]:
        stream: Stream[int] = Stream(5)
        promise: Promise[str]
        promise, resolver = Promise.create()
        for item in range(2):
            await stream.add(item)
        returned = await pool.submit(die_the_first_time, stream, resolver, weight=1.0, retries=2)
        return [returned, await promise]

    assert in_pool(main, link) == ["returned at the attempt with 1", "resolved at the attempt with 1"]


def test_a_retried_job_still_reaches_the_objects_in_its_context_variables() -> None:
    async def main(pool: Any) -> list[str]:
        stream: Stream[int] = Stream(5)
        promise: Promise[str]
        promise, resolver = Promise.create()
        for item in range(2):
            await stream.add(item)
        token = given.set((stream, resolver))
        returned = await pool.submit(die_the_first_time_with_what_a_variable_holds, weight=1.0, retries=2)
        given.reset(token)
        return [returned, await promise]

    assert in_pool(main, "socketpair") == ["returned at the attempt with 1", "resolved at the attempt with 1"]


async def fail_with_the_home(promise: Promise[int]) -> None:
    try:
        await promise
    except DomainDied:
        raise OSError("once more") from None


async def promise_and_pid() -> tuple[Promise[int], int]:
    promise: Promise[int]
    promise, resolver = Promise.create()
    domain_state.resolver = resolver
    return promise, os.getpid()


async def submit_with_retries(pool: Any, promise: Promise[int]) -> None:
    await pool.submit(fail_with_the_home, promise, weight=1.0, retries=2, retry_on=OSError, backoff=0.0)


def test_a_job_is_run_again_though_the_home_of_what_it_was_given_has_died(link: str) -> None:
    async def main(pool: Any) -> None:
        async with pool._manager.spawn() as home:
            promise, pid = await home.call(promise_and_pid)
            async with Switch() as switch:
                outcome = switch.fork_promise(submit_with_retries, pool, promise)
                await fiber.yield_now()
                await pool.submit(abs, -1, weight=0.0)  # in the same domain, behind it
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(OSError, match="once more"):
                    await outcome

    in_pool(main, link)
