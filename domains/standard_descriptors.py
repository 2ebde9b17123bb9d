"""Descriptors 0 to 2 of a program that was started with some of them closed.

What is opened next would get their numbers: a socket into which C code then writes its messages, or the descriptor of
an event loop, for which uvloop ends the process.
"""

from __future__ import annotations

import contextlib
import os

__all__ = ["open_standard_descriptors"]


def open_standard_descriptors() -> None:
    """Open on the null device those that are closed; child processes inherit them as they do any other's."""
    with contextlib.suppress(OSError):  # no descriptors left, or no null device: whoever needs either says so
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(descriptor, True)
        os.close(descriptor)
