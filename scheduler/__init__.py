"""The local scheduler: fibers, switches, cancellation, and the primitives, inside one domain."""

from domains.scheduler import fiber
from domains.scheduler.cancel import CancelScope, move_on_after, protect, timeout
from domains.scheduler.clock import Clock
from domains.scheduler.local import FiberLocal
from domains.scheduler.promise import Promise, Raised, Resolver, Returned
from domains.scheduler.switch import Hook, Switch
from domains.scheduler.threads import run_in_thread

__all__ = [
    "CancelScope",
    "Clock",
    "FiberLocal",
    "Hook",
    "Promise",
    "Raised",
    "Resolver",
    "Returned",
    "Switch",
    "fiber",
    "move_on_after",
    "protect",
    "run_in_thread",
    "timeout",
]
