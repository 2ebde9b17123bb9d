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

_OURS = "domains-*"
"""What the library calls its temporary directories, and its shared memory where that has a name."""

_SHARED_MEMORY = Path("/dev/shm")


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


@pytest.fixture(scope="session", autouse=True)
def a_temporary_directory_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever lies there was made by this process or by those that it started, and not by another run beside it."""
    tmp_path_factory.getbasetemp()  # pytest's own are chosen now, and stay where one looks for them
    with (
        tempfile.TemporaryDirectory(prefix="tests-", dir="/tmp") as path,  # a name short enough for sockets
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TMPDIR", path)
        patch.setattr(tempfile, "tempdir", path)
        yield


@pytest.fixture(scope="session", autouse=True)
def a_light_pytest_for_domains() -> Iterator[None]:
    """They look for modules where this process does; here pytest is loaded already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).with_name("in_domains")))
        yield


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """No process, thread, file descriptor, shared memory or temporary directory of the test outlives it."""
    before = _what_there_is()
    yield
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while left := _what_there_is() - before - _shared_memory_of_live_strangers():
        gc.collect()
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: {', '.join(sorted(str(thing) for thing in left))}")
        time.sleep(0.01)


def _what_there_is() -> set[object]:
    return {*_processes(), *_threads(), *_descriptors(), *_shared_memory(), *_temporary_directories()}


def _processes() -> set[str]:
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.add(f"process {process.pid} ({' '.join(process.cmdline())[:80]})")
    return found


def _threads() -> set[threading.Thread]:
    return set(threading.enumerate())  # themselves, as names and numbers are used again


def _descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:
        with contextlib.suppress(OSError):  # the one that this listing itself had open
            found.add(f"descriptor {name} -> {os.readlink(f'/proc/self/fd/{name}')}")
    return found


def _shared_memory() -> set[str]:
    return {f"shared memory {path}" for path in _SHARED_MEMORY.glob(_OURS)}


def _shared_memory_of_live_strangers() -> set[str]:
    """That of another run beside this one: names hold the maker's process number. A dead one's may be ours."""
    paths = list(_SHARED_MEMORY.glob(_OURS))
    if not paths:
        return set()  # as nearly always: to look at all processes takes long
    ours = {os.getpid(), *(process.pid for process in psutil.Process().children(recursive=True))}
    found = set()
    for path in paths:
        maker = int(path.name.split("-")[1])
        if maker not in ours and psutil.pid_exists(maker):
            found.add(f"shared memory {path}")
    return found


def _temporary_directories() -> set[str]:
    return {f"temporary directory {path}" for path in Path(tempfile.gettempdir()).glob(_OURS)}
