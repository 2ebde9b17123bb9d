"""How often garbage is collected while a program runs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from domains.scheduler.run import run


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


async def get_threshold() -> tuple[int, int, int]:
    return gc.get_threshold()


def test_garbage_is_collected_less_often_while_a_program_runs() -> None:
    gc.set_threshold(700, 10, 10)
    assert run(get_threshold)[0] > 700
    assert gc.get_threshold() == (700, 10, 10)


def test_what_the_program_has_said_before_holds() -> None:
    gc.set_threshold(300, 5, 5)
    assert run(get_threshold) == (300, 5, 5)


def test_what_the_program_says_meanwhile_stays() -> None:
    async def main() -> None:
        gc.set_threshold(800, 5, 5)

    gc.set_threshold(700, 10, 10)
    run(main)
    assert gc.get_threshold() == (800, 5, 5)


def test_a_loop_in_another_thread_changes_nothing() -> None:
    gc.set_threshold(700, 10, 10)
    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(run, get_threshold).result() == (700, 10, 10)
