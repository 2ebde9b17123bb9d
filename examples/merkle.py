"""Hash a directory tree into one Merkle root, with the files spread over all cores.

    python examples/merkle.py PATH [--domains N]

The root stands for the names, kinds and contents of everything below PATH:

- a file's hash is SHA-256 of b"file\\0" and its contents;
- a symbolic link's is SHA-256 of b"link\\0" and its target as bytes; links are never followed, so there are no loops;
- anything else that can be named but not read as a file (a socket, a FIFO, a device) is SHA-256 of b"other\\0";
- what may not be read (permissions, input/output errors) is SHA-256 of b"unreadable\\0";
- a directory's is SHA-256 of b"directory\\0" and, for each entry in the order of the names' bytes, the length of the
  name (8 bytes, big endian), the name, and the entry's 32-byte hash;
- what vanishes, file or directory, after the directory that it is in was listed is left out, as if it had been gone
  before.

Owners, times and permissions do not count. Everything but plain files is counted in the summary.
"""

from __future__ import annotations

import argparse
import errno
import functools
import hashlib
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

import domains

PIECE_BYTES = 1 << 20
GROUP_BYTES = 4 << 20
"""Small files are hashed together until they make up so much: a job should be long against its sending."""

GROUP_FILES = 256

MOST_DOMAINS = 1000
"""Each is a process: a typing error should not start as many as the system has."""


class Tree(NamedTuple):
    """A directory as it was listed: its entries by name; files to hash are None until they are."""

    entries: Entries


Entries = dict[bytes, Tree | bytes | None]


class File(NamedTuple):
    path: bytes
    size: int


class Summary(NamedTuple):
    """The root, and what was met on the way to it."""

    root: str
    files: int
    bytes_read: int
    directories: int
    links: int
    others: int
    unreadable: int
    vanished: int


class Counts:
    def __init__(self) -> None:
        self.files = self.bytes_read = self.directories = self.links = self.others = 0
        self.unreadable = self.vanished = 0


UNREADABLE = hashlib.sha256(b"unreadable\0").digest()
OTHER = hashlib.sha256(b"other\0").digest()

NO_FILE = (errno.ENXIO, errno.EOPNOTSUPP)
"""What opening a socket says: the one on Linux, the other elsewhere."""

VANISHED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""What opening a directory says that is no more: nothing, a file or a link may stand in its place."""


def list_tree(top: bytes, counts: Counts, files: list[File]) -> Tree | bytes:
    """List a directory and all below it; appends the files that are to be hashed."""
    above: Entries = {}
    # Directories may be nested deeper than calls: this is those still to be listed, each with where it belongs.
    waiting = [(above, top, top)]
    while waiting:
        siblings, name, path = waiting.pop()
        try:
            # The top may be a link, but no other directory: one that is has taken the place of what was listed.
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | (0 if siblings is above else os.O_NOFOLLOW))
        except OSError as error:
            if siblings is not above and error.errno in VANISHED:
                counts.vanished += 1
            else:
                siblings[name] = UNREADABLE
                counts.unreadable += 1
            continue
        try:
            found: Entries = {}
            for name_below in list_directory(descriptor, path, found, counts, files):
                waiting.append((found, name_below, os.path.join(path, name_below)))
            siblings[name] = Tree(found)
            counts.directories += 1
        except OSError:
            siblings[name] = UNREADABLE
            counts.unreadable += 1
        finally:
            os.close(descriptor)
    tree = above[top]
    assert tree is not None
    return tree


def list_directory(descriptor: int, path: bytes, found: Entries, counts: Counts, files: list[File]) -> list[bytes]:
    """Put what is in an open directory into `found`, but for directories, whose names are returned."""
    with os.scandir(descriptor) as listing:
        entries = list(listing)
    directories = []
    for entry in entries:
        name = os.fsencode(entry.name)
        try:
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                directories.append(name)
            elif stat.S_ISREG(status.st_mode):
                found[name] = None
                files.append(File(os.path.join(path, name), status.st_size))
            elif stat.S_ISLNK(status.st_mode):
                found[name] = hashlib.sha256(b"link\0" + os.readlink(name, dir_fd=descriptor)).digest()
                counts.links += 1
            else:
                found[name] = OTHER
                counts.others += 1
        except FileNotFoundError:
            counts.vanished += 1
        except OSError:
            found[name] = UNREADABLE
            counts.unreadable += 1
    return directories


def hash_file(path: bytes) -> tuple[bytes | None, int]:
    """A file's hash and how much was read: None for one that has vanished, UNREADABLE for one that refuses.

    For what took its place after it was listed: OTHER for a socket, a FIFO or a device, else UNREADABLE.
    """
    hasher = hashlib.sha256(b"file\0")
    read = 0
    try:
        with open(path, "rb", buffering=0, opener=open_itself) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return OTHER, 0
            while piece := file.read(PIECE_BYTES):
                hasher.update(piece)
                read += len(piece)
    except (FileNotFoundError, NotADirectoryError):
        return None, 0
    except OSError as error:
        return (OTHER if error.errno in NO_FILE else UNREADABLE), read
    return hasher.digest(), read


def open_itself(path: str | bytes, flags: int) -> int:
    """Not what a link leads to, and without waiting, should it be a FIFO, for somebody to write to it."""
    try:
        return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)
    except BlockingIOError:  # it is a file on which somebody has a lease, who is asked for it now
        return os.open(path, flags | os.O_NOFOLLOW)


def hash_files(paths: list[bytes]) -> list[tuple[bytes | None, int]]:
    """The job: several files, one after another."""
    return [hash_file(path) for path in paths]


def groups_of(files: list[File]) -> Iterator[list[File]]:
    """The files in groups of about the same amount of work, the large ones first."""
    group: list[File] = []
    size = 0
    for file in sorted(files, key=lambda file: -file.size):
        group.append(file)
        size += file.size
        if size >= GROUP_BYTES or len(group) >= GROUP_FILES:
            yield group
            group, size = [], 0
    if group:
        yield group


def root_of(tree: Tree | bytes, path: bytes, hashes: dict[bytes, bytes | None]) -> bytes:
    """The hash of the directory at `path`, from those of everything below it; adds those of its directories."""
    if isinstance(tree, bytes):
        return tree
    outer_first = []
    waiting = [(path, tree)]
    while waiting:
        outer, tree = waiting.pop()
        outer_first.append((outer, tree))
        below = [(name, entry) for name, entry in tree.entries.items() if isinstance(entry, Tree)]
        waiting += [(os.path.join(outer, name), entry) for name, entry in below]
    for outer, tree in reversed(outer_first):
        hasher = hashlib.sha256(b"directory\0")
        for name in sorted(tree.entries):
            entry = tree.entries[name]
            digest = entry if isinstance(entry, bytes) else hashes[os.path.join(outer, name)]
            if digest is not None:
                hasher.update(len(name).to_bytes(8, "big") + name + digest)
        hashes[outer] = hasher.digest()
    return hasher.digest()  # the last of them is at the top


async def merkle(
    env: domains.Environment, path: str, count: int, tell: Callable[[int, int], None] = lambda done, total: None
) -> Summary:
    """The Merkle root of the tree at `path`, hashed by `count` domains; `tell(done, total)` hears of bytes."""
    counts = Counts()
    files: list[File] = []
    top = os.fsencode(path)
    tree = await domains.run_in_thread(list_tree, top, counts, files, cancellable=True)
    total = sum(file.size for file in files)
    hashes: dict[bytes, bytes | None] = {}
    done = 0
    async with domains.ExecutorPool(env.domain_mgr, domain_count=count) as pool, domains.Switch("hashing") as switch:
        groups = list(groups_of(files))
        jobs = [pool.submit_fork(switch, hash_files, [file.path for file in group], weight=1.0) for group in groups]
        for group, job in zip(groups, jobs, strict=True):
            for file, (digest, read) in zip(group, await job, strict=True):
                hashes[file.path] = digest
                counts.bytes_read += read
                counts.files += digest not in (None, UNREADABLE, OTHER)
                counts.others += digest == OTHER
                counts.vanished += digest is None
                counts.unreadable += digest == UNREADABLE
                done += file.size
            tell(done, total)
    root = root_of(tree, top, hashes).hex()
    return Summary(
        root,
        counts.files,
        counts.bytes_read,
        counts.directories,
        counts.links,
        counts.others,
        counts.unreadable,
        counts.vanished,
    )


async def timed(env: domains.Environment, path: str, count: int, console: Console) -> tuple[Summary, float]:
    columns = ("[progress.description]{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(counted(count, "domain", "domains"), total=None)
        started = time.perf_counter()
        summary = await merkle(env, path, count, lambda done, total: progress.update(task, completed=done, total=total))
        return summary, time.perf_counter() - started


def counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Hash a directory tree into one Merkle root, on all cores.")
    parser.add_argument("path")
    parser.add_argument("--domains", type=int, default=domains.recommended_domain_count(), metavar="N")
    options = parser.parse_args()
    if not 1 <= options.domains <= MOST_DOMAINS:
        parser.error(f"--domains must be from 1 to {MOST_DOMAINS}")
    try:
        is_directory = stat.S_ISDIR(os.stat(options.path).st_mode)
    except OSError as error:
        parser.error(f"{options.path}: {error.strerror}")
    if not is_directory:
        parser.error(f"{options.path} is not a directory")
    return options


async def main(env: domains.Environment, options: argparse.Namespace) -> int:
    console = Console(stderr=True)
    # Both measured runs find the files in the page cache: the first one that reads them does not count.
    console.print("Reading everything once, so that the figures are about hashing and not about the disk.")
    await read_all(os.fsencode(options.path))
    alone, alone_seconds = await timed(env, options.path, 1, console)
    summary, seconds = (alone, alone_seconds)
    if options.domains > 1:
        summary, seconds = await timed(env, options.path, options.domains, console)
    print(f"root        {summary.root}")
    files = counted(summary.files, "file", "files")
    directories = counted(summary.directories, "directory", "directories")
    links = counted(summary.links, "link", "links")
    others = counted(summary.others, "other", "others")
    print(f"read        {files}, {summary.bytes_read / 1e6:.1f} MB, {directories}")
    print(f"special     {links}, {others} (sockets, FIFOs, devices), {summary.unreadable} unreadable")
    print(f"left out    {summary.vanished} vanished")
    compared = f", {alone_seconds:.2f} s with one" if options.domains > 1 else ""
    print(f"time        {seconds:.2f} s with {counted(options.domains, 'domain', 'domains')}{compared}")
    print(f"speed-up    {alone_seconds / seconds:.2f} x, {summary.bytes_read / seconds / 1e6:.0f} MB/s")
    if alone.root != summary.root:
        print("The tree has changed between the two runs: the roots differ.", file=sys.stderr)
        return 1
    return 0


async def read_all(path: bytes) -> None:
    """Read every file once; cancelling ends it at once, though a thread may read its group of files to the end."""
    files: list[File] = []
    await domains.run_in_thread(list_tree, path, Counts(), files, cancellable=True)
    for group in groups_of(files):
        await domains.run_in_thread(hash_files, [file.path for file in group], cancellable=True)


if __name__ == "__main__":
    try:
        sys.exit(domains.run(functools.partial(main, options=parse_arguments())))
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
