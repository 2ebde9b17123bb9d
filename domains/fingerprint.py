"""Whether a function that travels by value is still what it was when it was pickled last.

Pickling by value takes a hundred times as long as looking. A fingerprint is what a function's pickle is made from: its
code, its defaults, and what its code finds by name in its module, and the same for functions found there. Two are equal
if all these are the very same objects. There is none for a function that refers to anything that could change without
becoming another object.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

Fingerprint = tuple[Any, ...]

_MISSING = object()
_IMMUTABLE = frozenset({int, float, str, bytes, bool, type(None), complex, range, type(...)})
_MOST_FUNCTIONS = 16
"""A function that leads to more others than this is pickled anew each time."""

_MOST_KNOWN = 1024

_names: OrderedDict[CodeType, tuple[str, ...]] = OrderedDict()  # the first to be forgotten first


def fingerprint(f: FunctionType) -> Fingerprint | None:
    """What to compare with `is_same`; None if nobody can tell."""
    found: list[Any] = []
    functions = [f]
    for function in functions:
        if function.__closure__ is not None or function.__kwdefaults__ or function.__dict__:
            return None
        if len(functions) > _MOST_FUNCTIONS:
            return None
        code, defaults, names_there = function.__code__, function.__defaults__, function.__globals__
        if defaults is not None and not _is_immutable(defaults):
            return None
        found.append(code)
        found.append(defaults)
        for name in _names.get(code) or _names_in(code):
            value = names_there.get(name, _MISSING)
            found.append(value)
            kind = type(value)
            if kind in _IMMUTABLE or value is _MISSING:
                continue
            if kind is FunctionType:
                if value not in functions:
                    functions.append(value)
            elif not _is_immutable(value):
                return None
    return tuple(found)


def is_same(one: Fingerprint, other: Fingerprint) -> bool:
    if len(one) != len(other):
        return False
    for a, b in zip(one, other, strict=True):  # noqa: SIM110 - `all` of a generator takes twice as long
        if a is not b:
            return False
    return True


def _is_immutable(value: Any) -> bool:
    kind = type(value)
    if kind in _IMMUTABLE:
        return True
    if kind is tuple:
        return all(_is_immutable(item) for item in value)
    if kind is BuiltinFunctionType:
        return _is_immutable(value.__self__)  # which is its module, or what it is a method of
    # What goes by name does so whatever is in it.
    if kind is ModuleType:
        return sys.modules.get(getattr(value, "__name__", None) or "") is value
    return isinstance(value, type) and goes_by_name(value)


def goes_by_name(value: Any) -> bool:
    """Whether another process finds this very function or class by importing its module."""
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    if module is None or module.__name__ == "__main__":
        return False
    found: Any = module
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def _names_in(code: CodeType) -> tuple[str, ...]:
    """What a code object, and those inside it, look up by name."""
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names.update(dict.fromkeys(_names_in(constant)))
    found = _names[code] = tuple(names)
    if len(_names) > _MOST_KNOWN:
        _names.popitem(last=False)
    return found
