"""A full memory barrier: what was written before it is seen by all before anything is read after it.

Python has none, but taking a lock is one. `fence_lock` is for those who cannot spend a call on it.
"""

from __future__ import annotations

import os
import threading

__all__ = ["fence", "fence_lock"]

fence_lock = threading.Lock()

# Another thread may have it at a fork, and is not there in the child to let go of it.
os.register_at_fork(after_in_child=fence_lock._at_fork_reinit)  # type: ignore[attr-defined]


def fence() -> None:
    with fence_lock:
        pass
