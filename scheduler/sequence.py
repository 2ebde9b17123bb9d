"""`fork_seq`: a fiber that produces items one by one, only as far as somebody takes them.

States of the talk between the two: New -> Wanted (an item was asked for, the producer runs) -> Idle (it came, the
producer waits in `yield_`) -> Wanted ..., until Ended, when the producer is over. A consumer that is cancelled leaves
the state alone: the item that it asked for is there for the next one. A failure that no consumer has heard of is
logged when the switch ends, as that of a promise is.
"""

from __future__ import annotations

import contextlib
import enum
from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from domains.errors import Cancelled
from domains.scheduler.cancel import CancelScope
from domains.scheduler.context import check, current_fiber
from domains.scheduler.promise import Promise
from domains.scheduler.suspend import Suspension, suspend

if TYPE_CHECKING:
    from domains.scheduler.switch import Switch

T = TypeVar("T")


class _State(enum.Enum):
    NEW = "new"
    IDLE = "idle"
    WANTED = "wanted"
    ENDED = "ended"


class _Talk(Generic[T]):
    """What producer and consumer share; the producer does not hold the iterator, so that it can be dropped."""

    def __init__(self, switch: Switch, f: Callable[[Callable[[T], Awaitable[None]]], Awaitable[object]]) -> None:
        self.switch = switch
        self.f = f
        self.name = getattr(f, "__name__", "sequence")
        self.state = _State.NEW
        self.scope = CancelScope()
        self.last_word: BaseException = Cancelled()  # what the consumer gets at the end
        self.failure: Promise[None] | None = None  # the last word, as long as nobody has heard it
        self.left_over: list[T] = []  # an item whose consumer was cancelled just before it came
        self.consumer: Suspension[T] | None = None
        self.producer: Suspension[None] | None = None

    async def produce(self) -> None:
        try:
            with self.scope:
                await self.f(self.yield_)
        except CancelledError as cancelled:
            self.last_word = cancelled
            fiber = current_fiber()
            if fiber.context.cancellation is not None or fiber.foreign_cancels:
                raise  # else nobody has cancelled it, and it is for the consumer as any other
        except (StopIteration, StopAsyncIteration) as stop:
            self.last_word = RuntimeError(f"the producer raised {type(stop).__name__}")
            self.last_word.__cause__ = stop
        except BaseException as failure:
            self.last_word = failure  # for the consumer, not for the switch
        else:
            self.last_word = StopAsyncIteration()

    def close(self) -> None:
        """End it, cleanly, and cancel the producer if it has begun."""
        if self.state is _State.NEW:
            self.state = _State.ENDED
            self.last_word = StopAsyncIteration()
        self.left_over.clear()
        self.scope.cancel()

    def ended(self) -> None:
        """The producer's fiber is over, or never began."""
        self.state = _State.ENDED
        consumer, self.consumer = self.consumer, None
        if consumer is not None and consumer.throw(_out_of_a_generator(self.last_word)):
            self.last_word = StopAsyncIteration()
        elif not isinstance(self.last_word, (StopAsyncIteration, CancelledError)):
            self.failure = Promise.failed(self.last_word)
            self.failure.label = self.name
            self.switch.remember_failed(self.failure)

    async def yield_(self, item: T) -> None:
        check()
        if self.state is _State.IDLE and self.producer is None:
            # The wait in the yield_ before was cut short: nobody has asked for this item yet.
            await suspend(self._wait, "Sequence.yield", self)
        if self.state is _State.ENDED:
            raise RuntimeError("yield_ was called after its producer had ended")
        if self.state is not _State.WANTED:
            raise RuntimeError("yield_ was called by two at once: only one may produce an item at a time")
        self._hand_over(item)
        await suspend(self._wait, "Sequence.yield", self)

    def _hand_over(self, item: T) -> None:
        # Not in `yield_`, whose frame lasts: it would hold the consumer, and so the iterator, which may be dropped.
        self.state = _State.IDLE
        consumer, self.consumer = self.consumer, None
        if consumer is None or not consumer.resume(item):
            self.left_over.append(item)

    def _wait(self, suspension: Suspension[None]) -> Callable[[Any], None]:
        self.producer = suspension
        return self._producer_left

    def _producer_left(self, _: Any) -> None:
        self.producer = None

    def want(self, suspension: Suspension[T]) -> Callable[[Any], None]:
        self.consumer = suspension
        if self.state is _State.IDLE:
            self.state = _State.WANTED
            producer, self.producer = self.producer, None
            if producer is not None:
                producer.resume(None)
        return self._consumer_left

    def _consumer_left(self, suspension: Suspension[T]) -> None:
        if self.consumer is suspension:  # after a `task.cancel()` there may be another one already
            self.consumer = None


class Sequence(Generic[T]):
    """The consumer's side: an async iterator."""

    def __init__(self, switch: Switch, f: Callable[[Callable[[T], Awaitable[None]]], Awaitable[object]]) -> None:
        self._talk = _Talk(switch, f)

    def __aiter__(self) -> Sequence[T]:
        return self

    async def __anext__(self) -> T:
        check()
        talk = self._talk
        if talk.consumer is not None and talk.consumer.is_waiting:
            raise RuntimeError("two fibers take from one sequence at once: put a lock, or a Stream, between them")
        if talk.left_over:
            return talk.left_over.pop()
        if talk.state is _State.ENDED:
            if talk.failure is not None:
                talk.failure.peek()
            last_word, talk.last_word = talk.last_word, StopAsyncIteration()
            try:
                raise last_word
            finally:
                del last_word  # its traceback holds this frame
        if talk.state is _State.NEW:
            talk.switch._fork_sequence(talk.produce, talk.name, talk.ended)
            talk.state = _State.WANTED
        try:
            return await suspend(talk.want, "Sequence.next", self)
        except _Ended:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        """Cancel the producer, if it has not ended. There are no more items."""
        self._talk.close()

    def __del__(self) -> None:
        talk = self._talk
        if talk.state is _State.IDLE or talk.state is _State.WANTED:
            # Garbage is collected in any thread, and in the middle of anything.
            with contextlib.suppress(RuntimeError):  # the loop was closed
                talk.switch.call_soon(talk.close)


class _Ended(Exception):
    """Stands for StopAsyncIteration where that cannot be thrown."""


def _out_of_a_generator(error: BaseException) -> BaseException:
    return _Ended() if isinstance(error, StopAsyncIteration) else error
