"""What travels between domains by reference: one kind for each class."""

from __future__ import annotations

from domains.pool.remote import PoolKind
from domains.references.cancel_handle import CancelHandleKind
from domains.references.condition import ConditionKind
from domains.references.kind import Kind
from domains.references.lazy import LazyKind
from domains.references.mutex import MutexKind
from domains.references.promise import PromiseKind, ResolverKind
from domains.references.resource_pool import ResourcePoolKind
from domains.references.semaphore import SemaphoreKind
from domains.references.stream import StreamKind


def kinds() -> list[Kind]:
    """A fresh set, for one process's `References`."""
    return [
        PromiseKind(),
        ResolverKind(),
        StreamKind(),
        MutexKind(),
        SemaphoreKind(),
        ConditionKind(),
        LazyKind(),
        ResourcePoolKind(),
        CancelHandleKind(),
        PoolKind(),
    ]
