"""Structured concurrency across CPU cores.

Domains are processes that each run a cooperative scheduler; fibers, switches, promises, streams, locks and an executor
pool with weighted jobs mean the same inside a domain and across domains. Start with `domains.run(main)`.
"""

import sys

if sys.platform == "win32":
    raise ImportError("domains needs a POSIX system (Linux or macOS): it passes sockets between processes and forks")

from domains import errors
from domains.cores import recommended_domain_count
from domains.domain_manager import Domain, DomainManager
from domains.env import Environment
from domains.errors import (
    AlreadyResolved,
    Cancelled,
    Closed,
    ConnectionLost,
    Deadlock,
    DomainDied,
    DomainsError,
    DomainUnavailable,
    NotPicklable,
    Poisoned,
)
from domains.identity import DomainInfo, current
from domains.pool.executor import ExecutorPool
from domains.run import run
from domains.scheduler import (
    FiberLocal,
    Promise,
    Resolver,
    Switch,
    fiber,
    move_on_after,
    protect,
    run_in_thread,
    timeout,
)

__all__ = [
    "AlreadyResolved",
    "Cancelled",
    "Closed",
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
    "NotPicklable",
    "Poisoned",
    "Promise",
    "Resolver",
    "Switch",
    "current",
    "errors",
    "fiber",
    "move_on_after",
    "protect",
    "recommended_domain_count",
    "run",
    "run_in_thread",
    "timeout",
]
