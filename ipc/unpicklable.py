"""Finding what inside an object cannot be pickled, once it is known that something cannot.

Walks from the object into the first part that is refused as well, and so on; what is refused though all of its parts
are accepted is the culprit. Runs only after a failure, and gives up after so many tries.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["describe", "find_culprit"]

_MOST_TRIES = 5000
_MOST_LEVELS = 40


def find_culprit(value: object, refusal: Callable[[object], str | None]) -> tuple[str, str] | None:
    """The path to the innermost part that is refused, and why; None if the whole is not refused.

    `refusal(part)` tells why a part is refused, or None.
    """
    why = refusal(value)
    if why is None:
        return None
    path = ""
    tries = 0
    seen = {id(value)}
    for _ in range(_MOST_LEVELS):
        if _refuses(value):
            break
        for step, part in _accessible_parts(value):
            tries += 1
            if tries > _MOST_TRIES:
                break
            if id(part) in seen:
                continue
            reason = refusal(part)
            if reason is not None:
                seen.add(id(part))
                path, value, why = path + step, part, reason
                break
        else:
            break
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{path} (type {name})", why


def describe(error: BaseException) -> str:
    """An exception in one line, whatever its own text does."""
    try:
        text = str(error)
    except BaseException:
        text = "(whose text cannot be had)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _refuses(value: object) -> bool:
    """Whether its class itself says no, so that what it is made of is not to blame."""
    reduce = type(value).__reduce__
    if not isinstance(reduce, types.FunctionType):
        return False
    try:
        reduce(value)
    except (Exception, SystemExit):
        return True
    return False


def _accessible_parts(value: object) -> Iterator[tuple[str, object]]:
    """The parts of an object of any kind, up to the first that raises as it is looked at."""
    with contextlib.suppress(Exception, SystemExit):
        yield from _parts(value)


def _parts(value: Any) -> Iterator[tuple[str, object]]:
    """What a value is made of, each with the step that leads there as one would write it."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield f"[{_text(key)}]", part
        for key in value:
            yield f" key {_text(key)}", key
    elif isinstance(value, list | tuple | collections.deque):
        for index, part in enumerate(value):
            yield f"[{index}]", part
    elif isinstance(value, set | frozenset):
        for part in value:
            yield f" member {_text(part)}", part
    elif isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    elif isinstance(value, functools.partial):
        yield ".func", value.func
        for index, part in enumerate(value.args):
            yield f".args[{index}]", part
        for key, part in value.keywords.items():
            yield f".keywords[{key!r}]", part
    if isinstance(value, BaseException):
        for index, part in enumerate(value.args):
            yield f".args[{index}]", part
    if isinstance(value, type | types.FunctionType | types.ModuleType):
        return
    yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield f".{name}", getattr(value, name)


def _parts_of_function(f: types.FunctionType) -> Iterator[tuple[str, object]]:
    code = f.__code__
    for name, cell in zip(code.co_freevars, f.__closure__ or (), strict=False):
        try:
            yield f", variable {name!r} of its closure", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for index, part in enumerate(f.__defaults__ or ()):
        yield f", default {index}", part
    for name, part in (f.__kwdefaults__ or {}).items():
        yield f", default of {name!r}", part
    for name in _names_in(code):
        if name in f.__globals__ and not isinstance(f.__globals__[name], types.ModuleType):
            yield f", global {name!r}", f.__globals__[name]


def _names_in(code: types.CodeType) -> Iterator[str]:
    """The global names, among others, that a function and those defined in it speak of."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)


def _text(value: object) -> str:
    try:
        return repr(value)[:80]
    except (Exception, SystemExit):
        return f"<{type(value).__qualname__}>"
