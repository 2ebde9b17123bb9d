"""Context variables that travel with a job: those of the submitter whose values can be pickled.

A variable is found again by where it lives: the module and name under which this process knows it, or the attribute of
a class in a module. One that lives in `__main__` or elsewhere travels by a number of its own, so that the function that
reads it, if it travels by value, and the value that was set meet in the same variable over there.
"""

from __future__ import annotations

import contextlib
import contextvars
import operator
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from domains.errors import NotPicklable
from domains.ipc.pickling import Pickling
from domains.ipc.segments import random_number

if TYPE_CHECKING:
    from domains.references.registry import References

_STAYS = frozenset({"domains", "decimal", "asyncio", "sniffio", "anyio"})
"""Variables of these modules and of those in them mean something in their own process only."""

_keys: dict[contextvars.ContextVar[Any], bytes | None] = {}
_found: dict[bytes, contextvars.ContextVar[Any]] = {}
_homes: dict[contextvars.ContextVar[Any], tuple[str, str] | None] = {}
_travelled: dict[int, contextvars.ContextVar[Any]] = {}
_numbers: dict[contextvars.ContextVar[Any], int] = {}
_NO_DEFAULT = object()


def pack_variables(context: contextvars.Context, references: References) -> tuple[dict[bytes, bytes], list[int]]:
    """The context's variables and their values, leaving out what cannot travel, and the holds of the values' pickles.

    Each is pickled by itself, so that one that cannot be opened over there fails neither the others nor the job.
    """
    packed: dict[bytes, bytes] = {}
    holds: list[int] = []
    for variable, value in context.items():
        key = _keys[variable] if variable in _keys else _make_key(variable, references)
        if key is None:
            continue
        try:
            payload = references.pickling.dumps(value, "a context variable")
        except NotPicklable:
            continue
        if payload.buffers:  # too large to go with every job
            references.discharge(payload.holds)
            continue
        packed[key] = payload.data
        holds.extend(payload.holds)
    return packed, holds


def unpack_variables(packed: dict[bytes, bytes], pickling: Pickling, context: contextvars.Context) -> bool:
    """Set, in `context`, what `pack_variables` packed; False if some of that cannot be opened here, and is left out."""
    all_opened = True
    for key, data in packed.items():
        try:
            variable = _found.get(key) or pickling.loads(key, ())
            value = pickling.loads(data, ())
        except NotPicklable:
            all_opened = False
            continue
        if not isinstance(variable, contextvars.ContextVar):
            continue  # the module has something else there, perhaps until it is set up
        _found[key] = variable
        context.run(variable.set, value)
    return all_opened


def reduce_variable(variable: contextvars.ContextVar[Any]) -> tuple[Any, ...]:
    """How a context variable itself is pickled: by its home, or by a number."""
    home = _home(variable)
    if home is not None:
        return _find_variable, home
    number = _numbers.get(variable)
    if number is None:
        number = _numbers[variable] = random_number()  # one that no other process has used, now or before
        _travelled[number] = variable
    default = contextvars.Context().run(variable.get, _NO_DEFAULT)
    return (_make_variable, (number, variable.name, *(() if default is _NO_DEFAULT else (default,))))


def _make_key(variable: contextvars.ContextVar[Any], references: References) -> bytes | None:
    """The pickle of a variable, which never changes; None if it does not travel."""
    key = None
    home = _home(variable)
    if home is None or home[0].partition(".")[0] not in _STAYS:
        with contextlib.suppress(NotPicklable):
            payload = references.pickling.dumps(variable, "a context variable")
            references.discharge(payload.holds)
            key = None if payload.buffers or payload.holds else payload.data
    _keys[variable] = key
    return key


def _home(variable: contextvars.ContextVar[Any]) -> tuple[str, str] | None:
    if variable not in _homes:
        _homes[variable] = next(_search(variable), None)
    return _homes[variable]


def _search(variable: contextvars.ContextVar[Any]) -> Iterator[tuple[str, str]]:
    """Its module and its name there; of those in classes, such as "Settings.current", only if there is no other."""
    classes: list[tuple[str, str, type]] = []
    for module_name, module in list(sys.modules.items()):
        if module_name != "__main__":
            for name, value in list(getattr(module, "__dict__", {}).items()):
                if value is variable:
                    yield module_name, name
                elif issubclass(type(value), type) and vars(value).get("__module__") == module_name:
                    classes.append((module_name, name, value))
    for module_name, name, owner in classes:
        for attribute, value in list(vars(owner).items()):
            if value is variable:
                yield module_name, f"{name}.{attribute}"


def _find_variable(module_name: str, name: str) -> Any:
    __import__(module_name)
    return operator.attrgetter(name)(sys.modules[module_name])


def _make_variable(number: int, name: str, *default: Any) -> contextvars.ContextVar[Any]:
    variable = _travelled.get(number)
    if variable is None:
        variable = contextvars.ContextVar(name, default=default[0]) if default else contextvars.ContextVar(name)
        _travelled[number] = variable
        _numbers[variable] = number
    return variable
