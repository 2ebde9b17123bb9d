"""The Merkle example against a simple sequential implementation, and in every special case that it names."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import queue
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import domains

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "merkle.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("merkle", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["merkle"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def merkle(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    return load()


def summary_of(merkle: ModuleType, path: Path, count: int = 2, link: str = "auto") -> Any:
    async def main(env: domains.Environment) -> Any:
        return await merkle.merkle(env, str(path), count)

    return domains.run(main, link=link)


def sequential_root(path: bytes) -> bytes:
    """The definition, in as few words as possible; knows files, links and directories only."""
    if os.path.islink(path):
        return hashlib.sha256(b"link\0" + os.readlink(path)).digest()
    if os.path.isfile(path):
        with open(path, "rb") as file:
            return hashlib.sha256(b"file\0" + file.read()).digest()
    return directory({name: sequential_root(os.path.join(path, name)) for name in os.listdir(path)})


def directory(entries: dict[bytes, bytes]) -> bytes:
    """A directory's hash, from those of its entries."""
    text = b"directory\0"
    for name, digest in sorted(entries.items()):
        text += len(name).to_bytes(8, "big") + name + digest
    return hashlib.sha256(text).digest()


def write(path: Path, content: bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for number in range(40):
        write(root / f"d{number % 7}" / f"f{number}", os.urandom(number * 1000))
    write(root / "empty")
    write(root / "big", os.urandom(6_000_000))
    (root / "nothing in it").mkdir()
    (root / "a link").symlink_to("d1/f1")
    (root / "a link to nowhere").symlink_to("nowhere")
    (root / "a loop").symlink_to(".")
    write(root / os.fsdecode(b"not utf-8 \xff"), b"name")
    return root


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_root_is_that_of_the_sequential_implementation(
    merkle: ModuleType, tree: Path, count: int, link: str
) -> None:
    summary = summary_of(merkle, tree, count, link)
    assert summary.root == sequential_root(os.fsencode(tree)).hex()
    assert summary.files == 43
    assert summary.links == 3


def test_a_real_library_has_the_same_root_on_every_run(merkle: ModuleType) -> None:
    path = Path(sysconfig.get_path("stdlib")) / "asyncio"
    roots = {summary_of(merkle, path, count).root for count in (1, 2)}
    assert len(roots) == 1


@pytest.mark.parametrize("change", ["content", "name", "new file", "new directory", "link target"])
def test_every_change_changes_the_root(merkle: ModuleType, tree: Path, change: str) -> None:
    before = summary_of(merkle, tree).root
    if change == "content":
        write(tree / "d1" / "f1", b"changed")
    elif change == "name":
        (tree / "d1" / "f1").rename(tree / "d1" / "g1")
    elif change == "new file":
        write(tree / "new")
    elif change == "new directory":
        (tree / "new").mkdir()
    else:
        (tree / "a link").unlink()
        (tree / "a link").symlink_to("d2/f2")
    assert summary_of(merkle, tree).root != before


def test_sockets_and_fifos_are_counted_and_not_opened(merkle: ModuleType, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        assert summary_of(merkle, tmp_path).others == 2


def bind_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


@pytest.mark.parametrize("make", [os.mkfifo, bind_socket])
def test_what_takes_a_files_place_and_is_none_is_counted(
    merkle: ModuleType, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "entry")
    expected = summary_of(merkle, tmp_path).root
    (tmp_path / "entry").unlink()
    write(tmp_path / "entry", b"content")

    def replace() -> None:
        (tmp_path / "entry").unlink()
        make(tmp_path / "entry")

    once_listed(merkle, replace)
    summary = summary_of(merkle, tmp_path)
    assert summary.root == expected
    assert (summary.files, summary.others, summary.unreadable) == (0, 1, 0)


def test_a_directory_that_takes_a_files_place_is_counted(merkle: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "entry", b"content")

    def replace() -> None:
        (tmp_path / "entry").unlink()
        (tmp_path / "entry").mkdir()

    once_listed(merkle, replace)
    summary = summary_of(merkle, tmp_path)
    assert (summary.files, summary.unreadable) == (0, 1)
    assert merkle.hash_file(bytes(tmp_path / "entry")) == (merkle.UNREADABLE, 0)  # and leaves no descriptor here


def once_listed(merkle: ModuleType, change: Callable[[], object]) -> None:
    """Let the tree change after it was listed, and before its files are read."""
    list_tree = merkle.list_tree

    def list_and_change(path: bytes, counts: Any, files: list[Any]) -> Any:
        listed = list_tree(path, counts, files)
        change()
        return listed

    merkle.list_tree = list_and_change


def test_a_file_that_may_not_be_read_is_counted(merkle: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "file", b"content")
    write(tmp_path / "secret", b"content")

    def refuse() -> None:
        """Root may read every file, but a link that took a file's place is not followed for root either."""
        (tmp_path / "secret").unlink()
        (tmp_path / "secret").symlink_to("file")

    once_listed(merkle, refuse)
    summary = summary_of(merkle, tmp_path)
    assert (summary.files, summary.unreadable) == (1, 1)
    unreadable = hashlib.sha256(b"unreadable\0").digest()
    assert summary.root == directory({b"file": sequential_root(bytes(tmp_path / "file")), b"secret": unreadable}).hex()


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Callable[[list[str]], Path]]:
    """Makes directories, each in the one before; takes them away from below, as deep as they are."""
    made = [tmp_path]

    def make(names: list[str]) -> Path:
        for name in names:
            made.append(made[-1] / name)
            made[-1].mkdir()
        return made[-1]

    yield make
    for path in reversed(made[1:]):
        path.rmdir()


def test_what_cannot_be_looked_at_is_counted(
    merkle: ModuleType, tmp_path: Path, deep: Callable[[list[str]], Path]
) -> None:
    """The directory can be listed; its entry has a path too long for the system, and no name hides from root."""
    room = os.pathconf(tmp_path, "PC_PATH_MAX") - len("/\0") - len(bytes(tmp_path))
    names = ["d" * 99] * (room // 100 - 1)
    path = deep([*names, "e" * (99 + room % 100)])
    inside = os.open(path, os.O_RDONLY)
    os.mkdir("out of reach", dir_fd=inside)
    try:
        summary = summary_of(merkle, tmp_path)
    finally:
        os.rmdir("out of reach", dir_fd=inside)
        os.close(inside)
    assert (summary.directories, summary.unreadable) == (len(names) + 2, 1)


def test_directories_may_be_nested_deeper_than_calls(
    merkle: ModuleType, tmp_path: Path, deep: Callable[[list[str]], Path]
) -> None:
    deep(["d"] * 1200)
    expected = directory({})
    for _ in range(1200):
        expected = directory({b"d": expected})
    summary = summary_of(merkle, tmp_path)
    assert summary.root == expected.hex()
    assert summary.directories == 1201


def test_a_file_that_vanishes_is_as_if_it_had_never_been(merkle: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "stays", b"content")
    expected = summary_of(merkle, tmp_path).root
    write(tmp_path / "vanishes", b"content")
    once_listed(merkle, (tmp_path / "vanishes").unlink)
    summary = summary_of(merkle, tmp_path)
    assert summary.root == expected
    assert summary.vanished == 1


@pytest.mark.parametrize("instead", ["nothing", "a file", "a link"])
def test_a_directory_that_vanishes_is_as_if_it_had_never_been(
    merkle: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instead: str
) -> None:
    write(tmp_path / "tree" / "stays" / "file", b"content")
    write(tmp_path / "elsewhere" / "file", b"content")
    expected = summary_of(merkle, tmp_path / "tree").root
    vanishes = tmp_path / "tree" / "vanishes"
    vanishes.mkdir()
    real_open = os.open

    def vanish_first(path: bytes, *arguments: Any, **keywords: Any) -> int:
        if path == bytes(vanishes):
            vanishes.rmdir()
            if instead == "a file":
                vanishes.touch()
            elif instead == "a link":
                vanishes.symlink_to("../elsewhere")
        return real_open(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", vanish_first)
    summary = summary_of(merkle, tmp_path / "tree")
    assert summary.root == expected
    assert (summary.directories, summary.unreadable, summary.vanished) == (2, 0, 1)


def test_the_files_of_a_directory_that_a_file_replaces_have_vanished(merkle: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "directory" / "file", b"content")

    def replace() -> None:
        (tmp_path / "directory" / "file").unlink()
        (tmp_path / "directory").rmdir()
        (tmp_path / "directory").touch()

    once_listed(merkle, replace)
    summary = summary_of(merkle, tmp_path)
    assert (summary.files, summary.unreadable, summary.vanished) == (0, 0, 1)


LEASE = """
import fcntl, os, signal, sys
file = os.open(sys.argv[1], os.O_RDWR)
signal.signal(signal.SIGIO, lambda *_: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK))
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("leased", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="leases are Linux's")
def test_a_file_that_a_file_server_has_a_lease_on_is_read(merkle: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "file", b"content")
    command = [sys.executable, "-c", LEASE, str(tmp_path / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"leased\n"
        assert merkle.hash_file(bytes(tmp_path / "file")) == (sequential_root(bytes(tmp_path / "file")), 7)


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_it_runs_as_a_program(tree: Path) -> None:
    done = run_program(str(tree), "--domains", "2")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["root", sequential_root(os.fsencode(tree)).hex()]
    assert lines[1].endswith("43 files, 6.8 MB, 9 directories")
    assert lines[2].endswith("3 links, 0 others (sockets, FIFOs, devices), 0 unreadable")
    assert lines[3].split() == ["left", "out", "0", "vanished"]
    assert "s with 2 domains, " in lines[4]
    assert lines[4].endswith("s with one")
    assert lines[5].startswith("speed-up")


def test_it_runs_as_a_program_with_one_domain(tmp_path: Path) -> None:
    write(tmp_path / "file")
    (tmp_path / "link").symlink_to("file")
    done = run_program(str(tmp_path), "--domains", "1")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[1].endswith("1 file, 0.0 MB, 1 directory")
    assert lines[2].endswith("1 link, 0 others (sockets, FIFOs, devices), 0 unreadable")
    assert lines[4].endswith("s with 1 domain")


def test_ctrl_c_is_heard_while_everything_is_read(tmp_path: Path) -> None:
    with open(tmp_path / "endless", "wb") as file:
        file.truncate(1 << 40)
    with subprocess.Popen(
        [sys.executable, str(EXAMPLE), str(tmp_path)], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as program:
        assert program.stderr is not None
        try:
            assert program.stderr.readline().startswith("Reading everything")
            os.killpg(program.pid, signal.SIGINT)
            _, errors = program.communicate(timeout=20)
        finally:
            program.kill()
    assert program.returncode == 130
    assert errors.splitlines()[-1] == "Interrupted."
    assert "Traceback" not in errors


def test_listing_can_be_cancelled(merkle: ModuleType, tmp_path: Path) -> None:
    listing, cancelled = threading.Event(), threading.Event()
    heard: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def wait() -> None:
        listing.set()
        heard.put(cancelled.wait(10))

    once_listed(merkle, wait)

    async def main(env: domains.Environment) -> None:
        async with domains.Switch() as switch:
            switch.fork(merkle.merkle, env, str(tmp_path), 2)
            await domains.run_in_thread(listing.wait, 10)
            switch.cancel()
        cancelled.set()

    domains.run(main)
    assert heard.get(timeout=10)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["/nowhere at all"], "/nowhere at all: No such file or directory"),
        ([str(EXAMPLE)], f"{EXAMPLE} is not a directory"),
        ([".", "--domains", "0"], "--domains must be from 1 to 1000"),
        ([".", "--domains", "100000000000000000000"], "--domains must be from 1 to 1000"),
        ([".", "--domains", "many"], "invalid int value: 'many'"),
    ],
)
def test_wrong_arguments_are_explained(arguments: list[str], says: str) -> None:
    done = run_program(*arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("merkle.py: error: ")
    assert done.stderr.endswith(f"{says}\n")
