"""What talking between domains costs: `python -m benchmarks.references`, beside multiprocessing's ways, in one run.

Prints a table of ratios with their targets. Large arrays have a program of their own, `benchmarks.references.arrays`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

import domains
from benchmarks.references.contests import CONTESTS


async def main(env: domains.Environment, scale: float) -> list[dict[str, object]]:
    console = Console()
    table = Table(title="Between domains")
    for column in ("", "ours", "theirs", "ratio", "target"):
        table.add_column(column, justify="right" if column else "left")
    rows: list[dict[str, object]] = []
    for contest in CONTESTS:
        result = await contest.run(env, scale)
        ratio = result.ours / result.theirs
        reached = ratio <= contest.target if contest.lower_is_better else ratio >= contest.target
        sign = "at most" if contest.lower_is_better else "at least"
        colour = "green" if reached else "red"
        table.add_row(
            contest.name,
            f"{result.ours:.4g} {contest.unit}",
            f"{result.theirs:.4g} {contest.unit}",
            f"[{colour}]{ratio:.3g}[/]",
            f"{sign} {contest.target}",
        )
        rows.append({"name": contest.name, "ours": result.ours, "theirs": result.theirs, "ratio": ratio})
    console.print(table)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure references beside multiprocessing, in one run.")
    parser.add_argument("--quick", action="store_true", help="a twentieth of everything: to see that it works")
    parser.add_argument("--json", default="benchmarks/results/references.json", help="where the figures go")
    parsed = parser.parse_args()
    figures = domains.run(lambda env: main(env, 0.05 if parsed.quick else 1.0))
    target = Path(parsed.json)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(figures, indent=2) + "\n")
