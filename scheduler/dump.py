"""The tree of switches and fibers as text: what one wants to see when a service hangs.

It only reads, allocates little, and takes no lock, so that it may be made in a signal handler, wherever the program
is; and of every loop of the process, though what other threads do meanwhile may blur it.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import inspect
import os
import sys
from collections.abc import Iterator
from time import monotonic
from types import FrameType
from typing import Any, NamedTuple, TextIO, cast

from domains.scheduler.context import Context, Fiber, root_contexts
from domains.scheduler.running import running_loop, running_task

__all__ = ["FiberReport", "FiberState", "dump", "dump_to_stderr", "report"]

_OURS = os.path.dirname(__file__) + os.sep
_LONGEST = 200
"""Characters of a value that is shown."""


class FiberState(enum.Enum):
    """What a fiber does, in words."""

    NEW = "has not begun"
    RUNNING = "runs"
    READY = "can run"
    WAITING = "waits"
    ELSEWHERE = "waits in other code"


class FiberReport(NamedTuple):
    """One fiber at one moment. `operation` is None unless it waits in an operation of ours, `seconds` long already."""

    name: str
    switch: str
    state: FiberState
    operation: str | None
    target: object
    seconds: float | None
    file: str | None
    line: int | None

    def __str__(self) -> str:
        text = f"fiber {self.name!r} {self.state.value}"
        if self.operation is not None:
            text += f" in {self.operation}"
        if self.target is not None:
            text += f" on {shown(self.target)}"
        if self.seconds is not None:
            text += f" for {self.seconds:.3f} s"
        return text if self.file is None else f"{text}, at {self.file}:{self.line}"


def dump(file: TextIO | None = None) -> str:
    """The tree of contexts with their fibers, what each does or waits for, where in the code, and for how long.

    Below it are the tasks of the running loop that are no fibers. Returns the text, and writes it to `file` where one
    is given.
    """
    lines: list[str] = []
    fibers: set[asyncio.Task[Any]] = set()
    for root in sorted(_copied(root_contexts), key=lambda root: root.label != "root"):
        lines += _tree(root, fibers)
    loop = running_loop()
    if loop is not None:
        others = [task for task in asyncio.all_tasks(loop) if task not in fibers and not task.done()]
        lines += [_task_line(task) for task in sorted(others, key=lambda task: task.get_name())]
    text = "".join(f"{line}\n" for line in lines) or "nothing runs\n"
    if file is not None:
        file.write(text)
        file.flush()
    return text


def dump_to_stderr(*_: Any) -> None:
    """A signal handler. Goes around the buffer, which the program may be writing to at this very moment."""
    text = dump().encode(errors="backslashreplace")
    with contextlib.suppress(OSError):
        while text:
            text = text[os.write(2, text) :]


def _tree(root: Context, seen: set[asyncio.Task[Any]]) -> list[str]:
    """The lines of a tree; none if nothing in it lives, as where its task has ended."""
    lines: list[str] = []
    is_alive = False
    for depth, context in root.tree():
        indent = "  " * depth
        cancellation = context.cancellation
        text = context.label if context.owner is None else shown(context.owner).strip("<>")
        if cancellation is not None:
            text += ", cancelled"
            if cancellation.reason is not None:
                text += f" because of {shown(cancellation.reason)}"
        lines.append(indent + text)
        inside: list[object] = []
        for fiber in list(context.fibers):
            task = fiber.living_task()
            if task is not None and not task.done():
                seen.add(task)
                inside.append(report(fiber))
        inside += [f"elsewhere: {shown(work)}" for work in list(context.adopted)]
        is_alive = is_alive or bool(inside)
        lines += [f"{indent}  {line}" for line in inside]
    return lines if is_alive else []


def _task_line(task: asyncio.Task[Any]) -> str:
    frame = _innermost_foreign_frame(task)
    place = "" if frame is None else f", at {frame.f_code.co_filename}:{frame.f_lineno}"
    return f"task {task.get_name()!r}, no fiber{place}"


def report(fiber: Fiber) -> FiberReport:
    """What one fiber does now."""
    task = fiber.task()
    suspension = fiber.suspension
    waits_for: Any = cast(Any, task)._fut_waiter
    operation: str | None = None
    target: object = None
    seconds: float | None = None
    if running_task(task.get_loop()) is task:
        state = FiberState.RUNNING
    elif suspension is not None and suspension.is_waiting:
        state = FiberState.WAITING
        operation, target = suspension.operation, suspension.target
        seconds = monotonic() - suspension.since
    elif _has_not_begun(task):
        state = FiberState.NEW
    elif waits_for is None or waits_for.done():
        state = FiberState.READY
    else:
        state = FiberState.ELSEWHERE
        if isinstance(waits_for, asyncio.Task):
            target = waits_for
    frame = _innermost_foreign_frame(task)
    return FiberReport(
        name=fiber.name,
        switch=_switch_of(fiber.context),
        state=state,
        operation=operation,
        target=target,
        seconds=seconds,
        file=None if frame is None else frame.f_code.co_filename,
        line=None if frame is None else frame.f_lineno,
    )


def shown(value: object) -> str:
    """Its repr, not too long, and whatever happens in it."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _copied(read: Any) -> list[Context]:
    """Read a set that other threads may change meanwhile."""
    while True:
        try:
            return list(read())
        except RuntimeError:
            continue


def _switch_of(context: Context | None) -> str:
    while context is not None:
        if context.owner is not None or context.parent is None:
            return context.label
        context = context.parent
    raise AssertionError("every context has a root")


def _has_not_begun(task: asyncio.Task[Any]) -> bool:
    coroutine: Any = task.get_coro()
    return inspect.iscoroutine(coroutine) and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED


def _innermost_foreign_frame(task: asyncio.Task[Any]) -> FrameType | None:
    """Where the user's code is: the innermost frame that is not of this package."""
    frames = _own_stack() if task is _current_task() else _frames_of(task.get_coro())
    for frame in frames:
        if not frame.f_code.co_filename.startswith(_OURS):
            return frame
    return None


def _current_task() -> asyncio.Task[Any] | None:
    loop = running_loop()
    return None if loop is None else running_task(loop)


def _own_stack() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _frames_of(coroutine: Any) -> list[FrameType]:
    """The frames of what awaits what, innermost first; some libraries' coroutines have none."""
    frames: list[FrameType] = []
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        frame = frame or getattr(coroutine, "ag_frame", None)
        if frame is None:
            break
        frames.append(frame)
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return frames[::-1]
