"""What a job that is run again was given still works in the domain that runs it then."""

from __future__ import annotations

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
