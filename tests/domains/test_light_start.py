"""What is imported before a program's first job: each module is something that it waits for."""

import subprocess
import sys
from typing import Any

import pytest

import domains

HEAVY = {"cloudpickle", "hashlib", "multiprocessing", "numpy", "secrets", "shutil", "tempfile", "zmq"}
"""What a program and its domains do without until something asks for it."""

RUN_ON = {"asyncio", "ctypes", "inspect", "logging", "msgspec", "uvloop"}
"""What a program runs on, and imports while its launcher does."""

OF_A_PARENT = {
    "domains.domain",
    "domains.domain_manager",
    "domains.pool.dispatch",
    "domains.pool.mapping",
    "domains.program",
    "domains.supervisor",
}
"""What a domain does without that starts no domains itself."""

LIST_MODULES = "sorted(__import__('sys').modules)"

PROGRAM = f"""
import domains

async def main(env):
    async with domains.ExecutorPool(env.domain_mgr, domain_count=1) as pool:
        await pool.submit(abs, -1, weight=1.0)
    return {LIST_MODULES}

print(*domains.run(main))
"""


def _modules_after(text: str) -> set[str]:
    command = [sys.executable, "-c", text]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def _added_by(text: str) -> set[str]:
    """What a program imports; not what every interpreter here does for its site."""
    return _modules_after(text) - _modules_after(f"print(*{LIST_MODULES})")


def test_importing_domains_imports_nothing_else_of_ours_and_nothing_heavy() -> None:
    modules = _added_by(f"import domains; print(*{LIST_MODULES})")
    assert not modules & (HEAVY | RUN_ON | {"socket", "subprocess"})
    assert {name for name in modules if name.split(".")[0] == "domains"} == {"domains"}


def test_the_launcher_is_on_its_way_before_its_parent_imports_what_it_runs_on() -> None:
    modules = _added_by(f"import domains; domains.run; print(*{LIST_MODULES})")
    assert "domains.launcher.warm" in modules
    assert not modules & (HEAVY | RUN_ON)


def test_a_program_imports_nothing_heavy_before_its_first_result() -> None:
    modules = _added_by(PROGRAM)
    assert "domains.pool.dispatch" in modules
    assert not modules & HEAVY


def test_a_domain_imports_nothing_heavy_before_its_first_job() -> None:
    async def main(env: domains.Environment) -> list[str]:
        return await env.domain_mgr.run(eval, LIST_MODULES)

    modules = set(domains.run(main)) - _modules_after(f"print(*{LIST_MODULES})")
    assert "domains.job_runner" in modules
    assert not modules & (HEAVY | OF_A_PARENT)


def _look_for_pytest(use: bool) -> tuple[bool, type[BaseException] | None]:
    caught = None
    if use:
        with pytest.raises(ZeroDivisionError) as caught_information:
            _ = 1 / 0
        caught = caught_information.type
    return "_pytest" in sys.modules, caught


def test_a_domain_of_the_tests_loads_pytest_if_that_is_used() -> None:
    async def main(env: Any) -> list[Any]:
        async with domains.ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            return [await pool.submit(_look_for_pytest, use, weight=1.0) for use in (False, True)]

    assert domains.run(main) == [(False, None), (True, ZeroDivisionError)]
