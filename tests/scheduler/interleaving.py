"""Runs operations in fibers of their own, and cancels them at random moments, for property-based tests.

A program is a list of steps, which the main fiber of a mock loop takes one after another. Between steps that let
others run there is no switch, so that completions and cancellations meet in one turn of the loop, in every order.
"""

from __future__ import annotations

import asyncio
import os
from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from domains import CancelScope, Switch, fiber, move_on_after, testing
from domains.scheduler.clock import sleep

EXAMPLES = int(os.environ.get("DOMAINS_EXAMPLES", "100"))

thorough = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 100,
    suppress_health_check=[HealthCheck.too_slow],
)


class Operation:
    """One operation that was begun: how it ended, and in which turn of the order of endings."""

    def __init__(self, number: int, kind: str) -> None:
        self.number = number
        self.kind = kind
        self.scope = CancelScope()
        self.task: asyncio.Task[Any] | None = None
        self.value: Any = None
        self.error: BaseException | None = None
        self.state = "running"
        self.may_be_cancelled = False

    def __repr__(self) -> str:
        return f"<{self.kind} {self.number}: {self.state} {self.value!r} {self.error!r}>"


class Interleaving:
    """What has happened so far: the operations in the order of their beginning, and in that of their ending."""

    def __init__(self, switch: Switch) -> None:
        self.switch = switch
        self.begun: list[Operation] = []
        self.ended: list[Operation] = []

    def done(self, kind: str) -> list[Operation]:
        """Those that completed, in the order in which they did."""
        return [operation for operation in self.ended if operation.kind == kind and operation.state == "done"]

    def begin(self, kind: str, f: Callable[[int], Awaitable[Any]], seconds: float | None = None) -> Operation:
        operation = Operation(len(self.begun), kind)
        operation.may_be_cancelled = seconds is not None
        self.begun.append(operation)
        self.switch.fork(self._run, operation, f, seconds, name=f"{kind} {operation.number}")
        return operation

    async def _run(self, operation: Operation, f: Callable[[int], Awaitable[Any]], seconds: float | None) -> None:
        operation.task = asyncio.current_task()
        assert operation.task is not None
        try:
            with move_on_after(seconds), operation.scope:
                try:
                    operation.value = await f(operation.number)
                except CancelledError:
                    operation.state = "cancelled"
                    raise
                except Exception as error:
                    operation.state, operation.error = "failed", error
                else:
                    operation.state = "done"
        except CancelledError:  # by `task.cancel()`, from outside of all scopes
            while operation.task.uncancel():
                pass
        finally:
            if operation.state == "running":
                operation.state = "cancelled"
            self.ended.append(operation)

    def cancel(self, choice: int, foreign: bool) -> None:
        """Cancel one of those that are running; nothing happens if none is."""
        running = [operation for operation in self.begun if operation.state == "running"]
        if running:
            operation = running[choice % len(running)]
            operation.may_be_cancelled = True
            if foreign and operation.task is not None:
                operation.task.cancel()
            else:
                operation.scope.cancel()

    def cancel_all(self) -> None:
        for operation in self.begun:
            operation.may_be_cancelled = True
            operation.scope.cancel()

    def cancelled_by_nobody(self) -> list[Operation]:
        return [one for one in self.begun if one.state == "cancelled" and not one.may_be_cancelled]


def programs(*kinds: str) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    """Lists of steps: operations of these kinds, cancellations of both sorts, turns of the loop, time that passes.

    Drawn from a seed: lists that hypothesis draws itself repeat one step too often for anybody to meet.
    """
    return st.builds(_program, st.just(kinds), st.integers(0, 1 << 40), st.integers(5, 50))


def _program(kinds: tuple[str, ...], seed: int, length: int) -> list[tuple[Any, ...]]:
    random = Random(seed)
    steps: list[tuple[Any, ...]] = []
    for _ in range(length):
        choice = random.random()
        if choice < 0.5:
            seconds = random.choice([None, None, None, None, None, 0.0, 1.0])
            steps.append((random.choice(kinds), seconds, random.randrange(4)))
        elif choice < 0.8:
            steps.append(("turn", random.randrange(1, 4)))
        elif choice < 0.95:
            steps.append(("cancel", random.randrange(20), random.random() < 0.5))
        else:
            steps.append(("pause", random.choice([0.5, 1.0])))
    return steps


def play(
    steps: list[tuple[Any, ...]],
    begin: Callable[[Interleaving, tuple[Any, ...]], None],
    finish: Callable[[Interleaving], Awaitable[None]],
    *,
    spreads: bool = False,
) -> None:
    """Run a program: `begin` begins an operation, `finish` lets those end that still wait, and checks.

    Unless cancellation `spreads`, nobody is cancelled for another's sake.
    """

    async def main() -> None:
        async with Switch("operations") as switch:
            interleaving = Interleaving(switch)
            for step in steps:
                if step[0] == "turn":
                    for _ in range(step[1]):
                        await fiber.yield_now()
                elif step[0] == "pause":
                    await sleep(step[1])
                elif step[0] == "cancel":
                    interleaving.cancel(step[1], step[2])
                else:
                    begin(interleaving, step)
            await finish(interleaving)
            assert spreads or not interleaving.cancelled_by_nobody()

    testing.run(main)
