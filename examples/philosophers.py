"""The dining philosophers, each in a domain of its own, with forks that are mutexes of the main domain.

    python examples/philosophers.py [--seats N] [--meals N] [--dies SEAT]

Between each two philosophers lies one fork, and to eat one needs both beside the seat. Everybody takes the fork with
the lower number first, so that they cannot all hold one and wait for the other. The mutexes are passed as arguments:
their home is the main domain, and it keeps the queue of each.

With `--dies` one philosopher's domain is killed over its first meal, with both forks in hand. Its home takes the
forks back, and the others eat on.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from typing import Literal, NamedTuple

import domains

Event = tuple[int, Literal["eats", "thinks"]]


class Dinner(NamedTuple):
    """What happened at the table: the events in their order, and who died."""

    events: list[Event]
    dead: list[int]

    def meals(self, seat: int) -> int:
        """How many meals this philosopher has finished."""
        return self.events.count((seat, "thinks"))


async def philosopher(
    seat: int, forks: tuple[domains.Mutex, domains.Mutex], meals: int, events: domains.Stream[Event], dies: bool
) -> None:
    """Runs in the philosopher's domain."""
    first, second = forks
    for _ in range(meals):
        # `ro`, for a meal that is broken off leaves nothing wrong with a fork; with `rw` it would be poisoned.
        async with first.ro(), second.ro():
            await events.add((seat, "eats"))
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            await events.add((seat, "thinks"))


async def dine(env: domains.Environment, seats: int, meals: int, dies: int | None = None) -> Dinner:
    """Let everybody eat so many meals. The philosopher whose seat is `dies` dies over the first."""
    forks = [domains.Mutex(label=f"fork {number}") for number in range(seats)]
    # Capacity 0: an event has been seen before its fork is put down, and so before the neighbour's next one.
    events: domains.Stream[Event] = domains.Stream(0, label="table")
    dinner = Dinner([], [])

    async def sit(seat: int) -> None:
        low, high = sorted((seat, (seat + 1) % seats))
        try:
            await env.domain_mgr.run(philosopher, seat, (forks[low], forks[high]), meals, events, seat == dies)
        except domains.DomainDied:
            dinner.dead.append(seat)

    async def watch() -> None:
        async for event in events:
            dinner.events.append(event)

    async with domains.Switch("dinner") as switch:
        switch.fork(watch)
        await domains.fiber.iter(sit, range(seats))
        events.close()
    return dinner


def neighbours_who_ate_together(dinner: Dinner, seats: int) -> list[tuple[int, int]]:
    """Pairs that had the same fork at the same time: none, if forks are what they should be."""
    eating: set[int] = set()
    found: list[tuple[int, int]] = []
    for seat, event in dinner.events:
        eating.discard(seat)
        if event == "eats":
            beside = {(seat - 1) % seats, (seat + 1) % seats}
            found += [(seat, other) for other in sorted(eating & beside) if other not in dinner.dead]
            eating.add(seat)
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The dining philosophers, each in a domain of its own.")
    parser.add_argument("--seats", type=int, default=5, metavar="N")
    parser.add_argument("--meals", type=int, default=100, metavar="N")
    parser.add_argument("--dies", type=int, metavar="SEAT")
    options = parser.parse_args()
    if options.seats < 2:
        parser.error("--seats must be at least 2")
    if options.meals < 1:
        parser.error("--meals must be at least 1")
    if options.dies is not None and options.dies not in range(options.seats):
        parser.error(f"--dies must be a seat, 0 to {options.seats - 1}")
    return options


async def main(env: domains.Environment, options: argparse.Namespace) -> int:
    started = env.clock.now()
    dinner = await dine(env, options.seats, options.meals, options.dies)
    seconds = env.clock.now() - started
    for seat in range(options.seats):
        fate = ", and died" if seat in dinner.dead else ""
        print(f"philosopher {seat} ate {dinner.meals(seat)} meals{fate}")
    together = neighbours_who_ate_together(dinner, options.seats)
    print(f"{len(together)} times two neighbours ate at once")
    print(f"{sum(map(dinner.meals, range(options.seats)))} meals in {seconds:.2f} s")
    return 1 if together else 0


if __name__ == "__main__":
    sys.exit(domains.run(functools.partial(main, options=parse_arguments())))
