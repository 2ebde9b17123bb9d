"""Structured concurrency across CPU cores.

Domains are processes that each run a cooperative scheduler; fibers, switches, promises, streams, locks and an executor
pool with weighted jobs mean the same inside a domain and across domains. Start with `domains.run(main)`.

What a name stands for is imported when it is first used: `run` can so start the launcher process before all else, and
a forked domain holds no more than it needs.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError("domains needs a POSIX system (Linux or macOS): it passes sockets between processes and forks")

if TYPE_CHECKING:
    from domains import errors as errors
    from domains import testing as testing
    from domains.arrays import shared_array
    from domains.cores import recommended_domain_count
    from domains.domain_manager import Domain, DomainManager
    from domains.env import Environment
    from domains.errors import (
        AlreadyResolved,
        ArenaFull,
        Cancelled,
        Closed,
        ConnectionLost,
        Deadlock,
        DomainDied,
        DomainsError,
        DomainUnavailable,
        NotPicklable,
        Poisoned,
        RestartsExceeded,
    )
    from domains.identity import DomainInfo, current
    from domains.pool.executor import ExecutorPool
    from domains.pool_executor import PoolExecutor
    from domains.scheduler import (
        CancelScope,
        Condition,
        FiberLocal,
        Lazy,
        Mutex,
        Pool,
        Promise,
        Raised,
        Resolver,
        Returned,
        Semaphore,
        Stream,
        Switch,
        fiber,
        move_on_after,
        protect,
        run_in_thread,
        timeout,
    )
    from domains.start import run
    from domains.state import domain_state
    from domains.supervisor import Service, Supervisor

__all__ = [
    "AlreadyResolved",
    "ArenaFull",
    "CancelScope",
    "Cancelled",
    "Closed",
    "Condition",
    "ConnectionLost",
    "Deadlock",
    "Domain",
    "DomainDied",
    "DomainInfo",
    "DomainManager",
    "DomainUnavailable",
    "DomainsError",
    "Environment",
    "ExecutorPool",
    "FiberLocal",
    "Lazy",
    "Mutex",
    "NotPicklable",
    "Poisoned",
    "Pool",
    "PoolExecutor",
    "Promise",
    "Raised",
    "Resolver",
    "RestartsExceeded",
    "Returned",
    "Semaphore",
    "Service",
    "Stream",
    "Supervisor",
    "Switch",
    "current",
    "domain_state",
    "errors",
    "fiber",
    "move_on_after",
    "protect",
    "recommended_domain_count",
    "run",
    "run_in_thread",
    "shared_array",
    "testing",
    "timeout",
]

_ELSEWHERE = {
    "Domain": "domains.domain_manager",
    "DomainInfo": "domains.identity",
    "DomainManager": "domains.domain_manager",
    "Environment": "domains.env",
    "ExecutorPool": "domains.pool.executor",
    "PoolExecutor": "domains.pool_executor",
    "current": "domains.identity",
    "domain_state": "domains.state",
    "recommended_domain_count": "domains.cores",
    "Service": "domains.supervisor",
    "Supervisor": "domains.supervisor",
    "run": "domains.start",
    "shared_array": "domains.arrays",
}
"""Where a public name lives that is neither an error, nor the scheduler's, nor a module."""

_ERRORS = {
    "AlreadyResolved",
    "ArenaFull",
    "Cancelled",
    "Closed",
    "ConnectionLost",
    "Deadlock",
    "DomainDied",
    "DomainUnavailable",
    "DomainsError",
    "NotPicklable",
    "Poisoned",
    "RestartsExceeded",
}

_MODULES = {"errors", "testing"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'domains' has no attribute {name!r}")
    from domains.held_interrupts import interrupts_held

    with interrupts_held():
        if name in _MODULES:
            return importlib.import_module(f"domains.{name}")
        home = _ELSEWHERE.get(name) or ("domains.errors" if name in _ERRORS else "domains.scheduler")
        value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
