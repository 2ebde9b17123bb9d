"""A progress bar for a pool, drawn by rich, which must be installed (`pip install rich`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from domains.pool.progress import PoolProgress

if TYPE_CHECKING:
    from rich.console import Console

    from domains.pool.executor import ExecutorPool


@contextmanager
def progress_bar(
    pool: ExecutorPool, description: str = "jobs", *, total: int | None = None, console: Console | None = None
) -> Iterator[None]:
    """For the length of a block, show how many jobs, or items of a `map`, of this pool have ended, and at what rate.

    `total` is how many there will be, where that is known; else those count that were submitted so far.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[red]{task.fields[failed]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total, failed="")

        def show(progress: PoolProgress) -> None:
            failed = f"{progress.failed} failed" if progress.failed else ""
            most = total if total is not None else progress.submitted
            bar.update(task, completed=progress.ended, total=most, failed=failed)

        with pool.watch(show):
            yield
