"""What a job that is run again was given still works in the domain that runs it then."""

from __future__ import annotations

import contextvars
import os
import signal
from typing import Any

from domains import Promise, Resolver, Stream

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
