"""The tree of switches and fibers as text: what one wants to see when a service hangs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from time import monotonic
from types import FrameType
from typing import Any, NamedTuple, TextIO

from domains.scheduler.context import Context, Fiber, root_contexts

__all__ = ["FiberReport", "dump", "report"]


class FiberReport(NamedTuple):
    """One fiber at one moment. `operation` is None unless it waits in an operation of ours."""

    name: str
    switch: str
    operation: str | None
    target: object
    seconds: float | None
    file: str | None
    line: int | None

    def __str__(self) -> str:
        place = "" if self.file is None else f" at {self.file}:{self.line}"
        if self.operation is None:
            return f"fiber {self.name!r}: running, or waiting in other code,{place}"
        target = "" if self.target is None else f" on {self.target!r}"
        return f"fiber {self.name!r}: waits in {self.operation}{target}{place} since {self.seconds:.3f} s"


def dump(file: TextIO | None = None) -> str:
    """The tree of contexts with their fibers, what each waits for, where in the code, and since when.

    Returns the text, and writes it to `file` where one is given. Call it on the loop's thread.
    """
    lines: list[str] = []
    for root in root_contexts():
        if root.fibers or root.children:
            lines += _tree(root, 0)
    text = "\n".join(lines) + "\n"
    if file is not None:
        file.write(text)
        file.flush()
    return text


def dump_to_stderr(*_: Any) -> None:
    """A signal handler."""
    dump(sys.__stderr__)


def _tree(context: Context, depth: int) -> Iterator[str]:
    cancellation = context.cancellation
    state = ""
    if cancellation is not None:
        state = ", cancelled" if cancellation.reason is None else f", cancelled because of {cancellation.reason!r}"
    yield "  " * depth + context.label + state
    for fiber in list(context.fibers):
        yield "  " * (depth + 1) + str(report(fiber))
    for child in list(context.children):
        yield from _tree(child, depth + 1)


def report(fiber: Fiber) -> FiberReport:
    """What one fiber does now."""
    suspension = fiber.suspension
    frame = _innermost_foreign_frame(fiber)
    return FiberReport(
        name=fiber.name,
        switch=_switch_of(fiber.context),
        operation=None if suspension is None else suspension.operation,
        target=None if suspension is None else suspension.target,
        seconds=None if suspension is None else monotonic() - suspension.since,
        file=None if frame is None else frame.f_code.co_filename,
        line=None if frame is None else frame.f_lineno,
    )


def _switch_of(context: Context | None) -> str:
    while context is not None:
        if context.owner is not None or context.parent is None:
            return context.label
        context = context.parent
    raise AssertionError("every context has a root")


_OURS = __file__.rsplit("/", 1)[0]


def _innermost_foreign_frame(fiber: Fiber) -> FrameType | None:
    """Where the user's code waits: the innermost frame that is not of this package."""
    coroutine: Any = fiber.task().get_coro()
    frames: list[FrameType] = []
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is None:
            break
        frames.append(frame)
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    for frame in reversed(frames):
        if not frame.f_code.co_filename.startswith(_OURS):
            return frame
    return frames[-1] if frames else None
