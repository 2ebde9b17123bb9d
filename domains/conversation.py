"""One end of the talk between two domains: a link, the pickling for it, and who handles which message.

The parts that understand messages (jobs, functions, references) register here by message type; this file only
hands each message, with its out-of-band buffers, to its part. Handlers run on the loop's thread, one after
another, and never wait. A message that its handler refuses, like a frame that cannot be decoded, ends the
link: the two sides no longer agree on what was said.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from domains.errors import ConnectionLost
from domains.ipc.link import Link, LinkState
from domains.ipc.pickling import Pickling

Buffers = Sequence[memoryview]
Handler = Callable[[Any, Buffers], None]


_OPEN = LinkState.OPEN  # to look up an enum's member takes long


class Conversation:
    """Hands the link's messages to their handlers; tells everyone once when the peer is gone."""

    def __init__(self, link: Link, pickling: Pickling, peer: str) -> None:
        self.link = link
        self.pickling = pickling
        self.peer = peer
        self.address: int | None = None
        """The peer's, once it has introduced itself."""
        self.send = link.send
        self._handlers: dict[type, Handler] = {}
        self._after_frame: list[Callable[[], None]] = []
        self._when_gone: list[Callable[[ConnectionLost | None], None]] = []

    def handle(self, message_type: type, handler: Handler) -> None:
        """Messages of this type go to `handler(message, buffers)`."""
        assert message_type not in self._handlers, f"{message_type.__name__} has a handler already"
        self._handlers[message_type] = handler

    def after_frame(self, callback: Callable[[], None]) -> None:
        """Call this after each received frame, when all its messages were handled."""
        self._after_frame.append(callback)

    def when_gone(self, callback: Callable[[ConnectionLost | None], None]) -> None:
        """Call this once when the peer is gone, after its last message; with None after an orderly close."""
        self._when_gone.append(callback)

    def start(self) -> None:
        """Begin to receive, on the running loop; all handlers must have been registered."""
        self.link.start(self)

    def on_messages(self, messages: list[Any], buffers: list[memoryview]) -> None:
        if self.link.state is not _OPEN:
            return  # this side has said goodbye: it begins nothing any more, and could not answer
        handlers = self._handlers
        used = 0
        for message in messages:
            handler = handlers.get(type(message))
            if handler is None:
                self._refuse(message, "nobody here expects it")
                return
            own: Buffers = ()
            count = getattr(message, "buffers", 0)
            if count:
                if not 0 < count <= len(buffers) - used:
                    self._refuse(message, f"it claims {count} buffers of {len(buffers) - used}")
                    return
                own = buffers[used : used + count]
                used += count
            try:
                handler(message, own)
            except BaseException as error:
                self._refuse(message, f"{type(error).__name__}: {error}", error)
                if isinstance(error, Exception):
                    return
                raise
        for callback in self._after_frame:
            callback()

    def on_gone(self, reason: ConnectionLost | None) -> None:
        with contextlib.ExitStack() as all_told:  # also if one of them raises
            for callback in reversed(self._when_gone):
                all_told.callback(callback, reason)

    def _refuse(self, message: Any, why: str, error: BaseException | None = None) -> None:
        text = f"{type(message).__name__} from {self.peer} was refused: {why}"
        asyncio.get_running_loop().call_exception_handler({"message": text, "exception": error})
        lost = ConnectionLost(f"the link to {self.peer} was cut, because {text}")
        lost.__cause__ = error
        self.link.abort(lost)
