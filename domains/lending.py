"""Lends a running job's weight back to its domain while it waits for jobs that it has submitted itself.

Without this, jobs that wait for jobs of the same pool would in time hold all its weight, and nothing could go on. The
weight is lent as long as at least one job that was submitted from inside, by any fiber or task of the job, has not
ended. Taking it back never waits: a domain may then run more than its share, and starts nothing new until it does not.
"""

from __future__ import annotations

import contextvars
from typing import Protocol


class Keeper(Protocol):
    """Who keeps account of the weights of a domain's running jobs."""

    def lend(self, job: int, weight: int, /) -> None: ...
    def regain(self, job: int, weight: int, /) -> None: ...


class Loan:
    """The weight of one running job. Kept -> Lent -> Kept ...."""

    __slots__ = ("_keeper", "_pending", "_weight", "job")

    def __init__(self, keeper: Keeper, job: int, weight: int) -> None:
        self._keeper = keeper
        self.job = job
        self._weight = weight
        self._pending = 0

    def submitted(self) -> None:
        """A job was submitted from inside."""
        self._pending += 1
        if self._pending == 1 and self._weight:
            self._keeper.lend(self.job, self._weight)

    def ended(self) -> None:
        """A job that was submitted from inside has ended."""
        self._pending -= 1
        if self._pending == 0 and self._weight:
            self._keeper.regain(self.job, self._weight)


_loan: contextvars.ContextVar[Loan | None] = contextvars.ContextVar("loan", default=None)

current_loan = _loan.get
"""The loan of the job that this code runs in, or None outside of any job's fibers."""

begin = _loan.set
"""Called in a job's own context, before it runs."""
