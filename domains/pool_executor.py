"""An executor pool for programs with no event loop: a `concurrent.futures.Executor` that brings its own.

The loop runs in a thread of its own, from the first `submit` until the executor is shut down, is no longer referred
to, or the interpreter exits; then what was submitted ends first, and the thread, the domains and the launcher are
gone. The thread knows the executor only weakly.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  # uvloop needs it, and at the interpreter's exit it cannot be imported
import contextlib
import itertools
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, ParamSpec, TypeVar

from domains.cores import recommended_domain_count
from domains.errors import DomainUnavailable
from domains.held_interrupts import interrupts_held
from domains.pool.checks import MOST_DOMAINS, checked_weight
from domains.pool.executor_errors import BrokenPool
from domains.pool.face import ExecutorFace
from domains.pool.inbox import Inbox
from domains.scheduler.promise import Promise, Resolver
from domains.start import run

if TYPE_CHECKING:
    from domains.env import Environment

P = ParamSpec("P")
T = TypeVar("T")

_LONGEST_SLEEP_SECONDS = 0.2

_numbers = itertools.count()
_running: set[_PoolThread] = set()
_interpreter_exits = False


class _Options(NamedTuple):
    max_workers: int
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    max_tasks_per_child: int | None


class _PoolThread:
    """A program in a thread of its own that keeps a pool open until it is told to close it, and then lets it end."""

    def __init__(self, inbox: Inbox, options: _Options) -> None:
        self._inbox = inbox
        self._options = options
        self._closing: Resolver[None] | None = None
        self._runs = threading.Lock()
        self._runs.acquire()  # until it has ended
        self._thread = threading.Thread(target=self._run, name=f"domains-pool-executor-{next(_numbers)}")

    def start(self) -> None:
        _running.add(self)
        try:
            self._thread.start()
        except BaseException:
            _running.discard(self)
            raise

    def close(self) -> None:
        """Let what was submitted end, then the pool. For any thread, and for the garbage collector."""
        self._inbox.do(self._close)

    def cancel_all(self) -> None:
        """Cancel what was submitted so far, where it runs too. For any thread."""
        self._inbox.cancel_all()

    def join(self) -> None:
        # An interrupted `Thread.join` takes the thread for one that has ended, before Python 3.13. And a signal that
        # comes just before this thread falls asleep, or that another one takes, is heard only when it wakes.
        while self in _running:
            if self._runs.acquire(timeout=_LONGEST_SLEEP_SECONDS):
                self._runs.release()
        self._thread.join()

    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def _close(self) -> None:
        if self._closing is not None:
            self._closing.try_resolve(None)

    def _run(self) -> None:
        why: BaseException = RuntimeError("cannot schedule new futures after shutdown")
        try:
            run(self._keep_open)
        except BaseException as error:
            why = DomainUnavailable(f"the executor's pool could not be run: {type(error).__name__}: {error}")
            why.__cause__ = error
        finally:
            try:
                self._inbox.refuse(why)
            finally:
                _running.discard(self)
                self._runs.release()

    async def _keep_open(self, env: Environment) -> None:
        from domains.pool.executor import ExecutorPool

        told, self._closing = Promise[None].create("the shutdown of an executor")
        options = self._options
        pool = ExecutorPool(
            env.domain_mgr,
            domain_count=options.max_workers,
            initializer=options.initializer,
            initargs=options.initargs,
            max_jobs=options.max_tasks_per_child,
        )
        async with pool:
            self._inbox.open(pool)
            await told


class PoolExecutor(ExecutorFace):
    """Runs calls in domains: what `concurrent.futures.ProcessPoolExecutor` does, and takes, by our pool.

    There are `max_workers` domains, by default as many as this process may use cores; each calls
    `initializer(*initargs)` before its first job, and is replaced after `max_tasks_per_child` jobs. They start with the
    first `submit`. Every job has this `weight`, the share of a core that it is expected to use: of those with less
    than 1.0, several run at a time in a domain if they are `async`. As a context manager it waits for what was
    submitted; if the block is left by KeyboardInterrupt, or any other BaseException that is no Exception, it cancels
    that first, and so does a program that KeyboardInterrupt ends, or that waits for it at its exit.

    Domains are forked from a process that knows nothing of this one, so an `mp_context` that forks is refused with
    ValueError, and any other makes no difference. Raises ValueError and TypeError for arguments that make no sense.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        weight: float = 1.0,
    ) -> None:
        self._max_workers = recommended_domain_count() if max_workers is None else _checked_workers(max_workers)
        if mp_context is not None and mp_context.get_start_method(allow_none=False) == "fork":
            raise ValueError(
                "mp_context must not be one that forks: domains do not inherit this process's memory; "
                "hand them what they need as arguments, or by an initializer"
            )
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if type(max_tasks_per_child) is not int:
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        super().__init__(Inbox(checked_weight(weight)))
        self._options = _Options(self._max_workers, initializer, tuple(initargs), max_tasks_per_child)
        self._thread: _PoolThread | None = None
        self._process = os.getpid()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        if self._process != os.getpid():
            raise BrokenPool(
                f"this executor belongs to process {self._process}, from which process {os.getpid()} was forked: "
                "make one here"
            )
        return super().submit(fn, *args, **kwargs)

    submit.__doc__ = ExecutorFace.submit.__doc__

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept nothing more, let the rest end, then the domains; with `wait`, return when they have.

        With `cancel_futures`, what no domain has begun is cancelled. Called in a future's callback, it does not wait.
        """
        if self._process != os.getpid():
            return
        with self._lock:
            self._is_shut_down = True
            thread = self._thread
        if thread is None:
            return
        if cancel_futures:
            self._inbox.cancel_those_not_begun()
        thread.close()
        if wait and not thread.is_current():
            thread.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            try:
                self.shutdown()
            except BaseException:  # Ctrl-C as it waits leaves the block too
                self._cancel_and_shut_down()
                raise
        else:
            self._cancel_and_shut_down()

    def _cancel_and_shut_down(self) -> None:
        if self._process == os.getpid():
            self._inbox.cancel_all()
        self.shutdown()

    def _check_open(self) -> None:
        super()._check_open()
        if _interpreter_exits:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self._thread is None:
            with interrupts_held():  # or nobody would have the thread that was started, to close it
                thread = _PoolThread(self._inbox, self._options)
                thread.start()
                self._thread = thread
                finalizer = weakref.finalize(self, _close_unused, thread, self._process)
                finalizer.atexit = False  # `_let_all_end` is in time


def _close_unused(thread: _PoolThread, process: int) -> None:
    if process == os.getpid():
        thread.close()


def _checked_workers(max_workers: object) -> int:
    if type(max_workers) is not int:
        raise TypeError(f"max_workers must be an int, not {type(max_workers).__name__} {max_workers!r}")
    if max_workers <= 0:
        raise ValueError("max_workers must be greater than 0")
    if max_workers > MOST_DOMAINS:
        raise ValueError(f"max_workers must be at most {MOST_DOMAINS}, but is {max_workers}")
    return max_workers


def _let_all_end() -> None:
    """When the main thread has ended: let everything that was submitted end, as `concurrent.futures` does.

    Ctrl-C cancels it, whether the main thread has ended by that or it comes meanwhile: the jobs are not among those
    whom a terminal tells of it. One more ends the program at once.
    """
    global _interpreter_exits
    _interpreter_exits = True
    was_interrupted = isinstance(getattr(sys, "last_value", None), KeyboardInterrupt) and not hasattr(sys, "ps1")
    if not was_interrupted:
        try:
            _close_and_join_all()
        except KeyboardInterrupt:
            was_interrupted = True
            atexit.register(_end_as_interrupted)
    if was_interrupted and _running:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            with contextlib.suppress(ValueError):  # not the main thread, where an interpreter is embedded
                signal.signal(signal.SIGINT, _end_at_once)
        for thread in list(_running):
            thread.cancel_all()
        _close_and_join_all()


def _close_and_join_all() -> None:
    for thread in list(_running):
        thread.close()
    for thread in list(_running):
        thread.join()


def _end_as_interrupted() -> None:
    """As Python ends a program that KeyboardInterrupt has left, which it does not do for one that comes so late."""
    atexit.unregister(_end_as_interrupted)
    with contextlib.suppress(Exception):  # a program may have set its own
        sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    atexit._run_exitfuncs()  # this one was registered last, and so is called before the others
    for stream in sys.stdout, sys.stderr:
        with contextlib.suppress(Exception):  # None, closed, or nobody reads it
            stream.flush()
    _end_at_once()


def _end_at_once(*_: object) -> NoReturn:
    """By the signal of Ctrl-C, so that whoever waits for this process sees that; a shell shows it as 130."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    os._exit(128 + signal.SIGINT)  # the first process of a container does not die of it


def _forget_all() -> None:
    """In a forked child: the threads are the parent's, and so is what they talk to."""
    _running.clear()


with contextlib.suppress(AttributeError):  # it is not documented; without it the threads are joined, but not told
    threading._register_atexit(_let_all_end)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_forget_all)
