"""The benchmarks run, and write what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def ask(word: str, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", word, "--json", str(target)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, cwd=ROOT)


@pytest.mark.parametrize(
    ("word", "peers"),
    [
        ("20,000 no-op", {"ProcessPoolExecutor", "multiprocessing.Pool"}),
        ("2,000 async", set()),
        ("map of 200,000", {"ProcessPoolExecutor", "multiprocessing.Pool"}),
        ("submitting one job", set()),
        ("idle worker", {"ProcessPoolExecutor", "multiprocessing.Pool"}),
    ],
)
def test_a_quick_run_answers_a_question_and_writes_json(word: str, peers: set[str], tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    done = ask(word, target)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(target.read_text())["results"]
    assert {"domains", *peers} <= set(result["answers"])
    assert all(answer["figure"] > 0 for answer in result["answers"].values())


def test_a_question_that_does_not_exist_is_refused_with_those_that_do(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    target.write_text("of the last run")
    done = ask("nonsense", target)
    assert done.returncode == 2
    assert "'nonsense'" in done.stderr
    assert "round trip of one no-op job, median" in done.stderr
    assert "memory of an idle worker (USS)" in done.stderr
    assert target.read_text() == "of the last run"


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
