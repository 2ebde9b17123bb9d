"""The benchmarks run, and write what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_quick_run_answers_a_question_and_writes_json(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "20,000 no-op", "--json", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(target.read_text())["results"]
    assert {"domains", "ProcessPoolExecutor", "multiprocessing.Pool"} <= set(result["answers"])
    assert all(answer["figure"] > 0 for answer in result["answers"].values())


def test_a_quick_run_measures_the_scheduler_and_writes_json(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.scheduler", "--quick", "--json", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads(target.read_text())
    assert len({result["name"] for result in report["results"]}) == 7
    for result in report["results"]:
        assert set(result["nanoseconds"]) == {"domains", "asyncio", "anyio", "trio"}
        assert all(nanoseconds > 0 for nanoseconds in result["nanoseconds"].values())
    assert [row["loop"] for row in report["sleepers"]] == ["asyncio loop", "uvloop"]
    assert all(row["cancel_nanoseconds"]["domains"] > 0 for row in report["sleepers"])
