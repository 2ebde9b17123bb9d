"""A link: ordered, batched frames between two processes, and one event, that the peer is gone.

What is sent in one turn of the loop becomes one frame, or several where it is much. A link is New, then Open; then
Closing, when this side has said goodbye, behind all that it sent, and still hears the other; then Leaving, when both
have, and what is pending is still written; then Parting, over a transport that would lose what the other has not heard
yet, until the other says that it has heard all; then Gone. `on_gone` is the last thing its receiver hears, exactly
once, and what it held is released then. A goodbye is an empty envelope, and so is the word that all was heard.
Sending never waits: a link whose peer does not read becomes congested, and whoever can wait is expected to wait until
it is writable again. All methods and callbacks belong to the loop's thread.
"""

from __future__ import annotations

import asyncio
import enum
import select
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from domains.errors import ConnectionLost
from domains.ipc.frames import MOST_BUFFERS, byte_view
from domains.ipc.vigil import Vigil

__all__ = ["Buffer", "Carrier", "Codec", "Link", "Receiver", "wait_for"]

Buffer = Any
"""Anything with the buffer protocol: bytes, bytearray, memoryview, pickle.PickleBuffer …"""

HIGH_WATER_BYTES = 1 << 20
"""A link with more than this waiting to be written is congested, until less than half of it is left."""

_MOST_MESSAGES = 1024
"""So many are a batch, though the turn is not over. Each may hold up to some 64 KiB; what is more is in its buffers."""

_WAIT_MS = 20
"""Who blocks the loop to wait for links tries those that want to write again so often."""

_CLOSING_SECONDS = 5.0
"""How long an orderly close waits for a peer that does not read."""


class Codec(Protocol):
    """Turns the messages of a turn into an envelope, and back."""

    def encode(self, messages: list[Any], /) -> bytes: ...

    def decode(self, envelope: bytes | memoryview, /) -> list[Any]:
        """Raises on anything that is not valid; that ends the link."""


class Carrier(Protocol):
    """Takes large buffers to the peer by another way than the link, where there is one."""

    @property
    def is_interrupted(self) -> bool:
        """Whether this thread is in the midst of its work already: it cannot take what comes."""

    def outgoing(self, buffers: Sequence[Buffer], /) -> list[Buffer]:
        """What to send in place of a frame's buffers: one for each."""

    def incoming(self, buffers: Sequence[memoryview], /) -> list[Any]:
        """The buffers that a frame came with, from what was sent in their place."""

    def gone(self) -> None:
        """The link is over: nothing more will arrive on either side."""


class Receiver(Protocol):
    """One who hears what arrives on a link."""

    def on_messages(self, messages: list[Any], buffers: list[memoryview], /) -> None:
        """A frame's messages, and the out-of-band buffers of all of them, in order."""

    def on_gone(self, reason: ConnectionLost | None, /) -> None:
        """The link is over; None after an orderly close by either side."""


class LinkState(enum.Enum):
    NEW = "new"
    OPEN = "open"
    CLOSING = "closing"
    LEAVING = "leaving"
    PARTING = "parting"
    GONE = "gone"


_NEW, _OPEN = LinkState.NEW, LinkState.OPEN  # to look up an enum's member takes long


class Link(ABC):
    """One end of a link. Subclasses move frames; this class batches, counts, and keeps the state."""

    _loop: asyncio.AbstractEventLoop
    """The loop that it was started on."""

    def __init__(self, codec: Codec, name: str) -> None:
        self.name = name
        self.state = LinkState.NEW
        self.pending_bytes = 0
        """How much waits to be written, in bytes of frames."""
        self.is_congested = False
        self.carrier: Carrier | None = None
        """To be set, if at all, before anything is sent."""
        self._codec = codec
        self._receiver: Receiver | None = None
        self._vigil = Vigil()
        self._batch: list[Any] = []
        self._batch_buffers: list[Buffer] = []
        self._batch_bytes = 0
        self._is_held = False
        self._is_flushing = False
        self._when_writable: dict[object, Callable[[], object]] = {}
        self._closing_timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {self.state.value}>"

    @property
    def is_open(self) -> bool:
        """Whether something can still be sent."""
        return self.state is _OPEN or self.state is _NEW

    @property
    def latest(self) -> Any:
        """The message that was sent last, while it waits for the end of the turn."""
        return self._batch[-1] if self._batch else None

    @property
    def is_interrupted(self) -> bool:
        """Whether this is in the midst of a flush or of the carrier's work, as in a finalizer.

        Nothing can be waited for there: what one sends would leave too late, and what comes for others could be lost.
        """
        return self._is_flushing or (self.carrier is not None and self.carrier.is_interrupted)

    @property
    def has_unsent(self) -> bool:
        """Whether something that was sent has not been taken by the transport yet."""
        return bool(self._batch) or self.pending_bytes > 0

    def start(self, receiver: Receiver) -> None:
        """Begin to receive, and to send what was sent before, on the running loop."""
        assert self.state is LinkState.NEW, f"{self!r} was started before"
        self._loop = asyncio.get_running_loop()
        self._receiver = receiver
        self.state = LinkState.OPEN
        self._open()
        if self._batch:
            self._loop.call_soon(self.flush)

    def send(self, message: Any, buffers: Sequence[Buffer] = ()) -> None:
        """Add a message to this turn's batch. Raises ConnectionLost if the link is closing or gone."""
        if self.state is not _OPEN:
            if self.state is not _NEW:
                raise ConnectionLost(f"the link to {self.name} is {self.state.value}: nothing can be sent")
        elif not self._batch and not self._is_held:
            self._loop.call_soon(self.flush)
        if buffers:
            if len(self._batch_buffers) + len(buffers) > MOST_BUFFERS:
                self.flush()  # a frame takes no more of them
            self._batch_bytes += sum(byte_view(buffer).nbytes for buffer in buffers)
            self._batch_buffers += buffers  # and the message: no finalizer can come in between
        self._batch.append(message)
        if len(self._batch) >= _MOST_MESSAGES or (buffers and self._batch_bytes > HIGH_WATER_BYTES):
            self.flush()  # that it is congested must be known before the turn is over

    def hold(self) -> None:
        """Leave it to the caller to `flush`, in the same turn, once all is sent that is to be."""
        self._is_held = True

    def flush(self) -> None:
        """Write what was sent, as far as the peer takes it; the rest is written later.

        In the midst of another flush, as by a finalizer, it is left to that one.
        """
        self._is_held = False
        if not self._batch or self._is_flushing:
            return
        try:
            self._is_flushing = True
            while self._batch and self.state is _OPEN:
                self._write_batch()
        finally:
            self._is_flushing = False

    def _write_batch(self) -> None:
        nothing: list[Any] = []
        no_buffers: list[Buffer] = []
        # In one statement, in whose midst no finalizer can send: it would be parted from its buffers.
        batch, buffers, self._batch, self._batch_buffers = self._batch, self._batch_buffers, nothing, no_buffers
        self._batch_bytes = 0
        try:
            if buffers and self.carrier is not None:
                buffers = self.carrier.outgoing(buffers)
            self._write(self._codec.encode(batch), buffers)
        except Exception as error:
            # Somebody waits for what is in here: better they all hear of an end than never of anything.
            kinds = ", ".join(sorted({type(message).__name__ for message in batch}))
            text = f"what was to be sent to {self.name} cannot be written ({kinds}): {type(error).__name__}: {error}"
            # Before the link is cut, for which the peer may end this process.
            self._loop.call_exception_handler({"message": text, "exception": error})
            self._broken(text, error)
            return
        if self.pending_bytes > HIGH_WATER_BYTES:
            self.is_congested = True

    def expect_soon(self) -> None:
        """What was sent is likely to be answered at once, and this process has nothing else to do meanwhile."""
        if self.state is _OPEN:
            self._vigil.begin(self._loop)

    def when_writable(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call this once, when the link is no longer congested, or gone; returns what withdraws it.

        Soon, if it is not congested now.
        """
        if not self.is_congested:
            handle = self._loop.call_soon(callback)
            return handle.cancel
        key = object()
        self._when_writable[key] = callback

        def withdraw() -> None:
            self._when_writable.pop(key, None)

        return withdraw

    def close(self) -> None:
        """End the link once what was sent is delivered. Both sides then hear `on_gone(None)`."""
        if self.state is LinkState.NEW:
            self._let_go()
        elif self.state is LinkState.OPEN:
            self._say_goodbye(LinkState.CLOSING)

    def _say_goodbye(self, state: LinkState) -> None:
        self.flush()
        if self.state is LinkState.OPEN:
            self.state = state
            self._closing_timer = self._loop.call_later(_CLOSING_SECONDS, self._close_overdue)
            self._write(b"", [])
            self._written()

    def abort(self, reason: ConnectionLost | None) -> None:
        """End the link now, whatever was sent; the receiver hears `on_gone(reason)` soon."""
        if self.state is LinkState.GONE:
            return
        was_started = self.state is not LinkState.NEW
        self._let_go()
        if was_started:
            self._loop.call_soon(self._tell_gone, reason)

    def abandon(self) -> None:
        """End the link when its loop is closed: the receiver hears of nothing any more.

        One that is gone as well: what ended the program may have come in the midst of its release.
        """
        self._let_go()
        if self.carrier is not None:
            self.carrier.gone()

    def _let_go(self) -> None:
        self.state = LinkState.GONE
        if self._closing_timer is not None:
            self._closing_timer.cancel()
            self._closing_timer = None
        self._batch = []
        self._batch_buffers = []
        self.pending_bytes = 0
        self._release()

    # For subclasses

    @abstractmethod
    def _descriptors(self) -> list[int]:
        """What to poll for reading, to learn that something may have arrived."""

    @abstractmethod
    def _turn(self) -> None:
        """Read and write what can be, as the loop would have it done."""

    def _is_ready(self) -> bool:
        """Whether something has arrived that no descriptor will tell of any more."""
        return False

    @abstractmethod
    def _open(self) -> None:
        """Begin to read and write on `self._loop`."""

    @abstractmethod
    def _write(self, envelope: bytes, buffers: list[Buffer]) -> None:
        """Write a frame, or as much as can be written, and count the rest in `pending_bytes`."""

    @abstractmethod
    def _release(self) -> None:
        """Give back everything that the link holds. Called once more if that was cut short."""

    def _written(self) -> None:
        """`pending_bytes` may have shrunk."""
        if not self.pending_bytes and self.state is LinkState.LEAVING:
            self._left()
            return
        if self.is_congested and self.pending_bytes <= HIGH_WATER_BYTES // 2:
            self.is_congested = False
            self._tell_writable()

    def _go_on_soon(self) -> None:
        """Read on in the next turn, where something that was called raised: nothing else may tell of what is there."""

        def go_on() -> None:
            if self.state is not LinkState.GONE:
                self._turn()

        self._loop.call_soon(go_on)

    def _left(self) -> None:
        """Both sides have said goodbye, and all is written: the transport delivers it, or this waits until it has."""
        self.abort(None)

    def _received(self, envelope: bytes, buffers: list[memoryview]) -> None:
        """A frame has arrived whole."""
        if self._vigil.awaited_since is not None:
            self._vigil.end()
        if not envelope:
            if self.state is LinkState.OPEN:
                self._say_goodbye(LinkState.LEAVING)
            elif self.state is LinkState.CLOSING:
                self.state = LinkState.LEAVING
                self._written()
            elif self.state is LinkState.PARTING:
                self.abort(None)
            return
        try:
            messages = self._codec.decode(envelope)
            if buffers and self.carrier is not None:
                buffers = self.carrier.incoming(buffers)
        except Exception as error:
            self._broken(f"what {self.name} sent is no envelope of ours: {error}", error)
            return
        assert self._receiver is not None
        try:
            self._receiver.on_messages(messages, buffers)
        except BaseException:
            self._go_on_soon()
            raise

    def _peer_gone(self, in_frame: bool) -> None:
        """The transport has ended."""
        if self.is_open:
            self._broken(f"{self.name} is gone" + (", in the middle of a frame" if in_frame else ""))
        else:
            self.abort(None)

    def _failed(self, error: Exception) -> None:
        """The transport does not work any more."""
        self._broken(f"the link to {self.name} is broken: {error}", error)

    def _broken(self, why: str, cause: BaseException | None = None) -> None:
        """The peer is gone, or not to be trusted."""
        lost = ConnectionLost(why)
        lost.__cause__ = cause
        self.abort(lost)

    def _close_overdue(self) -> None:
        self._broken(f"{self.name} has not read what was sent before the close, within {_CLOSING_SECONDS} s")

    def _tell_writable(self) -> None:
        callbacks, self._when_writable = self._when_writable, {}
        for callback in callbacks.values():
            callback()

    def _tell_gone(self, reason: ConnectionLost | None) -> None:
        self.is_congested = False
        receiver, self._receiver = self._receiver, None
        assert receiver is not None
        try:
            if self.carrier is not None:
                self.carrier.gone()
            self._tell_writable()
        finally:  # who waits for that must hear of it, whatever others make of it
            receiver.on_gone(reason)


def wait_for(links: Iterable[Link]) -> None:
    """Block until something has arrived on one of the links, or shortly, and have all links do what they can.

    For those who must wait while the loop cannot turn. Receivers are called as ever. Raises RuntimeError where one of
    them is interrupted.
    """
    polling = select.poll()
    ready = False
    links = [link for link in links if link.state is not LinkState.NEW]
    for link in links:
        if link.is_interrupted:
            raise RuntimeError(
                "nothing can be waited for by a finalizer or signal handler in the midst of writing to "
                f"{link.name} or of work with shared memory"
            )
    for link in links:
        link.flush()
    open_links = [link for link in links if link.state is not LinkState.GONE]
    for link in open_links:
        ready = ready or link._is_ready()
        for descriptor in link._descriptors():
            polling.register(descriptor, select.POLLIN)
    polling.poll(0 if ready else _WAIT_MS)
    for link in open_links:
        if link.state is not LinkState.GONE:
            link._turn()
