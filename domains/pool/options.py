"""What a pool was asked to be, checked once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from domains.functions import no_function
from domains.pool.checks import MOST_DOMAINS, checked_count, checked_heartbeat, checked_seconds


class PoolOptions(NamedTuple):
    """See `ExecutorPool` for what each means."""

    min_domains: int
    max_domains: int
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    max_jobs: int | None
    max_memory: int | None
    idle: float
    grace: float
    heartbeat_seconds: float | None


def checked_options(
    domain_count: int | None,
    default_count: int,
    min_domains: int | None,
    max_domains: int | None,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    max_jobs: int | None,
    max_memory: int | None,
    idle: float,
    grace: float,
    heartbeat_seconds: float | None,
) -> PoolOptions:
    """Raises TypeError or ValueError, naming the argument, its value and what is allowed."""
    if domain_count is not None:
        if min_domains is not None or max_domains is not None:
            raise ValueError("domain_count sets both min_domains and max_domains: give either the one or the others")
        min_domains = max_domains = checked_count("domain_count", domain_count, 1, MOST_DOMAINS)
    if max_domains is None:
        max_domains = default_count if min_domains is None else max(default_count, min_domains)
    if min_domains is None:
        min_domains = max_domains
    checked_count("max_domains", max_domains, 1, MOST_DOMAINS)
    checked_count("min_domains", min_domains, 0)
    if min_domains > max_domains:
        raise ValueError(f"min_domains must be at most max_domains, but {min_domains} is more than {max_domains}")
    if initializer is not None and not callable(initializer):
        raise no_function("initializer", initializer)
    return PoolOptions(
        min_domains,
        max_domains,
        initializer,
        tuple(initargs),
        None if max_jobs is None else checked_count("max_jobs", max_jobs, 1),
        None if max_memory is None else checked_count("max_memory", max_memory, 1),
        checked_seconds("idle", idle),
        checked_seconds("grace", grace),
        checked_heartbeat(heartbeat_seconds),
    )
