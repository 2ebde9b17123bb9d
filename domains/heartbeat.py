"""Notices a domain that is stopped or stuck: asked for a sign of life from time to time, it must give one.

The question is a signal, which Python code answers between any two of its instructions, so a long computation is
alive; a process that was stopped, or a call into C that never comes back, is not. A domain that did not answer writes
the stacks of its threads, where it still can, and is killed; what depended on it gets DomainDied with those stacks.

States: Starting -> Asked -> Asked ... -> Silent -> killed. Belongs to the loop's thread.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

from domains.interruption import INTERRUPT_SIGNAL
from domains.ipc.pulse import AskedPulse, Pulse
from domains.launcher.control import DUMP_SIGNAL

if TYPE_CHECKING:  # a domain imports this file too, and has no handles
    from domains.domain import DomainHandle

STARTING_SECONDS = 30.0
"""How long a domain may take to start, if its heartbeat is not slower than that."""

_DUMPING_SECONDS = 0.25


class Heartbeat:
    """Watches one domain from its start to its end, and kills it when it gives no sign of life for `seconds`."""

    def __init__(self, handle: DomainHandle, pulse: Pulse, seconds: float) -> None:
        self._handle = handle
        self._pulse = pulse
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._born = self._loop.time()
        self._timer = self._loop.call_later(seconds, self._look)
        handle.when_ended(self._ended)

    def _look(self) -> None:
        handle = self._handle
        if not handle.was_ready:
            if self._loop.time() - self._born > max(STARTING_SECONDS, self._seconds):
                handle.kill("it did not start in time")
                return
        elif not self._pulse.is_answered:
            handle.send_signal(DUMP_SIGNAL)
            why = f"it gave no sign of life for {self._seconds:g} s"
            self._timer = self._loop.call_later(_DUMPING_SECONDS, handle.kill, why)
            return
        else:
            self._pulse.ask()
            handle.send_signal(INTERRUPT_SIGNAL)
        self._timer = self._loop.call_later(self._seconds, self._look)

    def _ended(self, handle: DomainHandle) -> None:
        self._timer.cancel()
        self._pulse.close()


def answer_heartbeats(descriptors: Mapping[str, int]) -> None:
    """In a domain: give signs of life from now on, if the parent asks for them. Called after others listen."""
    if "pulse" not in descriptors:
        return
    pulse = AskedPulse(descriptors)
    heard_before: Any = signal.getsignal(INTERRUPT_SIGNAL)

    def on_signal(number: int, frame: FrameType | None) -> None:
        pulse.answer()
        heard_before(number, frame)

    signal.signal(INTERRUPT_SIGNAL, on_signal)
