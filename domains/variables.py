"""Context variables that travel with a job: those of the submitter whose values can be pickled.

A variable is found again by where it lives: the module and name under which this process knows it. One that lives
in `__main__` or in no module's global names travels by a number of its own, so that the function that reads it and
the value that was set meet in the same variable over there.
"""

from __future__ import annotations

import contextvars
import itertools
import os
import sys
from collections.abc import Iterator
from typing import Any

from domains.errors import NotPicklable
from domains.ipc.pickling import Pickling

_homes: dict[contextvars.ContextVar[Any], tuple[str, str] | None] = {}
_travelled: dict[tuple[int, int], contextvars.ContextVar[Any]] = {}
_numbers: dict[contextvars.ContextVar[Any], tuple[int, int]] = {}
_next_number = itertools.count()
_NO_DEFAULT = object()


def pack_variables(context: contextvars.Context, pickling: Pickling) -> bytes:
    """The context's variables as bytes, leaving out what cannot travel; b"" when there is nothing."""
    if not len(context):
        return b""
    carried = [(variable, value) for variable, value in context.items() if _travels(variable)]
    if not carried:
        return b""
    try:
        return _inline(carried, pickling)
    except NotPicklable:
        kept = []
        for item in carried:
            try:
                _inline(item, pickling)
            except NotPicklable:
                continue
            kept.append(item)
        return _inline(kept, pickling) if kept else b""


def unpack_variables(data: bytes, pickling: Pickling, context: contextvars.Context) -> None:
    """Set, in `context`, what `pack_variables` packed."""
    for variable, value in pickling.loads(data, ()):
        context.run(variable.set, value)


def reduce_variable(variable: contextvars.ContextVar[Any]) -> tuple[Any, ...]:
    """How a context variable itself is pickled: by its home, or by a number."""
    home = _home(variable)
    if home is not None:
        return _find_variable, home
    number = _numbers.get(variable)
    if number is None:
        number = _numbers[variable] = (os.getpid(), next(_next_number))
        _travelled[number] = variable
    default = contextvars.Context().run(variable.get, _NO_DEFAULT)
    return (_make_variable, (number, variable.name, *(() if default is _NO_DEFAULT else (default,))))


def _inline(value: object, pickling: Pickling) -> bytes:
    payload = pickling.dumps(value, "a context variable")
    if payload.buffers:
        raise NotPicklable("a context variable", "its value is too large to go with every job")
    return payload.data


def _travels(variable: contextvars.ContextVar[Any]) -> bool:
    home = _home(variable)
    return home is None or not home[0].startswith(("domains.", "decimal", "asyncio", "sniffio", "anyio"))


def _home(variable: contextvars.ContextVar[Any]) -> tuple[str, str] | None:
    if variable not in _homes:
        _homes[variable] = next(_search(variable), None)
    return _homes[variable]


def _search(variable: contextvars.ContextVar[Any]) -> Iterator[tuple[str, str]]:
    for module_name, module in list(sys.modules.items()):
        if module_name != "__main__":
            for name, value in list(getattr(module, "__dict__", {}).items()):
                if value is variable:
                    yield module_name, name


def _find_variable(module_name: str, name: str) -> Any:
    __import__(module_name)
    return getattr(sys.modules[module_name], name)


def _make_variable(number: tuple[int, int], name: str, *default: Any) -> contextvars.ContextVar[Any]:
    variable = _travelled.get(number)
    if variable is None:
        variable = contextvars.ContextVar(name, default=default[0]) if default else contextvars.ContextVar(name)
        _travelled[number] = variable
        _numbers[variable] = number
    return variable
