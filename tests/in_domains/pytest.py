"""What the domains of the tests see of pytest: marks and fixtures that do nothing, and the rest when it is asked for.

A function of a test module travels by name, so each domain that runs one imports the module; pytest would take ten
times as long as all else that is imported there, and there are thousands of domains. `tests/conftest.py` puts this
directory where domains look first.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

__all__ = ["fixture", "mark", "param"]


class _Marks:
    """Whatever is marked stays as it is."""

    def __getattr__(self, name: str) -> Any:
        return _decorator


def _decorator(*arguments: Any, **options: Any) -> Any:
    """Used as `@decorator` or as `@decorator(…)`."""
    if len(arguments) == 1 and callable(arguments[0]) and not options:
        return arguments[0]
    return _decorator


_OF_THE_REAL_ONE = ("approx", "fail", "importorskip", "raises", "skip", "warns")

mark = _Marks()
fixture = param = _decorator


def __getattr__(name: str) -> Any:
    """Of the real one, which takes this one's place."""
    if name not in _OF_THE_REAL_ONE:  # pickling, for one, asks all modules for the names of what it looks for
        raise AttributeError(f"{name} is not among the names that are taken from the real pytest: {__file__}")
    here = str(Path(__file__).parent)
    if here in sys.path:
        sys.path.remove(here)
    if getattr(sys.modules.get(__name__), "__file__", None) == __file__:
        del sys.modules[__name__]
    return getattr(importlib.import_module(__name__), name)
