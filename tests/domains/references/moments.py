"""Stops a process, or does something else, at a chosen step of the talk about one object.

Works inside the process that it is called in, by patching what sends and handles messages there.
"""

from __future__ import annotations

import functools
import gc
import os
import signal
from collections.abc import Callable
from typing import Any

from domains import protocol
from domains.references.registry import References

Action = Callable[[], None]


_registry: list[References] = []
_patched: list[Callable[[], None]] = []


def registry() -> References:
    """The references of the domain that this is called in."""
    if not _registry or _registry[0]._loop.is_closed():
        _registry[:] = [one for one in gc.get_objects() if type(one) is References and not one._loop.is_closed()]
    assert len(_registry) == 1
    return _registry[0]


def forget() -> None:
    """Stop noticing anything."""
    while _patched:
        _patched.pop()()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def when(side: str, kind: str, skip: int, numbers: list[int], peer: int, action: Action) -> None:
    """Call `action` once at a step: `side` is "before sending", "after sending", "before handling" or "after handling".

    The message is of type `kind`, to or from `peer`, and, where it names an object, about one of these `numbers`;
    `skip` of them pass.
    """
    references = registry()
    message_type: type = getattr(protocol, kind)
    order, verb = side.split()
    left = [skip + 1]

    def is_it(message: Any) -> bool:
        if type(message) is not message_type or peer not in (message.sender, message.to):
            return False
        if getattr(message, "number", None) not in (None, *numbers):
            return False
        left[0] -= 1
        return left[0] == 0

    if verb == "sending":
        send = references.send

        def sending(message: Any, buffers: Any = (), holds: Any = ()) -> None:
            now = is_it(message)
            if now and order == "before":
                action()
            send(message, buffers, holds)
            if now and order == "after":
                route = references._routes.get(message.to)
                if route is not None and route.link.is_open:
                    route.link.flush()
                action()

        references.send = sending  # type: ignore[method-assign]
        _patched.append(lambda: setattr(references, "send", send))
        return

    def wrap(handler: Any) -> Any:
        def handling(message: Any, buffers: Any) -> None:
            now = is_it(message)
            if now and order == "before":
                action()
            handler(message, buffers)
            if now and order == "after":
                action()

        return handling

    for conversation in {*references._routes.values()}:
        handlers = conversation._handlers
        _patched.append(functools.partial(handlers.__setitem__, message_type, handlers[message_type]))
        handlers[message_type] = wrap(handlers[message_type])
