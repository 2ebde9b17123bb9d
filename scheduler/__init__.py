"""The local scheduler: fibers, switches, cancellation, and the primitives, inside one domain."""

from domains.scheduler import fiber
from domains.scheduler.cancel import CancelScope, move_on_after, protect, timeout
from domains.scheduler.clock import Clock
from domains.scheduler.condition import Condition
from domains.scheduler.lazy import Lazy
from domains.scheduler.local import FiberLocal
from domains.scheduler.mutex import Mutex
from domains.scheduler.pool import Pool
from domains.scheduler.promise import Promise, Raised, Resolver, Returned
from domains.scheduler.release import Hook
from domains.scheduler.semaphore import Semaphore
from domains.scheduler.stream import Stream
from domains.scheduler.switch import Switch
from domains.scheduler.threads import run_in_thread

__all__ = [
    "CancelScope",
    "Clock",
    "Condition",
    "FiberLocal",
    "Hook",
    "Lazy",
    "Mutex",
    "Pool",
    "Promise",
    "Raised",
    "Resolver",
    "Returned",
    "Semaphore",
    "Stream",
    "Switch",
    "fiber",
    "move_on_after",
    "protect",
    "run_in_thread",
    "timeout",
]
