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
from typing import Any

import msgspec

from domains.errors import DomainDied, NotPicklable
from domains.identity import current as current_domain
from domains.ipc.pickling import Payload, Pickling
from domains.ipc.unpicklable import describe
from domains.plain_text import plain_text
from domains.scheduler.signals import ends_at_once

# Of BaseException itself: a user's class may refuse its attributes to be set, as a frozen dataclass does, or read.
_CAUSE: Any = vars(BaseException)["__cause__"]
_CONTEXT: Any = vars(BaseException)["__context__"]
_SUPPRESSES: Any = vars(BaseException)["__suppress_context__"]


class RemoteTraceback(Exception):
    """Stands as `__cause__` under an exception from another domain; its text is the traceback there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


class _PackedException(msgspec.Struct, array_like=True):
    """One exception of a chain: its pickle (buffers after it in the payload), and what to say without it.

    Where it cannot be pickled there is no pickle, `why` says why not, and `path` what in it is to blame.
    """

    data: bytes
    buffers: int
    type_name: str
    message: str
    path: str
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
    """Pack an exception and its chain; never raises. `where` names the job and the domain.

    A process that is told to end at once by a signal tells of its death instead: nobody else was told.
    """
    if ends_at_once():
        error = DomainDied(current_domain().name, what="as it was told to end at once")
    where = plain_text(where)
    text = _format(error)
    exceptions: list[_PackedException] = []
    links: list[str] = []
    buffers: list[object] = []
    holds: list[int] = []
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen and len(exceptions) < _MOST_LINKS:
        seen.add(id(current))
        type_name = plain_text(type(current).__qualname__)
        path = why = ""
        payload = Payload(b"", [])
        try:
            payload = pickling.dumps(current, type_name)
        except NotPicklable as refusal:
            path, why = plain_text(refusal.what.removeprefix(type_name)), plain_text(refusal.why)
        except BaseException as broken:  # a user's `__reduce__` may raise what comes from outside elsewhere
            why = plain_text(describe(broken))
        exceptions.append(_PackedException(payload.data, len(payload.buffers), type_name, _message(current), path, why))
        buffers.extend(payload.buffers)
        holds.extend(payload.holds)
        cause, context = _CAUSE.__get__(current), _CONTEXT.__get__(current)
        if cause is not None:
            links.append("cause")
            current = cause
        elif context is not None and not _SUPPRESSES.__get__(current):
            links.append("context")
            current = context
        else:
            links.append("")
            current = None
        if isinstance(current, RemoteTraceback):
            links[-1], current = "", None  # already part of the text of the exception above it
    return Payload(_encoder.encode(_PackedFailure(exceptions, links, text, where)), buffers, holds)


def unpack_failure(data: bytes, buffers: Sequence[memoryview], pickling: Pickling) -> BaseException:
    """The exception that `pack_failure` packed, ready to be raised; raises nothing but for what was never packed."""
    failure = _decoder.decode(data)
    used = 0
    rebuilt: list[BaseException] = []
    for packed in failure.exceptions:
        mine = buffers[used : used + packed.buffers]
        used += packed.buffers
        rebuilt.append(_rebuild(packed, mine, pickling, failure.where))
    for error in rebuilt:
        _detach(error)
    for error, link, following in zip(rebuilt, failure.links, rebuilt[1:], strict=False):
        if link == "cause":
            _CAUSE.__set__(error, following)
        elif link == "context":
            _CONTEXT.__set__(error, following)
    error = rebuilt[0]
    _attach(error, f"Traceback of {failure.where}:\n{failure.traceback.rstrip()}")
    return error


def _rebuild(packed: _PackedException, buffers: Sequence[memoryview], pickling: Pickling, where: str) -> BaseException:
    summary = f"{packed.type_name}: {packed.message}"
    what = f"exception {packed.type_name} raised by {where}{packed.path}"
    hint = f"It said: {summary}. Its traceback is in the notes."
    if packed.why:
        return NotPicklable(what, packed.why, hint)
    try:
        error = pickling.loads(packed.data, buffers)
    except NotPicklable as refusal:
        return NotPicklable(what, refusal.why, hint)
    except BaseException as broken:
        return NotPicklable(what, f"it cannot be rebuilt here: {describe(broken)}", hint)
    if not isinstance(error, BaseException):
        return NotPicklable(what, f"it was rebuilt as a {type(error).__name__}, not as an exception", hint)
    return error


def _attach(error: BaseException, text: str) -> None:
    """Add the remote traceback as a note and at the end of the chain of causes."""
    attributes = vars(error)
    notes = attributes.get("__notes__")
    attributes["__notes__"] = [*(notes if isinstance(notes, list) else ()), text]
    last, seen = error, {id(error)}
    while (cause := _CAUSE.__get__(last)) is not None and id(cause) not in seen:
        last = cause
        seen.add(id(cause))
    _CAUSE.__set__(last, RemoteTraceback(text))  # and a context, which the text has too, is not shown beside it


def _detach(error: BaseException) -> None:
    """Undo an earlier `_attach`: an exception may be rebuilt as an object that there was before."""
    cause, seen = _CAUSE.__get__(error), set()
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, RemoteTraceback):
            _CAUSE.__set__(error, None)
            notes = vars(error).get("__notes__")
            if isinstance(notes, list):
                vars(error)["__notes__"] = [note for note in notes if type(note) is not str or note != cause.text]
            return
        seen.add(id(cause))
        cause = _CAUSE.__get__(cause)


def _format(error: BaseException) -> str:
    try:
        shown = traceback.TracebackException.from_exception(error)
        _leave_out_callers(shown, set())
        return plain_text("".join(shown.format()))
    except BaseException as broken:  # a user's `__str__` may raise anything
        return plain_text(f"{type(error).__qualname__} (its traceback could not be formatted: {describe(broken)})")


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
        return plain_text(str(error))
    except BaseException as broken:
        return plain_text(f"(its message could not be formatted: {describe(broken)})")
