"""Each operation on an object of another domain x each step of it x who is killed then: all that is awaited ends.

Three parties: the home of the object, its user, and a third that uses it as well. When the user dies, what it held or
waited for comes back, and the third gets its turn; when the home dies, the others hear of that. Nothing stays behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Container
from typing import Any, NamedTuple

import pytest

from domains import (
    Cancelled,
    DomainDied,
    Promise,
    Resolver,
    Semaphore,
    Switch,
    timeout,
)

from . import moments
from .operations import OPERATIONS, Operation
from .remote import in_pool

PATIENCE_SECONDS = 20.0


class Moment(NamedTuple):
    """A step of an operation: at which party it is noticed, by which message, and what must be done to get there."""

    name: str
    at: str
    side: str
    message: str
    stage: str


MOMENTS = [
    Moment("before the call is sent", "user", "before sending", "request", "wait"),
    Moment("when the call was sent", "user", "after sending", "request", "wait"),
    Moment("when the call arrives", "home", "before handling", "request", "wait"),
    Moment("while it waits", "home", "after handling", "request", "wait"),
    Moment("before it is answered", "home", "before sending", "answer", "free"),
    Moment("when it was answered", "home", "after sending", "answer", "free"),
    Moment("when the answer arrives", "user", "before handling", "answer", "free"),
    Moment("when the answer was heard", "user", "after handling", "answer", "free"),
    Moment("before it is withdrawn", "user", "before sending", "withdrawal", "cancel"),
    Moment("when it was withdrawn", "user", "after sending", "withdrawal", "cancel"),
    Moment("when the withdrawal arrives", "home", "before handling", "withdrawal", "cancel"),
    Moment("when the withdrawal was handled", "home", "after handling", "withdrawal", "cancel"),
    Moment("before the withdrawal is answered", "home", "before sending", "answer", "cancel"),
    Moment("when the withdrawal's answer arrives", "user", "before handling", "answer", "cancel"),
    Moment("when the withdrawal's answer was heard", "user", "after handling", "answer", "cancel"),
    Moment("while it is held", "", "", "", "hold"),
    Moment("before it is given back", "user", "before sending", "tell", "free"),
    Moment("when it was given back", "user", "after sending", "tell", "free"),
    Moment("when what is given back arrives", "home", "before handling", "tell", "free"),
    Moment("when what was given back was handled", "home", "after handling", "tell", "free"),
]

# What runs at a party, in its own process

_home: list[Operation] = []
_things: list[Any] = []
_by_name = {operation.__name__: operation for operation in OPERATIONS}


async def make(name: str) -> tuple[Any, ...]:
    """At home. The last of the objects is for the parties to meet by."""
    _home[:] = [_by_name[name]()]
    return (*await _home[0].make(), Semaphore(1))


async def get(things: tuple[Any, ...]) -> list[int]:
    """At any other: have the references, and meet the home."""
    _things[:] = things
    assert things[-1].value == 1
    return [thing.number for thing in things]


async def address() -> int:
    return moments.registry().address


async def arm(moment: Moment, kind: str, skip: int, numbers: list[int], peer: int, pid: int) -> None:
    moments.when(moment.side, kind, skip, numbers, peer, lambda: os.kill(pid, signal.SIGKILL))


async def say(kind: str, skip: int, numbers: list[int], peer: int, resolver: Resolver[None]) -> None:
    """At home: say when the user's call has arrived."""
    moments.when("after handling", kind, skip, numbers, peer, lambda: resolver.try_resolve(None) and None)


async def use(name: str, cancel: Promise[None] | None, held: Resolver[None] | None, keep: Promise[None] | None) -> str:
    """At the user or the third: one operation from its beginning to its end; tells which end."""

    async def hold() -> None:
        if held is not None:
            held.resolve(None)
        if keep is not None:
            with contextlib.suppress(DomainDied):
                await keep

    async def watch(switch: Switch, cancel: Promise[None]) -> None:
        await cancel
        switch.cancel()

    ended = "cancelled"
    async with Switch() as switch:
        if cancel is not None:
            switch.fork_daemon(watch, switch, cancel)
        try:
            await _by_name[name]().act(tuple(_things), hold)
            ended = "done"
        except Cancelled:
            raise
        except Exception as error:
            ended = type(error).__name__
    return ended


async def free() -> None:
    _home[0].free()


async def free_until(done: Promise[str]) -> None:
    while not done.is_resolved:
        _home[0].free()
        await asyncio.sleep(0.001)


async def make_keep() -> Promise[None]:
    """At home: what is resolved by its death alone."""
    promise: Promise[None]
    promise, resolver = Promise.create("the end of the home")
    _things.append(resolver)
    return promise


async def gone_from(dead: int) -> None:
    """At home: wait until it is known that this domain is gone, and see that nothing of it is left."""
    references = moments.registry()
    while any(dead in export.holders for export in references.exports.values()):
        heard = asyncio.Event()
        references.when_domain_gone.append(lambda address, error, heard=heard: heard.set())  # type: ignore[misc]
        await heard.wait()
        await asyncio.sleep(0)
    assert not any(sender == dead for sender, _ in references.calls.served)


async def check(granted: bool) -> None:
    _home[0].check(granted)


async def forget() -> None:
    _things.clear()
    _home.clear()
    moments.forget()


class Party:
    """Where a part is played: in a domain, or in this process."""

    def __init__(self, domain: Any) -> None:
        self.domain = domain

    async def call(self, f: Any, *args: Any) -> Any:
        return await (f(*args) if self.domain is None else self.domain.call(f, *args))

    async def pid(self) -> int:
        return int(os.getpid() if self.domain is None else await self.domain.call(os.getpid))


async def play(parties: dict[str, Party], operation: type[Operation], moment: Moment, places: str, victim: str) -> None:
    home, user, third = (parties[place] for place in places.split())
    pid = await (home if victim == "home" else user).pid()
    addresses = [await party.call(address) for party in (home, user)]
    name = operation.__name__
    things = await home.call(make, name)
    numbers = await user.call(get, things)
    await third.call(get, things)
    del things
    arrived, say_arrived = Promise[None].create("the user's call has arrived")
    cancel, say_cancel = Promise[None].create("cancel")
    held, say_held = Promise[None].create("it is held")
    keep = await home.call(make_keep) if moment.stage == "hold" else None
    await home.call(say, operation.request, operation.skip_requests, numbers, addresses[1], say_arrived)
    if moment.at:
        at, peer = (home, addresses[1]) if moment.at == "home" else (user, addresses[0])
        skip = {"answer": operation.skip_answers, "request": operation.skip_requests}.get(moment.message, 0)
        await at.call(arm, moment, getattr(operation, moment.message), skip, numbers, peer, pid)
    async with Switch() as switch:
        using = switch.fork_promise(user.call, use, name, cancel, say_held, keep)
        waiting: Promise[str] | None = None
        if moment.stage != "wait":
            await arrived
            waiting = switch.fork_promise(third.call, use, name, None, None, None)
            if moment.stage == "cancel":
                say_cancel.resolve(None)
            else:
                with contextlib.suppress(DomainDied):
                    await home.call(free)
        if moment.stage == "hold":
            await held
            os.kill(pid, signal.SIGKILL)
        try:
            ended = await using
        except DomainDied:
            ended = "died"
        if victim == "user":
            # Killed from the home, it may have been quicker with its last word.
            assert ended == "died" or (moment.at == "home" and ended in {"done", "cancelled"}), ended
            await home.call(gone_from, addresses[1])
            if waiting is None:
                await home.call(check, False)
                waiting = switch.fork_promise(third.call, use, name, None, None, None)
            freeing = switch.fork_promise(home.call, free_until, waiting)
            after = {"done", *(error.__name__ for error in operation.after_death)}
            assert await waiting in after, await waiting
            await freeing
            if "Poisoned" not in after or await waiting == "done":
                await home.call(check, True)
            for party in (home, third):
                await party.call(forget)
        else:
            expected = {"wait": {"DomainDied"}, "cancel": {"DomainDied", "cancelled"}}
            assert ended in expected.get(moment.stage, {"DomainDied", "done"}), ended
            if waiting is None:
                waiting = switch.fork_promise(third.call, use, name, None, None, None)
            assert await waiting in {"DomainDied", "done"}, await waiting
            assert await waiting == "DomainDied" or moment.stage not in {"wait", "cancel"}
            for party in (user, third):
                await party.call(forget)


def plays(operation: type[Operation], places: str, names: Container[str]) -> list[tuple[Moment, str]]:
    home, user, _ = places.split()
    return [
        (moment, victim)
        for moment in MOMENTS
        for victim, place in (("home", home), ("user", user))
        if place != "main" and moment.name in names and (not moment.message or getattr(operation, moment.message))
        if moment.stage != "cancel" or operation.withdrawal
    ]


def play_all(operation: type[Operation], places: str, names: Container[str], link: str) -> None:
    """One play after another: who survives plays again, so what stays behind in it is in the way of the next."""
    home, user, _ = places.split()

    async def main(pool: Any) -> None:
        parties: dict[str, Party] = {"main": Party(None)}
        async with contextlib.AsyncExitStack() as domains:
            for moment, victim in plays(operation, places, names):
                for name in {"one", "two"} - parties.keys():
                    parties[name] = Party(await domains.enter_async_context(pool._manager.spawn()))
                try:
                    with timeout(PATIENCE_SECONDS):
                        await play(parties, operation, moment, places, victim)
                except BaseException as error:
                    error.add_note(f"when the {victim} was killed {moment.name}")
                    raise
                finally:
                    await forget()
                del parties[home if victim == "home" else user]

    in_pool(main, link)


TELLING = {"while it waits", "when it was answered", "when it was withdrawn", "while it is held"}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_whoever_dies_everything_ends(operation: type[Operation], link: str) -> None:  # S37 S41 S46 S49
    play_all(operation, "one two main", TELLING, link)


@pytest.mark.slow
@pytest.mark.parametrize("places", ["main one two", "one main two", "one two main"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_whoever_dies_at_any_step_everything_ends(operation: type[Operation], places: str, link: str) -> None:
    play_all(operation, places, {moment.name for moment in MOMENTS}, link)
