"""What a domain shares with its launcher from birth, and need not take apart when it ends.

Python's teardown empties every module, which writes to nearly every page of the launcher's image and has the kernel
copy it first: 9 of the 14 ms that the end of a domain took. What came after the fork is still torn down as ever:
modules that jobs imported, and what these hold, such as files that were not flushed.
"""

from __future__ import annotations

import atexit
import sys
from types import ModuleType
from typing import Any

__all__ = ["outlive_teardown"]

_TORN_DOWN = ("__main__", "builtins", "sys")
"""Jobs may have left something in these."""


def outlive_teardown() -> None:
    """Keep the modules that are here now from being torn down in this process and those forked from it.

    To be called before `gc.freeze`, and before whatever else is to run when a process ends, as it runs in the end.
    """
    modules = {name: module for name, module in sys.modules.items() if name not in _TORN_DOWN}
    kept: list[Any] = [modules]
    kept.append(kept)  # a cycle, and once it is frozen no collector looks at it: the modules outlive everything
    atexit.register(_forget, modules)


def _forget(modules: dict[str, ModuleType]) -> None:
    for name, module in modules.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
