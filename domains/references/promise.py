"""Promises and resolvers in other domains than their home.

A promise is watched from the first time that somebody asks about it. A resolver that was handed to another domain
resolves the promise by a message. Which of several domains was first is decided at home, so `try_resolve` over there
says True unless it is known that the promise has its outcome; a `resolve` that came too late is logged at home.

Values are pickled on the loop's thread alone, to which the pickling belongs. So one that cannot travel is refused where
that thread resolves, and fails the promise where another thread did, or where it was resolved before anybody watched.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from domains.conversation import Buffers, Conversation
from domains.errors import DomainsError, NotPicklable
from domains.failures import pack_failure, unpack_failure
from domains.identity import current
from domains.ipc.pickling import Payload
from domains.protocol import PromiseResolved, ResolvePromise, WatchPromise
from domains.references.calls import unknown_object
from domains.references.kind import Export, Kind
from domains.references.registry import References
from domains.scheduler.promise import Promise, Raised, Resolver, Result, Returned, raised

T = TypeVar("T")

_log = logging.getLogger("domains")


class PromiseReference(Promise[T]):
    """A promise whose home is another domain. Watching -> resolved, like any other, once the home has said so."""

    __slots__ = ("_is_watched", "_references", "home", "home_name", "number")

    home_name: str

    def __init__(self, references: References, home: int, number: int, label: str | None) -> None:
        super().__init__(label)
        self.home = home
        self.number = number
        self._references = references
        self._is_watched = False

    def _watch(self) -> None:
        if not self._is_watched and self._result is None:
            self._is_watched = True
            self._references.send(WatchPromise(self.home, self._references.address, self.number))

    def peek(self) -> Result[T] | None:
        self._watch()
        return super().peek()

    @property
    def is_resolved(self) -> bool:
        self._watch()
        return self._result is not None

    def _wait(self, waiter: Any) -> Callable[[Any], object]:
        self._watch()
        return super()._wait(waiter)

    def home_gone(self, error: DomainsError) -> None:
        self._settle(Raised(error, None))

    def __repr__(self) -> str:
        return super().__repr__()[:-1] + f", of domain {self.home_name!r}>"


class ResolverReference(Resolver[T]):
    """A resolver whose promise has its home in another domain."""

    __slots__ = ("_references", "home", "home_name", "number")

    home_name: str

    def __init__(self, references: References, home: int, number: int, label: str | None) -> None:
        super().__init__(Promise(label))  # stands for the promise: knows whether this domain has resolved it
        self.home = home
        self.number = number
        self._references = references

    def resolve(self, value: T) -> None:
        if not self.try_resolve(value):
            raise self._already()

    def fail(self, error: BaseException) -> None:
        if not self.try_fail(error):
            raise self._already()

    def try_resolve(self, value: T) -> bool:
        return self._settle(Returned(value))

    def try_fail(self, error: BaseException) -> bool:
        return self._settle(raised(error))

    def _settle(self, result: Result[T]) -> bool:
        references = self._references
        if not references.is_own_thread:
            if not self.promise._settle(result):
                return False
            references.call_on_own_thread(self._send_or_fail, result)
            return True
        payload = _pack(references, result, self.promise)
        references.calls.settle(self.home)
        if not self.promise._settle(result):
            references.discharge(payload.holds)
            return False
        self._send(result, payload)
        return True

    def _send_or_fail(self, result: Result[T]) -> None:
        self._send(*_pack_or_fail(self._references, result, self.promise))

    def _send(self, result: Result[T], payload: Payload) -> None:
        references = self._references
        failed = isinstance(result, Raised)
        message = ResolvePromise(self.home, references.address, self.number, failed, payload.data, len(payload.buffers))
        references.send(message, payload.buffers, payload.holds)

    def home_gone(self, error: DomainsError) -> None:
        """Nobody is left to hear of it."""

    def __repr__(self) -> str:
        return f"<resolver of {self.promise!r}, of domain {self.home_name!r}>"


class PromiseKind(Kind):
    """How promises travel."""

    name = "promise"
    classes: tuple[type, ...] = (Promise, PromiseReference)

    def make_reference(self, references: References, home: int, number: int, label: Any) -> PromiseReference[Any]:
        return PromiseReference(references, home, number, label)

    def domain_gone(self, export: Export, sender: int, error: DomainsError) -> None:
        watcher = export.held.pop(sender, None)
        if watcher is not None:
            watcher.withdraw(watcher)

    def converse(self, references: References, conversation: Conversation) -> None:
        references.handle(conversation, WatchPromise, functools.partial(_watch, references))
        references.handle(conversation, PromiseResolved, functools.partial(_resolved, references))


class ResolverKind(Kind):
    """How resolvers travel."""

    name = "resolver"
    classes: tuple[type, ...] = (Resolver, ResolverReference)

    def label_of(self, target: Resolver[Any]) -> str | None:
        return target.promise.label

    def make_reference(self, references: References, home: int, number: int, label: Any) -> ResolverReference[Any]:
        return ResolverReference(references, home, number, label)

    def holder_gone(self, export: Export, error: DomainsError) -> None:
        """The last domain that could resolve it has died."""
        export.target.try_fail(error)

    def converse(self, references: References, conversation: Conversation) -> None:
        references.handle(conversation, ResolvePromise, functools.partial(_resolve, references))


class _Watcher:
    """Stands in the promise's queue, at home, for the domain that watches."""

    __slots__ = ("_export", "_promise", "_references", "_to", "withdraw")

    def __init__(self, references: References, export: Export, to: int) -> None:
        self._references = references
        self._export = export
        self._promise: Promise[Any] = export.target
        self._to = to
        export.held[to] = self
        self.withdraw: Callable[[Any], object] = self._promise.when_resolved(self)

    def resume(self, _: None) -> bool:
        if self._references.is_own_thread:
            self._tell()
        else:
            self._references.call_on_own_thread(self._tell)
        return True

    def _tell(self) -> None:
        references = self._references
        references.calls.settle(self._to)
        if self._export.held.pop(self._to, None) is None:
            return  # its domain has died meanwhile
        result = self._promise.peek()
        assert result is not None
        result, payload = _pack_or_fail(references, result, self._promise)
        failed = isinstance(result, Raised)
        message = PromiseResolved(
            self._to, references.address, self._export.number, failed, payload.data, len(payload.buffers)
        )
        references.send(message, payload.buffers, payload.holds)

    def throw(self, error: BaseException) -> bool:
        raise AssertionError("a promise only resumes those who wait for it")


def _pack(references: References, result: Result[Any], promise: Promise[Any]) -> Payload:
    """A promise's outcome as it travels. Raises NotPicklable if its value cannot."""
    if isinstance(result, Returned):
        return references.pickling.pack(result.value, "the value of %r", promise)
    of_promise = "" if promise.label is None else f"promise {promise.label!r} in "
    return pack_failure(result.error, references.pickling, f"{of_promise}domain {current().name!r}")


def _pack_or_fail(references: References, result: Result[Any], promise: Promise[Any]) -> tuple[Result[Any], Payload]:
    """As `_pack`, where nobody is left to be told: whatever is raised is what the promise comes to for others."""
    try:
        return result, _pack(references, result, promise)
    except KeyboardInterrupt as interrupt:
        references.call_on_own_thread(_raise, interrupt)  # out of the loop, when the others know
        failure = Raised(NotPicklable(f"the value of {promise!r}", "pickling it was interrupted"), None)
    except BaseException as error:
        failure = Raised(error, None)
    return failure, _pack(references, failure, promise)


def _raise(error: BaseException) -> NoReturn:
    raise error


def _watch(references: References, message: WatchPromise, _: Buffers) -> None:
    export = references.exports.get(message.number)
    if export is None:
        failure = pack_failure(unknown_object(message.number), references.pickling, f"domain {current().name!r}")
        told = PromiseResolved(message.sender, references.address, message.number, True, failure.data, 0)
        references.send(told)
    # A reference that came again before the loss of the one before was told watches again.
    elif isinstance(export.target, Promise) and message.sender not in export.held:
        _Watcher(references, export, message.sender)


def _outcome(references: References, message: PromiseResolved | ResolvePromise, buffers: Buffers) -> Result[Any]:
    if message.failed:
        return Raised(unpack_failure(message.data, buffers, references.pickling), None)
    try:
        return Returned(references.pickling.unpack(message.data, buffers))
    except DomainsError as error:
        return Raised(error, None)


def _resolved(references: References, message: PromiseResolved, buffers: Buffers) -> None:
    result = _outcome(references, message, buffers)
    reference = references.reference(message.sender, message.number)
    if isinstance(reference, PromiseReference):
        reference._settle(result)


def _resolve(references: References, message: ResolvePromise, buffers: Buffers) -> None:
    result = _outcome(references, message, buffers)
    export = references.exports.get(message.number)
    if export is not None and isinstance(export.target, Resolver):
        promise = export.target.promise
        if not promise._settle(result):
            _log.warning("%r was resolved again by another domain; what came later is dropped", promise)
