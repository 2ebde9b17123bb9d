"""Operations on objects of other domains: asked for by a message, done at the object's home, answered by another.

A call is Waiting until its answer comes, exactly once: the value, the failure, or that it was withdrawn. Whoever is
cancelled while waiting withdraws the call, and still waits for that answer, for only the home knows which came first:
so an operation is done or cancelled, never both, never neither. When the home has ended, that is the answer.

At home a call is a waiter in the object's own queues, like a fiber of the home, and has its turn among them. Nothing
of it is left when its domain has died.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn

from domains.conversation import Buffers, Conversation
from domains.errors import Cancelled, DomainsError, NotPicklable, copy_of
from domains.failures import pack_failure, unpack_failure
from domains.identity import current
from domains.protocol import CallAnswered, CallObject, TellObject, WithdrawCall
from domains.scheduler.cancel import CancelScope
from domains.scheduler.context import check, current_fiber
from domains.scheduler.promise import Promise, Raised, Resolver, Result, Returned
from domains.scheduler.suspend import suspend
from domains.scheduler.switch import Switch

if TYPE_CHECKING:
    from domains.references.kind import Export
    from domains.references.registry import References

_log = logging.getLogger("domains")

Withdraw = Callable[["Served"], object]
"""Undoes a call that waits. Returns True if the call's answer comes later, from the fiber that serves it."""


class _WithdrawnError(Exception):
    """The answer to a call that was withdrawn before it was done."""


class RemoteObject:
    """What references to objects of another domain have in common."""

    __slots__ = ()

    home: int
    number: int
    home_name: str
    _calls: Calls

    async def _call(self, operation: str, *args: Any) -> Any:
        """Have an operation done at home, and return its value. Raises as it does there, Cancelled, DomainDied."""
        check()
        return await self._calls.begin(self, operation, args).outcome()

    def _ask(self, operation: str, *args: Any) -> Any:
        """Have an operation that never waits done at home, and wait for it all the same, with this whole domain."""
        return self._calls.ask(self, operation, args)

    def _tell(self, operation: str, *args: Any) -> None:
        """Have something done at home that has no answer. May be called from any thread, and in a plain job."""
        self._calls.settle(self.home)
        self._calls.tell(self, operation, args)

    def home_gone(self, error: DomainsError) -> None:
        """The home has ended; pending calls hear of it from `Calls`."""

    def _describe(self, what: str) -> str:
        return f"<{what}, of domain {self.home_name!r}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} travels only between domains: as a job's argument or result, or inside another one")


class _Nothing(RemoteObject):
    """No object, of another domain: what is asked of it comes back behind all that was sent there before."""

    __slots__ = ("home", "home_name", "number")

    def __init__(self, home: int) -> None:
        self.home = home
        self.number = 0
        self.home_name = f"{home:x}"


class Call:
    """One call, on the side that waits for it."""

    __slots__ = ("_calls", "_number", "_promise", "_resolver", "home", "operation", "target")

    def __init__(self, calls: Calls, number: int, target: RemoteObject, operation: str) -> None:
        self._calls = calls
        self._number = number
        self.home = target.home
        self.target = target
        self.operation = operation
        self._promise: Promise[Any]
        self._resolver: Resolver[Any]
        self._promise, self._resolver = Promise.create(operation)

    @property
    def number(self) -> int:
        return self._number

    @property
    def result(self) -> Result[Any] | None:
        return self._promise._result

    def answered(self, result: Result[Any]) -> None:
        self._promise._settle(result)

    async def outcome(self) -> Any:
        """Wait for the answer. Cancelling withdraws the call; if it was done before that, its value is returned."""
        operation = f"{type(self.target).__mro__[2].__name__}.{self.operation}"
        cancelled: CancelledError | None = None
        while (result := self.result) is None:
            try:
                await suspend(self._promise.when_resolved, operation, self.target, protected=cancelled is not None)
            except CancelledError as error:
                if cancelled is None:
                    self._calls.withdraw(self)
                cancelled = error
        if isinstance(result, Returned):
            if cancelled is not None and not isinstance(cancelled, Cancelled):
                # The operation was done, so its value comes first; somebody's `task.cancel()` is raised after that.
                current_fiber().cancel_again(cancelled)
            return result.value
        assert isinstance(result, Raised)
        try:
            raise result.error if cancelled is None else cancelled
        finally:
            del self, result, cancelled  # or the error would keep this frame, and with it itself


class Served:
    """A call from another domain, at the object's home: stands in queues, and answers once."""

    __slots__ = ("call", "calls", "export", "sender", "withdraw")

    def __init__(self, calls: Calls, export: Export, sender: int, call: int) -> None:
        self.calls = calls
        self.export = export
        self.sender = sender
        self.call = call
        self.withdraw: Withdraw | None = None

    def __repr__(self) -> str:
        return f"a fiber of another domain ({self.sender:x})"

    @property
    def is_waiting(self) -> bool:
        return self.calls.served.get((self.sender, self.call)) is self

    def accept(self) -> bool:
        """Let the call be done, to be answered later by who accepts it. False if it is over."""
        return self.calls.served.pop((self.sender, self.call), None) is not None

    def resume(self, value: Any) -> bool:
        return self.calls.answer(self, Returned(value))

    def throw(self, error: BaseException) -> bool:
        return self.calls.answer(self, Raised(error, None))


class Calls:
    """The calls between this domain and others, in both directions."""

    def __init__(self, references: References, switch: Switch) -> None:
        self._references = references
        self._switch = switch
        self._numbers = itertools.count(1)
        self._pending: dict[int, Call] = {}
        self._posted: set[int] = set()
        self.served: dict[tuple[int, int], Served] = {}
        self._answering: list[Served] = []
        """Those whose answers wait for what was posted elsewhere: one within the other, and rarely any."""

    def converse(self, conversation: Conversation) -> None:
        handle = functools.partial(self._references.handle, conversation)
        handle(CallObject, self._called)
        handle(CallAnswered, self._answered)
        handle(WithdrawCall, self._withdrawn)
        handle(TellObject, self._told)

    # The side that calls

    def posted(self, home: int) -> None:
        """Something was sent to this home that nobody waits for, though it counts as done."""
        self._posted.add(home)

    def settle(self, home: int | None = None) -> None:
        """Before another domain may learn that something was done: see that what was posted elsewhere has arrived.

        What goes to the same home goes the same way, and cannot overtake it. Blocks, for a round trip; does nothing
        where the domain must not wait, because it handles what others ask for.
        """
        if not self._posted or not self._references.may_wait:
            return
        addresses = [address for address in self._posted if address != home]
        self._posted.difference_update(addresses)
        for call in [self.begin(_Nothing(address), "fence", ()) for address in addresses]:
            with contextlib.suppress(DomainsError):  # it has ended: then nothing arrives there any more
                while call.result is None:  # that nothing is known there by this number is the answer
                    self._references.pump(call.home)

    def begin(self, target: RemoteObject, operation: str, args: tuple[Any, ...]) -> Call:
        """Send a call; whoever begins one awaits its outcome."""
        references = self._references
        payload = references.pickling.dumps(args, "what %s of %r was given", operation, target) if args else None
        call = Call(self, next(self._numbers), target, operation)
        self._pending[call.number] = call
        data, buffers, holds = payload or (b"", (), ())
        message = CallObject(target.home, references.address, target.number, call.number, operation, data, len(buffers))
        references.send(message, buffers, holds)
        return call

    def ask(self, target: RemoteObject, operation: str, args: tuple[Any, ...]) -> Any:
        """Call, and let this whole domain wait for the answer, which a plain job can do as well."""
        call = self.begin(target, operation, args)
        while call.result is None:
            self._references.pump(call.home)
        if isinstance(call.result, Returned):
            return call.result.value
        error = call.result.error
        try:
            raise error
        finally:
            del call, error  # or the error would keep this frame, and with it what called

    def tell(self, target: RemoteObject, operation: str, args: tuple[Any, ...]) -> None:
        """Have something done at home that has no answer, and that no other domain learns anything from."""
        references = self._references
        payload = references.pickling.dumps(args, "what %s of %r was given", operation, target) if args else None
        data, buffers, holds = payload or (b"", (), ())
        message = TellObject(target.home, references.address, target.number, operation, data, len(buffers))
        references.send(message, buffers, holds)

    def tell_failure(self, target: RemoteObject, operation: str, error: BaseException) -> None:
        """Tell of an exception, which arrives in one form or another."""
        self.settle(target.home)
        references = self._references
        data, buffers, holds = pack_failure(error, references.pickling, f"domain {current().name!r}")
        message = TellObject(target.home, references.address, target.number, operation, data, len(buffers))
        references.send(message, buffers, holds)

    def withdraw(self, call: Call) -> None:
        if call.result is None:
            self._references.send(WithdrawCall(call.home, self._references.address, call.number))

    def _answered(self, message: CallAnswered, buffers: Buffers) -> None:
        call = self._pending.pop(message.call, None)
        pickling = self._references.pickling
        result: Result[Any]
        if not message.failed:
            try:
                result = Returned(pickling.unpack(message.data, buffers))
            except DomainsError as error:
                result = Raised(error, None)
        elif message.data:
            result = Raised(unpack_failure(message.data, buffers, pickling), None)
        else:
            result = Raised(_WithdrawnError(), None)
        if call is not None:
            call.answered(result)

    def home_gone(self, home: int, error: DomainsError) -> None:
        """A domain has ended: it answers nothing any more."""
        for number, call in list(self._pending.items()):
            if call.home == home:
                del self._pending[number]
                call.answered(Raised(copy_of(error), None))

    # At home

    def _called(self, message: CallObject, buffers: Buffers) -> None:
        references = self._references
        export = references.exports.get(message.number)
        if export is None:
            self.send_answer(message.sender, message.call, Raised(unknown_object(message.number), None))
            return
        served = Served(self, export, message.sender, message.call)
        self.served[message.sender, message.call] = served
        operation = references.kinds[export.kind].operations.get(message.operation)
        try:
            if operation is None:
                raise DomainsError(f"{export.target!r} has no operation {message.operation!r} for other domains")
            args = references.pickling.loads(message.data, buffers) if message.data else ()
            withdraw = operation(export.target, served, *args)
        except Exception as error:
            served.throw(error)
        else:
            served.withdraw = withdraw

    def answer(self, served: Served, result: Result[Any]) -> bool:
        if not served.accept():
            return False
        if self._posted:
            self._answering.append(served)
            self.settle(served.sender)
            if served not in self._answering:
                return False  # its domain has died meanwhile
            self._answering.remove(served)
        self.send_answer(served.sender, served.call, result)
        return True

    def send_answer(self, to: int, call: int, result: Result[Any] | None) -> None:
        references = self._references
        payload = None
        failed = not isinstance(result, Returned)
        if isinstance(result, Returned):
            try:
                payload = references.pickling.pack(result.value, "the value for another domain from %s", _here())
            except NotPicklable as error:
                failed, result = True, Raised(error, None)
        if isinstance(result, Raised):
            payload = pack_failure(result.error, references.pickling, _here())
        data, buffers, holds = payload or (b"", (), ())
        references.send(CallAnswered(to, references.address, call, failed, data, len(buffers)), buffers, holds)

    def flush(self, to: int) -> None:
        """Let answers to that domain leave at once."""
        self._references.flush(to)

    def _withdrawn(self, message: WithdrawCall, _: Buffers) -> None:
        served = self.served.get((message.sender, message.call))
        if served is not None:
            self._withdraw(served)

    def _withdraw(self, served: Served) -> None:
        """Undo a call that waits; one that runs as a fiber answers when that has unwound."""
        if served.withdraw is not None and served.withdraw(served):
            return
        if served.accept():  # else another thread, which broadcasts, has answered it just now
            self.send_answer(served.sender, served.call, None)

    def _told(self, message: TellObject, buffers: Buffers) -> None:
        references = self._references
        export = references.exports.get(message.number)
        if export is None:
            return
        kind = references.kinds[export.kind]
        try:
            if message.operation in kind.failures:
                error = unpack_failure(message.data, buffers, references.pickling)
                kind.failures[message.operation](export, message.sender, error)
            else:
                args = references.pickling.loads(message.data, buffers) if message.data else ()
                kind.tells[message.operation](export, message.sender, *args)
        except Exception as refusal:
            # There is nobody to raise it to, and the link is not to blame.
            _log.error("%r could not %s as another domain told it", export.target, message.operation, exc_info=refusal)

    def run(self, served: Served, f: Callable[..., Awaitable[Any]], *args: Any) -> Withdraw:
        """Serve a call by a fiber, for what runs users' code; returns what withdraws it."""
        scope = CancelScope()
        self._switch.fork_daemon(self._run, served, scope, f, args, name=f"{served!r} in {served.export.target!r}")

        def withdraw(_: Served) -> bool:
            scope.cancel()
            return True

        return withdraw

    async def _run(
        self, served: Served, scope: CancelScope, f: Callable[..., Awaitable[Any]], args: tuple[Any, ...]
    ) -> None:
        try:
            with scope:
                try:
                    served.resume(await f(*args))
                except CancelledError:
                    raise
                except BaseException as error:
                    if not served.throw(error):
                        _log.error("what another domain used failed as it was given back", exc_info=error)
        except CancelledError as error:  # not by the scope
            self._switch.check()
            served.throw(error)  # nobody cancelled this fiber either: it is what the call has come to
        if served.accept():
            self.send_answer(served.sender, served.call, None)

    def caller_gone(self, sender: int) -> None:
        """A domain has died: nobody waits for what it has called."""
        self._answering = [served for served in self._answering if served.sender != sender]
        for key, served in list(self.served.items()):
            if key[0] == sender:
                served.accept()
                if served.withdraw is not None:
                    served.withdraw(served)


def _here() -> str:
    return f"domain {current().name!r}"


def unknown_object(number: int) -> DomainsError:
    """What is said of an object that nobody here knows by this number."""
    return DomainsError(f"the object {number:x} is not known here any more: its last reference had been released")
