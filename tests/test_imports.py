"""The rooms import one way: domains -> ipc, domains -> scheduler; both know nothing of ours but the errors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "scheduler": ("domains.scheduler", "domains.errors"),
    "ipc": ("domains.ipc", "domains.errors"),
    "domains": ("domains",),
}


def imported(path: Path) -> Iterator[str]:
    """Every module of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import in line {node.lineno}"
            assert node.module is not None
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if is_module(name) else node.module


def is_module(name: str) -> bool:
    first, *rest = name.split(".")
    if first != "domains":
        return False
    folder = ROOT / "domains"
    if rest and rest[0] in ("scheduler", "ipc"):
        folder, rest = ROOT / rest[0], rest[1:]
    path = folder.joinpath(*rest)
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


FILES = [path for room in ALLOWED for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_room_may_know(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    for name in imported(path):
        if name.split(".")[0] in ("domains", "scheduler", "ipc", "tests", "benchmarks", "examples"):
            assert any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED[room]), (
                f"{path.relative_to(ROOT)} imports {name}"
            )


def test_every_folder_with_code_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for path in FILES:
        parts = path.relative_to(ROOT).parent.parts
        package = ".".join(parts) if parts[0] == "domains" else ".".join(("domains", *parts))
        assert f'"{package}"' in text, f"{package} is missing from the packages in pyproject.toml"
