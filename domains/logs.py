"""Log records made in a domain appear in its parent's logging, as if made there, with the domain's name.

The parent says which levels its loggers have when it starts a domain; there, a handler on the root logger sends what
passes them. In the parent a record is handled by the logger of the same name; its `domain` and `processName` say where
it comes from. Records that come faster than the parent reads are counted and dropped, and the next one says so.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import Any

from domains.conversation import Buffers, Conversation
from domains.errors import NotPicklable
from domains.identity import current
from domains.ipc.pickling import Pickling
from domains.plain_text import plain_text
from domains.protocol import ConfigureLogging, LogRecord
from domains.references.plain import MOST_INT

_MOST_PENDING_BYTES = 4 << 20

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
    logger = logging.getLogger(record.name)
    try:
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    except Exception:  # a filter that fails is no reason to part with the domain
        _reporter.handleError(record)


_reporter = logging.Handler()
"""Says what goes wrong with a record in the way of all handlers."""


class _Forwarder(logging.Handler):
    """Sends records to the parent. May be called in any thread, and in a plain job."""

    def __init__(self, conversation: Conversation) -> None:
        super().__init__()
        self._conversation = conversation
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._process = os.getpid()
        self._pickling_apart = Pickling()
        """For other threads: objects with a home, and what is on its way, are the loop's thread's."""
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        if os.getpid() != self._process:  # a process that a job has forked: the link is not its own
            if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
                logging.lastResort.handle(record)
            return
        try:
            message, buffers = self._pack(record)
            if threading.get_ident() == self._thread:
                self._send(message, buffers)
            else:
                self._loop.call_soon_threadsafe(self._send, message, buffers)
        except Exception:
            self.handleError(record)

    def _pack(self, record: logging.LogRecord) -> tuple[LogRecord, list[Any]]:
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        text = plain_text(record.getMessage())
        pickling = self._conversation.pickling if threading.get_ident() == self._thread else self._pickling_apart
        extra = b""
        buffers: list[Any] = []
        if more := {name: value for name, value in record.__dict__.items() if name not in _NOT_EXTRA}:
            try:
                extra, buffers = pickling.dumps(more, "a log record's extra attributes")[:2]
            except NotPicklable:
                extra = pickling.dumps({name: repr(value) for name, value in more.items()}, "a log record").data
        fields = [_sendable(getattr(record, name, None)) for name in _FIELDS]
        domain = plain_text(str(getattr(record, "domain", None) or current().name))
        return LogRecord(fields, text, domain, extra, len(buffers)), buffers

    def _send(self, message: LogRecord, buffers: list[Any]) -> None:
        link = self._conversation.link
        if not link.is_open:
            return
        if link.pending_bytes > _MOST_PENDING_BYTES:
            self._dropped += 1
            return
        if self._dropped:
            message.text += f" (before this, {self._dropped} records were dropped: more than the parent could read)"
            self._dropped = 0
        self._conversation.send(message, buffers)
        if asyncio._get_running_loop() is not self._loop:
            link.flush()  # a plain job keeps the loop from its turn, and may be long


def _sendable(value: object) -> str | int | float | None:
    """A field of a record, whatever it was given: what cannot be sent would take the link, and the domain, along."""
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int) and -MOST_INT < value < MOST_INT:
        return int(value)
    return None if value is None else plain_text(repr(value))
