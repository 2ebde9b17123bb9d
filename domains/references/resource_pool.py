"""Pools of resources in other domains than their home.

The resource stays in the pool's home, and what the user gets is what it is pickled to: another object with a home, or
a value such as an address. Its place is held by a fiber at home, until the user is done or the user's domain has died.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from domains.errors import DomainsError
from domains.references.calls import RemoteObject, Served, Withdraw
from domains.references.kind import Export, Kind
from domains.references.registry import References
from domains.scheduler.context import check
from domains.scheduler.pool import Pool
from domains.scheduler.promise import Promise, Resolver

T = TypeVar("T")


class ResourcePoolReference(RemoteObject, Pool[T]):
    """A pool of resources whose home is another domain."""

    def __init__(self, references: References, home: int, number: int, label: Any) -> None:
        size, name = label
        super().__init__(size, _at_home, label=name)
        self.home = home
        self.number = number
        self._calls = references.calls

    def __repr__(self) -> str:
        name = "" if self.label is None else f" {self.label!r}"
        return self._describe(f"pool{name} of {self.size}")

    def use(self, *, never_wait: bool = False) -> AbstractAsyncContextManager[T]:
        return self._use_from_afar(never_wait)

    @asynccontextmanager
    async def _use_from_afar(self, never_wait: bool) -> AsyncIterator[T]:
        check()
        call = self._calls.begin(self, "use", (never_wait,))
        try:
            resource = await call.outcome()
        except BaseException:
            # It may have been handed out, and have failed on its way.
            self._tell("give_back", call.number)
            raise
        try:
            yield resource
        finally:
            self._tell("give_back", call.number)


def _at_home() -> Any:
    raise AssertionError("a resource is made in its pool's home")


class ResourcePoolKind(Kind):
    """How pools of resources travel. `held` are the ends of what each domain uses, by its calls."""

    name = "pool of resources"
    classes: tuple[type, ...] = (Pool, ResourcePoolReference)

    def __init__(self) -> None:
        self.operations = {"use": _use}
        self.tells = {"give_back": _give_back}

    def label_of(self, target: Pool[Any]) -> tuple[int, str | None]:
        return target.size, target.label

    def make_reference(self, references: References, home: int, number: int, label: Any) -> Any:
        return ResourcePoolReference(references, home, number, label)

    def domain_gone(self, export: Export, sender: int, error: DomainsError) -> None:
        for end in export.held.pop(sender, {}).values():
            end.resolve(None)


def _use(pool: Pool[Any], served: Served, never_wait: bool) -> Withdraw:
    return served.calls.run(served, _use_at_home, pool, served, never_wait)


async def _use_at_home(pool: Pool[Any], served: Served, never_wait: bool) -> None:
    async with pool.use(never_wait=never_wait) as resource:
        ended: Promise[None]
        end: Resolver[None]
        ended, end = Promise.create("the end of a use from another domain")
        if served.resume(resource):
            served.export.held.setdefault(served.sender, {})[served.call] = end
            await ended


def _give_back(export: Export, sender: int, call: int) -> None:
    end = export.held.get(sender, {}).pop(call, None)
    if end is not None:
        end.resolve(None)
