"""Values that belong to a fiber and the fibers that it forks."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Generic, TypeVar

__all__ = ["FiberLocal"]

T = TypeVar("T")


class FiberLocal(Generic[T]):
    """A variable with a value per fiber; a forked fiber begins with the value that it had at the fork.

    It is a context variable with a default and a block in which it is bound; changes never flow back from a fiber.
    """

    __slots__ = ("_variable",)

    def __init__(self, label: str, default: T) -> None:
        self._variable = contextvars.ContextVar(label, default=default)

    @property
    def label(self) -> str:
        return self._variable.name

    def get(self) -> T:
        """The value in this fiber."""
        return self._variable.get()

    def set(self, value: T) -> None:
        """Change the value for this fiber, and for those that it forks from now on."""
        self._variable.set(value)

    @contextlib.contextmanager
    def bound(self, value: T) -> Iterator[None]:
        """Inside the block the value is this one, for this fiber and those forked there."""
        token = self._variable.set(value)
        try:
            yield
        finally:
            self._variable.reset(token)
