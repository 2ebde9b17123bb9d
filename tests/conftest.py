"""What every test gets: the kinds of link, and the check that nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from domains.scheduler.run import new_event_loop

_PATIENCE_SECONDS = 5.0
"""What a test has ended may take so long to disappear, on a machine that is busy with other tests."""

_OURS_IN_TMP = "domains-"


def pytest_collection_finish() -> None:
    """What is here now stays: no collection of garbage need look at it, and the tests make many."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["socketpair", "zmq"])
def link(request: pytest.FixtureRequest) -> str:
    """Each kind of link between a parent and its domains."""
    return str(request.param)


@pytest.fixture(scope="session", autouse=True)
def what_libraries_open_once() -> None:
    """libuv keeps a pipe for signals from its first loop on, for the life of the process."""
    new_event_loop().close()


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """No process, thread, file descriptor, shared memory or temporary directory of the test outlives it."""
    before = _what_there_is()
    yield
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while left := _what_there_is() - before:
        gc.collect()
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: {', '.join(sorted(left))}")
        time.sleep(0.01)


def _what_there_is() -> set[str]:
    return _processes() | _threads() | _descriptors() | _shared_memory() | _temporary_directories()


def _processes() -> set[str]:
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.add(f"process {process.pid} ({' '.join(process.cmdline())[:80]})")
    return found


def _threads() -> set[str]:
    return {f"thread {thread.name}" for thread in threading.enumerate()}


def _descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:
        with contextlib.suppress(OSError):  # the one that this listing itself had open
            found.add(f"descriptor {name} -> {os.readlink(f'/proc/self/fd/{name}')}")
    return found


def _shared_memory() -> set[str]:
    """Of this user, by processes that live no more or are ours: names hold the maker's process number."""
    shared = Path("/dev/shm")
    return {f"shared memory {path}" for path in shared.glob(f"domains-{os.getpid()}-*")} if shared.is_dir() else set()


def _temporary_directories() -> set[str]:
    found = set()
    for path in Path(tempfile.gettempdir()).glob(f"{_OURS_IN_TMP}{os.getpid()}-*"):
        found.add(f"temporary directory {path}")
    return found
