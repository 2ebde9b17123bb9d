"""python -m benchmarks.scheduler [--quick] [--only WORD] [--json FILE]: the local scheduler beside its peers.

The exit status is 1 if a target is missed; a quick run, which is there to see that it works, has no opinion.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.scheduler import sleepers
from benchmarks.scheduler.contests import CONTESTS, LOOPS, OURS, Result, measure

MEMORY_TARGET = 1.5
"""Bytes of a fiber asleep, in those of an asyncio task."""
LINEAR = 1.5
"""Cancelling one of many may cost so many times what it costs when there are a quarter of them."""


def table_of(results: list[Result]) -> Table:
    table = Table(title="nanoseconds of CPU time for one operation, best of several rounds", title_justify="left")
    table.add_column("")
    table.add_column("loop")
    for party in (OURS, "asyncio", "anyio", "trio"):
        table.add_column(party, justify="right")
    table.add_column("target")
    table.add_column("is", justify="right")
    table.add_column("reached")
    for result in results:
        targets = result.contest.targets
        table.add_row(
            result.contest.name,
            result.loop,
            *(f"{figure:.0f}" for figure in result.figures.values()),
            "\n".join(f"{target} x {peer}" for peer, target in targets.items()),
            "\n".join(f"{result.ratio(peer):.2f}" for peer in targets),
            "\n".join("yes" if result.ratio(peer) <= target else "NO" for peer, target in targets.items()),
        )
    return table


def measure_sleepers(loop: str, count: int) -> dict[str, Any]:
    few = {party: sleepers.measure(party, loop, count // 4) for party in sleepers.PARTIES}
    many = {party: sleepers.measure(party, loop, count) for party in sleepers.PARTIES}
    memory_ratio = many[OURS].bytes / many["asyncio"].bytes
    growth = {party: many[party].cancel_nanoseconds / few[party].cancel_nanoseconds for party in sleepers.PARTIES}
    return {
        "loop": loop,
        "count": count,
        "bytes": {party: many[party].bytes for party in sleepers.PARTIES},
        "bytes_ratio": memory_ratio,
        "cancel_nanoseconds": {party: many[party].cancel_nanoseconds for party in sleepers.PARTIES},
        "cancel_growth": growth,
        "is_reached": memory_ratio <= MEMORY_TARGET and growth[OURS] <= LINEAR,
    }


def sleepers_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="fibers asleep at once, per fiber", title_justify="left")
    for heading in ("how many", "loop", "", OURS, "asyncio", "target", "is", "reached"):
        table.add_column(heading)
    for row in rows:
        ours, theirs = (f"{row['bytes'][party]:.0f}" for party in sleepers.PARTIES)
        is_small = row["bytes_ratio"] <= MEMORY_TARGET
        table.add_row(
            f"{row['count']:,}", row["loop"], "bytes", ours, theirs, f"{MEMORY_TARGET} x asyncio",
            f"{row['bytes_ratio']:.2f}", "yes" if is_small else "NO",
        )  # fmt: skip
        ours, theirs = (f"{row['cancel_nanoseconds'][party]:.0f}" for party in sleepers.PARTIES)
        growth = row["cancel_growth"][OURS]
        table.add_row(
            "", "", "cancel, ns", ours, theirs, f"{LINEAR} x that of a quarter", f"{growth:.2f}",
            "yes" if growth <= LINEAR else "NO",
        )  # fmt: skip
    return table


def main(options: argparse.Namespace) -> dict[str, Any]:
    console = Console(width=None if sys.stdout.isatty() else 160)
    scale, rounds = (0.02, 1) if options.quick else (1.0, 25)
    results = [
        measure(contest, loop, scale, rounds) for contest in CONTESTS if options.only in contest.name for loop in LOOPS
    ]
    if results:
        console.print(table_of(results))
    rows = []
    if options.only in "sleepers":
        rows = [measure_sleepers(loop, 2_000 if options.quick else 100_000) for loop in LOOPS]
        console.print(sleepers_table(rows))
    return {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "quick": options.quick,
        "results": [
            {
                "name": result.contest.name,
                "loop": result.loop,
                "nanoseconds": result.figures,
                "targets": {
                    peer: {"at_most": target, "is": result.ratio(peer)}
                    for peer, target in result.contest.targets.items()
                },
                "is_reached": result.is_reached,
            }
            for result in results
        ],
        "sleepers": rows,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure the local scheduler beside its peers, in one run.")
    parser.add_argument("--quick", action="store_true", help="very little of everything: to see that it works")
    parser.add_argument("--only", default="", help="only contests whose name holds this word, or 'sleepers'")
    parser.add_argument("--json", default="benchmarks/results/scheduler.json", help="where the figures go")
    parsed = parser.parse_args()
    report = main(parsed)
    target = Path(parsed.json)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=2) + "\n")
    print(f"The figures are in {target}.")
    missed = [row for row in (*report["results"], *report["sleepers"]) if not row["is_reached"]]
    if missed and not parsed.quick:
        print(f"{len(missed)} targets are missed.")
        sys.exit(1)
