"""Every ```python block of docs/*.md is a program that runs, and prints what the ```text block after it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SECONDS = 60.0

_BLOCK = re.compile(
    r"^```python\n(?P<source>.*?)^```\n(?:\n*^```text\n(?P<output>.*?)^```$)?", re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"\]\(#(?P<anchor>[^)]+)\)")
_HEADING = re.compile(r"^#+ (?P<title>.+)$", re.MULTILINE)


class Example(NamedTuple):
    """One block: its source, what it should print if that is told, and where it stands."""

    source: str
    output: str | None
    place: str


def examples() -> list[Example]:
    found = []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text()
        for block in _BLOCK.finditer(text):
            line = text.count("\n", 0, block.start("source")) + 1
            found.append(Example(block["source"], block["output"], f"{page.name}:{line}"))
    return found


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.place)
def test_the_program_runs_and_prints_what_the_page_says(example: Example, tmp_path: Path) -> None:
    if "import joblib" in example.source:
        pytest.importorskip("joblib", reason="needs the extra joblib")
    program = tmp_path / "program.py"
    program.write_text(example.source)
    done = subprocess.run([sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    if example.output is not None:
        assert done.stdout == example.output


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_within_the_page_lead_to_its_headings(page: Path) -> None:
    text = page.read_text()
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = {
        re.sub(r"[^\w\- ]", "", heading["title"].lower()).replace(" ", "-") for heading in _HEADING.finditer(prose)
    }
    assert {link["anchor"] for link in _LINK.finditer(prose)} <= titles


def test_the_docs_have_examples() -> None:
    assert len(examples()) > 10
