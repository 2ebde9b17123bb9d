"""Functions that travel: pickled once, sent once to each domain, opened once there.

A function that the other side can import goes by name and is known by its identity from then on. Any other (of
`__main__`, a lambda, a closure) is pickled by value at each use, unless nothing that it refers to can have changed, and
is known by its bytes: the same bytes are sent and opened once. Both tables are bounded: the least recently used is
forgotten on both sides. What is no function but an object that is called, such as a method with its object, goes with
the arguments of each job, so that no job sees what another has done to it; of a partial, that is so of what it adds to
its function. So does a function that refers to objects with a home, such as streams, for to keep it would keep them
alive.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from domains.errors import NotPicklable
from domains.fingerprint import Fingerprint, fingerprint, goes_by_name, is_same
from domains.ipc.pickling import Pickling
from domains.passed_function import call_bound, call_bound_async, call_passed, call_passed_async

if TYPE_CHECKING:
    from domains.references.pickling import ReferencePickling

_MOST_KNOWN = 1024

_LARGEST_KEPT_BYTES = 1 << 16
"""A function whose pickle is larger, such as a closure with data, goes with the arguments of each job."""


class Function(NamedTuple):
    """A function ready to be sent: its number in this process, its pickle, a name for messages, and its kind.

    `passed` is None, or what is to go with the arguments: the function itself, or what a partial adds to it. Number and
    pickle are then of what calls it there.
    """

    number: int
    code: bytes
    name: str
    is_async: bool
    passed: tuple[Any, ...] | None = None


def name_of(f: object) -> str:
    """What to call a function in messages."""
    inner = getattr(f, "func", f)  # a functools.partial is known by what it calls
    if inner is not f and only_calls(inner):
        return name_of_call(inner, getattr(f, "args", ()))
    name = getattr(inner, "__qualname__", None)
    return name if isinstance(name, str) else type(inner).__qualname__


def name_of_call(f: object, arguments: Sequence[Any]) -> str:
    """The same for a call: what only calls its first argument is known by that."""
    return name_of(arguments[0] if arguments and only_calls(f) else f)


def only_calls(f: object) -> bool:
    """Whether a function is one of ours that calls its first argument, which is the user's."""
    return type(f) is FunctionType and "RUNS_USER_CODE" in f.__globals__


def _is_shared(f: object) -> bool:
    """Whether jobs may share what it was opened as: it is no object that a call could change."""
    if type(f) is functools.partial and only_calls(f.func):
        f = f.args[0]  # of a group: a user's function
    return isinstance(f, FunctionType | type) or (type(f) is BuiltinFunctionType and isinstance(f.__self__, ModuleType))


def no_function(what: str, given: object) -> TypeError:
    """What to raise where a function is needed and this was given. A coroutine that has not begun never will."""
    if not inspect.iscoroutine(given):
        return TypeError(f"{what} must be a function, not {type(given).__name__} {given!r}")
    if inspect.getcoroutinestate(given) == inspect.CORO_CREATED:
        given.close()
    name = given.__name__
    return TypeError(f"{what} must be a function, not a coroutine: pass {name} itself and not its call {name}(...)")


class FunctionCatalogue:
    """The functions that this process has sent, or is about to."""

    def __init__(self, pickling: ReferencePickling) -> None:
        self._pickling = pickling
        self._by_identity: dict[object, Function] = {}
        self._by_fingerprint: OrderedDict[object, tuple[Fingerprint, Function]] = OrderedDict()
        self._by_code: OrderedDict[bytes, Function] = OrderedDict()
        self._bound: OrderedDict[int, Function] = OrderedDict()
        """What calls a function with what a partial adds, by the number of that function."""
        self._numbers = itertools.count(1)

    def add(self, f: Callable[..., Any]) -> Function:
        """The function as it is now. Raises NotPicklable naming what inside it cannot travel."""
        plain = type(f) is FunctionType or type(f) is BuiltinFunctionType
        if plain and (known := self._by_identity.get(f)) is not None:
            return known
        if not callable(f):
            raise no_function("a job", f)
        now = fingerprint(f) if type(f) is FunctionType else None
        if now is not None and (before := self._by_fingerprint.get(f)) is not None and is_same(now, before[0]):
            return before[1]
        is_async = inspect.iscoroutinefunction(f)
        if type(f) is functools.partial and not vars(f) and not only_calls(f.func) and _is_shared(f.func):
            bound = self._add_bound(f.func, is_async)
            if bound.passed is None:
                return bound._replace(passed=(f.args, f.keywords))
        code = self._pickling.dumps_function(f) if _is_shared(f) else b""
        if not code or len(code) > _LARGEST_KEPT_BYTES:
            return self.add(call_passed_async if is_async else call_passed)._replace(name=name_of(f), passed=(f,))
        function = self.add_pickled(code, name_of(f), is_async)
        if plain and goes_by_name(f):
            self._by_identity[f] = function
        elif now is not None:
            self._by_fingerprint[f] = now, function
            if len(self._by_fingerprint) > _MOST_KNOWN:
                self._by_fingerprint.popitem(last=False)
        return function

    def _add_bound(self, f: Callable[..., Any], is_async: bool) -> Function:
        """What calls this function with what a partial adds; or what calls it, if it is to go with each job itself."""
        inner = self.add(f)
        if inner.passed is not None:
            return inner
        bound = self._bound.get(inner.number)
        if bound is None:
            bound = self.add(functools.partial(call_bound_async if is_async else call_bound, f))
            self._bound[inner.number] = bound
            if len(self._bound) > _MOST_KNOWN:
                self._bound.popitem(last=False)
        return bound

    def add_pickled(self, code: bytes, name: str, is_async: bool) -> Function:
        """A function that was pickled before, perhaps elsewhere."""
        function = self._by_code.get(code)
        if function is None:
            function = self._by_code[code] = Function(next(self._numbers), code, name, is_async)
            if len(self._by_code) > _MOST_KNOWN:
                self._by_code.popitem(last=False)
        else:
            self._by_code.move_to_end(code)
        return function


class SentFunctions:
    """Which functions the domain at the other end of a link has been told of."""

    def __init__(self) -> None:
        self._sent: OrderedDict[int, None] = OrderedDict()  # the least recently used first
        self._most = 2 * _MOST_KNOWN

    def is_new(self, function: Function) -> bool:
        """Whether to send its code before using it; from now on it counts as sent."""
        if function.number in self._sent:
            self._sent.move_to_end(function.number)
            return False
        self._sent[function.number] = None
        return True

    def forget_surplus(self, needed: Iterable[Function]) -> list[int]:
        """Those beyond the bound that are not needed: tell the other side that they will not be used again."""
        if len(self._sent) <= self._most:
            return []
        kept = {function.number for function in needed}
        surplus = [number for number in self._sent if number not in kept][: len(self._sent) - _MOST_KNOWN]
        for number in surplus:
            del self._sent[number]
        self._most = max(2 * _MOST_KNOWN, 2 * len(self._sent))  # it takes a while to look through them
        return surplus


class ReceivedFunctions:
    """The functions that the other side has defined, opened on first use."""

    def __init__(self, pickling: Pickling) -> None:
        self._pickling = pickling
        self._code: dict[int, bytes] = {}
        self._open: dict[int, Callable[..., Any]] = {}

    def define(self, number: int, code: bytes) -> None:
        self._code[number] = code

    def forget(self, numbers: list[int]) -> None:
        for number in numbers:
            self._code.pop(number, None)
            self._open.pop(number, None)

    def get(self, number: int) -> Callable[..., Any]:
        """Raises NotPicklable if the function cannot be opened here, e.g. its module is missing."""
        f = self._open.get(number)
        if f is None:
            opened = self._pickling.loads(self._code[number], ())
            if not callable(opened):
                raise NotPicklable("the job's function", f"it arrived as {type(opened).__name__}")
            f = self._open[number] = opened
        return f
