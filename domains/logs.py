"""Log records made in a domain appear in its parent's logging, as if made there, with the domain's name.

The parent says which levels its loggers have when it starts a domain; there, a handler on the root logger sends what
passes them. In the parent a record is handled by the logger of the same name; its `domain` and `processName` say where
it comes from. Records that come faster than the parent reads are counted and dropped, and the next one says so.
Attributes that cannot be pickled, or are references such as promises, arrive as what `repr` says of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import Any, NamedTuple

from domains.conversation import Buffers, Conversation
from domains.errors import NotPicklable
from domains.identity import current
from domains.ipc.frames import byte_view
from domains.ipc.pickling import Pickling
from domains.plain_text import plain_text
from domains.protocol import ConfigureLogging, LogRecord
from domains.references.plain import MOST_INT

_MOST_PENDING_BYTES = 4 << 20

_RECORD_BYTES = 1 << 10
"""About so much a record takes beside what is said in it."""

_FIELDS = (
    "name",
    "levelno",
    "levelname",
    "pathname",
    "filename",
    "module",
    "lineno",
    "funcName",
    "created",
    "msecs",
    "relativeCreated",
    "thread",
    "threadName",
    "process",
    "exc_text",
    "stack_info",
)
_NOT_EXTRA = frozenset((*_FIELDS, "msg", "args", "exc_info", "message", "processName", "domain", "taskName"))


def levels() -> ConfigureLogging:
    """The levels that this process's loggers were given."""
    loggers = logging.root.manager.loggerDict.copy()  # other threads may be adding to it
    named = {
        plain_text(name): int(logger.level)
        for name, logger in loggers.items()
        if isinstance(logger, logging.Logger) and logger.level
    }
    return ConfigureLogging(int(logging.root.level), named, int(logging.root.manager.disable))


def forward_logs(conversation: Conversation) -> None:
    """In a domain: send log records to the parent, as soon as it has said which levels to log."""

    def configure(message: ConfigureLogging, _: Buffers) -> None:
        logging.root.setLevel(message.root)
        for name, level in message.levels.items():
            logging.getLogger(name).setLevel(level)
        logging.disable(message.disable)
        logging.root.addHandler(_Forwarder(conversation))

    conversation.handle(ConfigureLogging, configure)


def handle_record(domain: str, message: LogRecord, buffers: Buffers, pickling: Pickling) -> None:
    """In the parent: log a record of the domain of this name."""
    attributes: dict[str, Any] = {**dict(zip(_FIELDS, message.fields, strict=True)), "msg": message.text, "args": None}
    attributes["domain"] = attributes["processName"] = message.domain or domain
    if message.extra:
        try:
            attributes.update(pickling.loads(message.extra, buffers))
        except NotPicklable as error:
            attributes["msg"] += f" (its extra attributes are lost: {error})"
    record = logging.makeLogRecord(attributes)
    logger = logging.getLogger(str(record.name))  # it is whatever the record was made with
    try:
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    except Exception:  # a filter that fails is no reason to part with the domain
        _reporter.handleError(record)


_reporter = logging.Handler()
"""Says what goes wrong with a record in the way of all handlers."""


class _Forwarder(logging.Handler):
    """Sends records to the parent. May be called in any thread, and in a plain job.

    What other threads log waits, up to a size, for the loop's next turn, or for what a plain job logs before that.
    """

    def __init__(self, conversation: Conversation) -> None:
        super().__init__()
        self._link = conversation.link
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._process = os.getpid()
        # Not the conversation's, which is for its own thread only, and whose pickles hold on to what they refer to: a
        # record may be dropped.
        self._pickling = Pickling()
        # Not the handler's lock, which a thread has while it asks objects what is to be said of them: they may ask the
        # loop. Again by the same thread, as a signal's handler may log.
        self._lock = threading.RLock()
        self._waiting: list[_Packed] = []  # this and the next two belong to who has that lock
        self._waiting_bytes = 0
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        if os.getpid() != self._process or not self._link.is_open:
            # A process that a job has forked, whose link this is not; or the end of the domain, as exit functions run.
            if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
                logging.lastResort.handle(record)
            return
        try:
            packed = self._pack(record)
            if threading.get_ident() == self._thread:
                if self._waiting:
                    self._send_waiting()
                self._send(packed)
            else:
                self._keep(packed)
        except Exception:
            self.handleError(record)

    def _pack(self, record: logging.LogRecord) -> _Packed:
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        text = plain_text(record.getMessage())
        extra = b""
        buffers: list[bytes] = []
        if more := {name: value for name, value in record.__dict__.items() if name not in _NOT_EXTRA}:
            try:
                payload = self._pickling.dumps(more, "a log record's extra attributes")
            except NotPicklable:
                more = {name: repr(value) for name, value in more.items()}
                payload = self._pickling.dumps(more, "a log record's extra attributes")
            extra, buffers = payload.data, [bytes(byte_view(buffer)) for buffer in payload.buffers]
        fields = [_sendable(getattr(record, name, None)) for name in _FIELDS]
        domain = plain_text(str(getattr(record, "domain", None) or current().name))
        return _Packed(LogRecord(fields, text, domain, extra, len(buffers)), buffers)

    def _keep(self, packed: _Packed) -> None:
        """In another thread: have the loop's thread send this."""
        with self._lock:
            if self._waiting_bytes > _MOST_PENDING_BYTES:
                self._dropped += 1
                return
            self._waiting.append(packed)
            self._waiting_bytes += packed.size_bytes()
            is_first = len(self._waiting) == 1
        if is_first:
            self._loop.call_soon_threadsafe(self._send_waiting)

    def _send_waiting(self) -> None:
        with self._lock:
            waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
            dropped, self._dropped = self._dropped, 0
        for packed in waiting:
            self._send(packed)
        with self._lock:
            self._dropped += dropped  # those came after what waited

    def _send(self, packed: _Packed) -> None:
        link = self._link
        if not link.is_open:
            return
        with self._lock:
            if link.pending_bytes > _MOST_PENDING_BYTES:
                self._dropped += 1
                return
            dropped, self._dropped = self._dropped, 0
        message, buffers = packed
        if dropped:
            message.text += f" (before this, {dropped} records were dropped: more than the parent could read)"
        link.send(message, buffers)
        if asyncio._get_running_loop() is not self._loop:
            link.flush()  # a plain job keeps the loop from its turn, and may be long


class _Packed(NamedTuple):
    """A record as it is sent."""

    message: LogRecord
    buffers: list[bytes]

    def size_bytes(self) -> int:
        """About so much, as it waits."""
        texts = [self.message.text, *(field for field in self.message.fields if isinstance(field, str))]
        return _RECORD_BYTES + sum(map(len, [*texts, self.message.extra, *self.buffers]))


def _sendable(value: object) -> str | int | float | None:
    """A field of a record, whatever it was given: what cannot be sent would take the link, and the domain, along."""
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int) and -MOST_INT < value < MOST_INT:
        return int(value)
    return None if value is None else plain_text(repr(value))
