"""What travels between domains by reference: one kind for each class."""

from __future__ import annotations

from domains.pool.remote import PoolKind
from domains.references.promise import PromiseKind, ResolverKind
from domains.references.registry import Kind


def kinds() -> list[Kind]:
    """A fresh set, for one process's `References`."""
    return [PromiseKind(), ResolverKind(), PoolKind()]
