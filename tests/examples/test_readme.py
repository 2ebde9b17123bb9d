"""The README's programs work when pasted into a file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def run(program: str, directory: Path) -> str:
    path = directory / "program.py"
    path.write_text(program)
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, check=False, timeout=60, cwd=directory
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_of_the_readme_runs(program: str, tmp_path: Path) -> None:
    assert run(program, tmp_path)


def test_the_ten_lines_print_what_they_should(tmp_path: Path) -> None:
    assert run(PROGRAMS[0], tmp_path) == "168 primes\n1229 primes\n9592 primes\n"
    assert len([line for line in PROGRAMS[0].splitlines() if line]) <= 10
