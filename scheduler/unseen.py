"""Promises that failed, and the failures of which nobody may ever look at: those are logged when their switch ends."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from domains.scheduler.promise import Promise

if TYPE_CHECKING:
    from domains.scheduler.switch import Switch

__all__ = ["UnseenFailures"]

_log = logging.getLogger("domains")
_SWEEP_AT_LEAST = 64


class UnseenFailures:
    """Those of one switch. Now and then those that somebody has seen are swept out, so that it stays small."""

    __slots__ = ("_promises", "_sweep_at")

    def __init__(self) -> None:
        self._promises: list[Promise[Any]] = []
        self._sweep_at = _SWEEP_AT_LEAST

    def add(self, promise: Promise[Any]) -> None:
        self._promises.append(promise)
        if len(self._promises) >= self._sweep_at:
            self._promises = [promise for promise in self._promises if not promise.was_seen]
            self._sweep_at = max(2 * len(self._promises), _SWEEP_AT_LEAST)

    def log(self, switch: Switch) -> None:
        for promise in self._promises:
            if not promise.was_seen:
                result = promise._result
                _log.error(
                    "%r failed, and nobody has looked at it before %r ended",
                    promise,
                    switch,
                    exc_info=getattr(result, "error", None),
                )
