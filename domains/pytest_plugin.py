"""The pytest plugin: an `async def` test runs by `domains.testing.run`, in virtual time.

A test that takes `env` gets that program's environment. Tests that another plugin's mark claims are left alone, and
have no `env`. Importing this costs next to nothing: pytest does it in every project where domains is installed.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest

_CLAIMED_BY_OTHERS = ("asyncio", "anyio", "trio")
_ENVIRONMENT = object()


@pytest.fixture
def env() -> Any:
    """The environment of the program that the test is: what `domains.testing.run` hands to its main function."""
    return _ENVIRONMENT


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine function's test; None leaves it to others."""
    is_claimed = any(pyfuncitem.get_closest_marker(mark) for mark in _CLAIMED_BY_OTHERS)
    if is_claimed or not inspect.iscoroutinefunction(pyfuncitem.obj):
        if pyfuncitem.funcargs.get("env") is _ENVIRONMENT:
            pytest.fail("the fixture 'env' is for `async def` tests that no other plugin runs", pytrace=False)
        return None
    from domains.testing import run

    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    if arguments.get("env") is _ENVIRONMENT:
        del arguments["env"]

        async def with_environment(environment: Any) -> None:
            await pyfuncitem.obj(env=environment, **arguments)

        run(with_environment)
    else:

        async def without_environment() -> None:
            await pyfuncitem.obj(**arguments)

        run(without_environment)
    return True
