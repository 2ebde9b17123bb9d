"""python -m benchmarks [--quick] [--only WORD] [--json FILE]: ours and the peers, side by side."""

from __future__ import annotations

import argparse
import functools
import json
import platform
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import domains
from benchmarks.contenders import WORKERS, missing
from benchmarks.questions import QUESTIONS, Answer, Question, as_json


def table_of(question: Question, answers: list[Answer]) -> Table:
    table = Table(title=question.name, title_justify="left")
    table.add_column("")
    table.add_column(question.unit, justify="right")
    table.add_column("also", justify="right")
    table.add_column("of domains", justify="right")
    ours = next(answer.figure for answer in answers if answer.contender == "domains")
    for answer in answers:
        more = ", ".join(f"{name} {value:.4g}" for name, value in answer.more.items())
        table.add_row(answer.contender, f"{answer.figure:.4g}", more, f"{answer.figure / ours:.2f} x")
    return table


async def main(env: domains.Environment, questions: list[Question], quick: bool) -> dict[str, Any]:
    console = Console()
    for name in missing():
        console.print(f"{name} is not installed: left out (pip install {name})")
    results = []
    for question in questions:
        answers = await question.measure(env, 0.1 if quick else 1.0)
        console.print(table_of(question, answers))
        results.append(as_json(question, answers))
    return {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cores": domains.recommended_domain_count(),
        "workers": WORKERS,
        "quick": quick,
        "results": results,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure domains beside its peers, in one run.")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything: to see that it works")
    parser.add_argument("--only", default="", help="only questions whose name holds this word")
    parser.add_argument(
        "--json", help="where the figures go: benchmarks/results/latest.json, or with --quick quick.json"
    )
    parsed = parser.parse_args()
    asked = [question for question in QUESTIONS if parsed.only in question.name]
    if not asked:
        names = "".join(f"\n  {question.name}" for question in QUESTIONS)
        parser.error(f"no question's name holds {parsed.only!r}; there are:{names}")
    report = domains.run(functools.partial(main, questions=asked, quick=parsed.quick))
    target = Path(parsed.json or f"benchmarks/results/{'quick' if parsed.quick else 'latest'}.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=2) + "\n")
    print(f"The figures are in {target}.")
