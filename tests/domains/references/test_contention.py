"""A mutex that several domains want all the time: everybody gets a fair share, whoever dies holding it."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy
import pytest

from domains import DomainDied, Mutex, Switch, fiber, shared_array

from .remote import in_pool

WARM = 5


async def contend(mutex: Mutex, counts: Any, warm: Any, mine: int, most: int) -> int:
    """Lock again and again until all together have done so `most` times; returns how often this one did.

    Nothing counts before all are there: until then whoever came first has it for itself.
    """
    taken = 0
    while True:
        async with mutex.ro():
            if counts[0] >= most:
                return taken
            warm[mine] += 1
            if warm.min() >= WARM:
                counts[0] += 1
                taken += 1


@pytest.mark.parametrize(("count", "rounds_each"), [(2, 10_000), (8, 800)])
def test_nobody_gets_less_than_a_third_of_its_share(link: str, count: int, rounds_each: int) -> None:  # S44
    # Long enough for bursts to even out: a free mutex is locked a thousand times before another's wish is heard.
    async def main(pool: Any) -> list[int]:
        mutex = Mutex()
        counts = shared_array(1, numpy.int64)
        warm = shared_array(count, numpy.int64)
        most = count * rounds_each
        async with Switch() as switch:
            taken = [
                pool.submit_fork(switch, contend, mutex, counts, warm, number, most, weight=1.0)
                for number in range(count)
            ]
            shares = [await promise for promise in taken]
        assert sum(shares) == counts[0] == most
        return shares

    shares = in_pool(main, link, count)
    assert min(shares) >= rounds_each // 3, shares


async def contend_for_ever(mutex: Mutex, counts: Any, mine: int) -> None:
    while True:
        await mutex.lock()
        counts[0] += 1
        counts[mine] += 1
        mutex.unlock()


def test_no_update_is_lost_and_no_lock_stuck_when_contenders_are_killed(link: str) -> None:  # S49
    kills = 12

    async def main(pool: Any) -> None:
        mutex = Mutex()
        counts = shared_array(4, numpy.int64)

        async def contend_and_die(mine: int, lives: int) -> None:
            for _ in range(lives):
                async with pool._manager.spawn() as domain, Switch() as switch:
                    before = int(counts[mine])
                    dying = switch.fork_promise(domain.call, contend_for_ever, mutex, counts, mine)
                    while counts[mine] < before + 20:
                        await fiber.yield_now()
                        async with mutex.ro():
                            counts[3] += 1
                    os.kill(domain.pid, signal.SIGKILL)
                    with pytest.raises(DomainDied):
                        await dying

        async with Switch() as switch:
            for mine in (1, 2):
                switch.fork(contend_and_die, mine, kills // 2)
        async with mutex.ro():  # it is not stuck
            # Each death may have come between the two updates of one section, and no other section saw that one.
            assert abs(int(counts[0]) - int(counts[1]) - int(counts[2])) <= kills

    in_pool(main, link)
