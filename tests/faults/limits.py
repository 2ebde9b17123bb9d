"""Limits of a program under test: a file system of its own, capabilities, descriptors, control groups.

Skipped where they are forbidden.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

_GROUPS = Path("/sys/fs/cgroup")


def own_mount(directory: str, options: str) -> tuple[str, ...]:
    """What to prefix a command with that shall see a small file system of its own in that directory."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    script = f'mount -t tmpfs -o "{options}" none "{directory}" && exec "$@"'
    return "unshare", "-m", "sh", "-c", script, "sh"


def without_capabilities(*names: str) -> tuple[str, ...]:
    """What to prefix a command with that shall not be allowed what root is by these capabilities."""
    if os.geteuid() != 0:
        return ()
    prefix = ("setpriv", "--bounding-set=" + ",".join(f"-{name}" for name in names))
    if shutil.which("setpriv") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("capabilities cannot be dropped here")
    return prefix


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    """This process can open nothing, for the length of a block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_free = os.open(os.devnull, os.O_RDONLY)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Group:
    """A control group. Processes join it, and their children are born in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to prefix a command with that shall run in it."""
        return "sh", "-c", f'echo $$ > "{self.path}/cgroup.procs" && exec "$@"', "sh"


@contextlib.contextmanager
def control_group(controller: str) -> Iterator[Group]:
    """A group of that controller alone, for the length of a block; what still runs in it is waited for."""
    path = _GROUPS / controller / f"domains-{uuid.uuid4().hex}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no control group of {controller} can be made here: {error}")
    try:
        yield Group(path)
    finally:
        deadline = time.monotonic() + 5.0
        while path.joinpath("cgroup.procs").read_text().strip() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.rmdir(path)
