"""The benchmarks run, and write what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_quick_run_answers_a_question_and_writes_json(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "20,000", "--json", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(target.read_text())["results"]
    assert {"domains", "ProcessPoolExecutor", "multiprocessing.Pool"} <= set(result["answers"])
    assert all(answer["figure"] > 0 for answer in result["answers"].values())
