"""What a pool tells about itself: a snapshot, cheap to take."""

from __future__ import annotations

from typing import NamedTuple


class DomainStats(NamedTuple):
    """One domain of the pool: the jobs it has, the sum of their weights, and how many jobs it has answered."""

    name: str
    pid: int | None
    jobs: int
    weight: float
    answered: int


class PoolStats(NamedTuple):
    """`queued` jobs wait in the parent, `running` ones are with a domain; `weight` is the sum of the latter's."""

    queued: int
    running: int
    weight: float
    domains: tuple[DomainStats, ...]
