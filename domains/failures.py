"""Exceptions that cross a process boundary: packed where they were raised, rebuilt where they are awaited.

What keeps: type, arguments, attributes, notes, cause and context chain, and each one's traceback as text. An
exception that cannot be pickled, or whose constructor refuses its own arguments on the other side, arrives as
`NotPicklable` that says so and carries the original's traceback: it fails its own job and nothing else.
"""

# Annotations are not postponed: see `domains.protocol`.

import os
import sys
import traceback
from collections.abc import Sequence

import msgspec

from domains.errors import NotPicklable
from domains.ipc.pickling import Payload, Pickling


class RemoteTraceback(Exception):
    """Stands as `__cause__` under an exception from another domain; its text is the traceback there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


class _PackedException(msgspec.Struct, array_like=True):
    """One exception of a chain: its pickle (buffers after it in the payload), and what to say without it."""

    data: bytes
    buffers: int
    type_name: str
    message: str
    why: str


class _PackedFailure(msgspec.Struct, array_like=True):
    """A chain, outermost first; `links[i]` says how the i-th leads to the next: "cause", "context" or ""."""

    exceptions: list[_PackedException]
    links: list[str]
    traceback: str
    where: str


_MOST_LINKS = 16
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_PackedFailure)


def pack_failure(error: BaseException, pickling: Pickling, where: str) -> Payload:
    """Pack an exception and its chain; never raises. `where` names the job and the domain."""
    text = _format(error)
    exceptions: list[_PackedException] = []
    links: list[str] = []
    buffers: list[object] = []
    holds: list[int] = []
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen and len(exceptions) < _MOST_LINKS:
        seen.add(id(current))
        why = ""
        payload = Payload(b"", [])
        try:
            payload = pickling.dumps(current, f"exception {type(current).__qualname__} raised by {where}")
        except NotPicklable as refusal:
            why = str(refusal)
        exceptions.append(
            _PackedException(payload.data, len(payload.buffers), type(current).__qualname__, _message(current), why)
        )
        buffers.extend(payload.buffers)
        holds.extend(payload.holds)
        if current.__cause__ is not None:
            links.append("cause")
            current = current.__cause__
        elif current.__context__ is not None and not current.__suppress_context__:
            links.append("context")
            current = current.__context__
        else:
            links.append("")
            current = None
        if isinstance(current, RemoteTraceback):
            links[-1], current = "", None  # already part of the text of the exception above it
    return Payload(_encoder.encode(_PackedFailure(exceptions, links, text, where)), buffers, holds)


def unpack_failure(data: bytes, buffers: Sequence[memoryview], pickling: Pickling) -> BaseException:
    """The exception that `pack_failure` packed, ready to be raised; never raises."""
    failure = _decoder.decode(data)
    used = 0
    rebuilt: list[BaseException] = []
    for packed in failure.exceptions:
        mine = buffers[used : used + packed.buffers]
        used += packed.buffers
        rebuilt.append(_rebuild(packed, mine, pickling, failure.where))
    for error, link, following in zip(rebuilt, failure.links, rebuilt[1:], strict=False):
        if link == "cause":
            error.__cause__ = following
        elif link == "context":
            error.__context__ = following
    error = rebuilt[0]
    _attach(error, f"Traceback of {failure.where}:\n{failure.traceback.rstrip()}")
    return error


def _rebuild(packed: _PackedException, buffers: Sequence[memoryview], pickling: Pickling, where: str) -> BaseException:
    summary = f"{packed.type_name}: {packed.message}"
    what = f"exception {packed.type_name} raised by {where}"
    hint = f"It said: {summary}. Its traceback is in the notes."
    if packed.why:
        return NotPicklable(what, packed.why, hint)
    try:
        error = pickling.loads(packed.data, buffers)
    except Exception as refusal:
        return NotPicklable(what, f"it cannot be rebuilt here: {refusal}", hint)
    if not isinstance(error, BaseException):
        return NotPicklable(what, f"it was rebuilt as a {type(error).__name__}, not as an exception", hint)
    return error


def _attach(error: BaseException, text: str) -> None:
    """Add the remote traceback as a note and at the end of the chain of causes."""
    error.add_note(text)
    last = error
    while last.__cause__ is not None:
        last = last.__cause__
    context = last.__context__
    last.__cause__ = RemoteTraceback(text)
    # A context is part of the text already; showing both would say it twice.
    last.__context__ = context


def _format(error: BaseException) -> str:
    try:
        shown = traceback.TracebackException.from_exception(error)
        _leave_out_callers(shown, set())
        return "".join(shown.format())
    except Exception as broken:  # a user's __str__ may raise
        return f"{type(error).__qualname__} (its traceback could not be formatted: {broken!r})"


def _leave_out_callers(shown: traceback.TracebackException | None, seen: set[int]) -> None:
    """Of each traceback, show the frames from where ours, which only call the user's, have ended."""
    if shown is None or id(shown) in seen:
        return
    seen.add(id(shown))
    frames, ours = shown.stack, _our_folders()
    users = next((n for n, frame in enumerate(frames) if not frame.filename.startswith(ours)), 0)
    del frames[:users]
    for other in (shown.__cause__, shown.__context__, *(shown.exceptions or ())):
        _leave_out_callers(other, seen)


def _our_folders() -> tuple[str, ...]:
    """The rooms need not lie in one folder."""
    rooms = (sys.modules[name] for name in ("domains", "domains.ipc", "domains.scheduler"))
    return tuple(os.path.join(os.path.dirname(str(room.__file__)), "") for room in rooms)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:
        return f"(its message could not be formatted: {broken!r})"
