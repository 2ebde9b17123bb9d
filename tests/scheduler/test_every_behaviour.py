"""Each numbered behaviour of docs/semantics.md is named by a test, and by one across domains where it holds there."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "semantics.md"
LAST = 71

_ITEM = re.compile(r"^(?P<number>\d+)\. (?P<text>.+)$")
_NAME = re.compile(r"\bS(?P<number>\d+)\b")


class Behaviour(NamedTuple):
    """One line of the page."""

    number: int
    text: str
    holds_across_domains: bool


class Naming(NamedTuple):
    """A test that names a behaviour."""

    number: int
    file: Path
    test: str


def behaviours() -> list[Behaviour]:
    found = []
    across = False
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            across = line.endswith("⇄")
        elif item := _ITEM.match(line):
            found.append(Behaviour(int(item["number"]), item["text"], across))
    return found


def namings_in(file: Path, source: str) -> Iterator[Naming]:
    """The numbers in the comments of each test: inside it, at its head, or in the lines just above it."""
    lines = source.splitlines()
    comments = {
        token.start[0]: token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.name.startswith("test_"):
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        while first > 1 and lines[first - 2].lstrip().startswith("#"):
            first -= 1
        for line in range(first, (node.end_lineno or node.lineno) + 1):
            for name in _NAME.finditer(comments.get(line, "")):
                yield Naming(int(name["number"]), file, node.name)


@pytest.fixture(scope="module")
def namings() -> list[Naming]:
    return [naming for file in sorted(TESTS.rglob("test_*.py")) for naming in namings_in(file, file.read_text())]


def test_the_page_numbers_its_behaviours_from_one_on() -> None:
    assert [behaviour.number for behaviour in behaviours()] == list(range(1, LAST + 1))


@pytest.mark.parametrize("behaviour", behaviours(), ids=lambda behaviour: f"S{behaviour.number}")
def test_a_test_names_the_behaviour(behaviour: Behaviour, namings: list[Naming]) -> None:
    named_by = [naming for naming in namings if naming.number == behaviour.number]
    assert named_by, behaviour.text
    if behaviour.holds_across_domains:
        assert any(naming.file.is_relative_to(TESTS / "domains") for naming in named_by), behaviour.text


def test_no_test_names_a_behaviour_that_is_not_on_the_page(namings: list[Naming]) -> None:
    known = {behaviour.number for behaviour in behaviours()}
    assert [naming for naming in namings if naming.number not in known] == []


def test_a_number_outside_of_any_test_does_not_count() -> None:
    source = "# S1\nx = 'S2'\n\n# S3\n@mark\ndef test_f():  # S4\n    pass  # S5, S6\n\ndef helper():  # S7\n    pass\n"
    assert [naming.number for naming in namings_in(PAGE, source)] == [3, 4, 5, 6]
