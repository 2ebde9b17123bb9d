"""Our errors as `concurrent.futures` knows them: still what they are, and also what its documentation promises.

Code that was written for a ProcessPoolExecutor so catches BrokenProcessPool and PicklingError as before. But where
there a dead process breaks the pool for good, here only the jobs that it had fail.
"""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from pickle import PicklingError

from domains.errors import DomainDied, DomainsError, DomainUnavailable, NotPicklable

__all__ = ["BrokenPool", "JobDied", "JobNotPicklable", "as_executors_raise"]


class JobDied(DomainDied, BrokenProcessPool):
    """The domain that had this job has ended. Others go on, and a new one takes its place."""


class BrokenPool(DomainUnavailable, BrokenProcessPool):
    """The executor's domains cannot be started: none of its jobs will run."""


class JobNotPicklable(NotPicklable, PicklingError):
    """The job, or what it came to, cannot be pickled."""


_FAMILIAR: dict[type[BaseException], type[DomainsError]] = {
    DomainDied: JobDied,
    DomainUnavailable: BrokenPool,
    NotPicklable: JobNotPicklable,
}


def as_executors_raise(error: BaseException) -> BaseException:
    """The error itself, or in its place one that says the same and is one of `concurrent.futures`' as well."""
    familiar = _FAMILIAR.get(type(error))
    if familiar is None:
        return error
    replacement = familiar(*error.args)
    for note in getattr(error, "__notes__", ()):
        replacement.add_note(note)
    replacement.__cause__ = error.__cause__
    replacement.__context__ = error.__context__
    replacement.__suppress_context__ = error.__suppress_context__
    return replacement.with_traceback(error.__traceback__)
