"""The pytest plugin: async tests run in virtual time, unless another plugin claims them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def outcome(tmp_path: Path, text: str) -> str:
    test = tmp_path / "test_it.py"
    test.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(test)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    return done.stdout


def test_an_async_test_just_runs_on_virtual_time_with_its_fixtures(tmp_path: Path) -> None:
    text = """
import pytest
@pytest.fixture
def five(): return 5
async def test_sleep(env, five):
    await env.clock.sleep(86400 * five)
    assert env.clock.now() == 86400 * 5
class TestIt:
    async def test_method(self, five):
        assert five == 5
async def test_fails():
    assert 1 == 2
"""
    assert "1 failed, 2 passed" in outcome(tmp_path, text)


def test_a_test_gets_an_environment_only_where_it_asks_for_one(tmp_path: Path) -> None:
    text = """
from unittest import mock
import os
@mock.patch("os.getcwd")
async def test_patched(cwd):
    assert os.getcwd is cwd
async def test_default(n=3):
    assert n == 3
"""
    assert "2 passed" in outcome(tmp_path, text)


def test_a_deadlock_fails_the_test_with_the_place(tmp_path: Path) -> None:
    text = """
import domains
async def test_stuck():
    await domains.Stream(0, label="orders").take()
"""
    told = outcome(tmp_path, text)
    assert "Deadlock" in told
    assert "orders" in told
    assert "test_it.py:4" in told


def test_tests_marked_for_other_plugins_are_left_alone(tmp_path: Path) -> None:
    text = """
import pytest, sniffio
@pytest.fixture
def anyio_backend(): return "asyncio"
@pytest.mark.anyio
async def test_anyio():
    import asyncio
    assert type(asyncio.get_running_loop()).__name__ != "MockLoop"
"""
    assert "1 passed" in outcome(tmp_path, text.replace(", sniffio", ""))


def test_a_plain_test_that_wants_an_environment_is_told_that_there_is_none(tmp_path: Path) -> None:
    told = outcome(tmp_path, "def test_plain(env):\n    env.clock.now()\n")
    assert "the fixture 'env' is for `async def` tests" in told
    assert "1 failed" in told
