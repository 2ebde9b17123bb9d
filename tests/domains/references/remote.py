"""What the tests of references share: a pool to hand them to, and the check that nothing stays exported."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import domains
from domains import ExecutorPool


def in_pool(main: Callable[..., Awaitable[Any]], link: str, count: int = 1) -> Any:
    """Run `main(pool)` in a pool of domains; afterwards nothing is exported any more, there or here."""

    async def outer(env: domains.Environment) -> Any:
        references = env.domain_mgr.references
        async with ExecutorPool(env.domain_mgr, domain_count=count) as pool:
            result = await main(pool)
            for _ in range(1000):
                gc.collect()
                await pool.submit(gc.collect, weight=0.0)
                if not references.exports and not references.calls.served and not references._holds:
                    break
        assert not references.exports, references.exports
        assert not references._holds, references._holds
        assert not references.calls.served
        assert not references.calls._pending
        return result

    return domains.run(outer, link=link)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def signal_by(fifo: str) -> None:
    """Blocks until somebody waits at the other end of a pipe with a name."""
    with open(fifo, "w"):
        pass


def wait_for(fifo: str) -> None:
    """Blocks until somebody signals by the other end of a pipe with a name."""
    with open(fifo):
        pass


class Opens:
    """Is pickled, and cannot be rebuilt."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ValueError("not here")
