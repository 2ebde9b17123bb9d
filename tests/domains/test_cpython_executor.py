"""CPython's own tests of process pool executors, run on `domains.PoolExecutor`.

They come from the interpreter's test package, where that is installed and is one: 3.12 and later. Those that cannot
hold for us are listed here, each with the reason.
"""

from __future__ import annotations

import importlib
import multiprocessing
import types
import unittest
from typing import Any, ClassVar
from unittest import mock

import pytest

import domains

_PACKAGE = "test.test_concurrent_futures"

try:
    _util = importlib.import_module(f"{_PACKAGE}.util")
except ImportError as error:
    pytest.skip(f"this interpreter has no package {_PACKAGE}: {error}", allow_module_level=True)

_GOES_ON = "the death of a process fails the jobs that it had, and the pool goes on with a new one"
_PRIMITIVES = (
    "multiprocessing's semaphores and queues can be inherited by multiprocessing's own children only; "
    "ours travel between domains"
)
_INSIDE = "it looks at processes, threads and queues by names that are private to ProcessPoolExecutor"

EXCLUDED = {
    "test_process_pool": {
        "test_killed_child": _GOES_ON,
        "test_traceback": "the cause is our RemoteTraceback; test_executor_face has the same test with that",
        "test_ressources_gced_in_workers": "multiprocessing hides the key of its managers from processes of others",
        "test_saturation": _PRIMITIVES,
        "test_idle_process_reuse_one": _INSIDE,
        "test_idle_process_reuse_multiple": _INSIDE,
        "test_max_tasks_per_child": f"{_INSIDE}; test_executor_face has the same test without that",
        "test_max_tasks_per_child_defaults_to_spawn_context": "there is one way to start domains, so no context",
        "test_python_finalization_error": _INSIDE,
    },
    "test_shutdown": {
        "test_processes_terminate": _PRIMITIVES,
        "test_context_manager_shutdown": "it makes a ProcessPoolExecutor of its own",
        "test_del_shutdown": "it makes a ProcessPoolExecutor of its own; test_executor_face has the same test",
        "test_shutdown_no_wait": "it makes a ProcessPoolExecutor of its own; test_executor_face has the same test",
    },
    "test_wait": {},
    "test_as_completed": {},
    "test_init": {
        "test_initializer[failing]": _PRIMITIVES,
    },
    "test_deadlock": {
        "test_error_at_task_unpickle": "arguments that cannot be unpickled fail that job, and the domain goes on",
        "test_exit_at_task_unpickle": "arguments that cannot be unpickled fail that job, and the domain goes on",
        "test_exit_during_result_pickle_on_worker": "an object that exits as it is pickled is NotPicklable",
        "test_error_during_result_unpickle_in_result_handler": "a result that cannot be unpickled fails that job only",
        "test_exit_during_result_unpickle_in_result_handler": "a result that cannot be unpickled fails that job only",
        "test_shutdown_deadlock_pickle": f"{_INSIDE}; test_executor_face has the same test without that",
        "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": _INSIDE,
    },
}
"""The reasons, by CPython's module and method."""


class PoolExecutorMixin(_util.ExecutorMixin):  # type: ignore[name-defined,misc]
    executor_type = domains.PoolExecutor
    ctx = "spawn"

    def get_context(self) -> Any:
        return multiprocessing.get_context("spawn")


class _Scripts:
    """Programs that a test runs import our executor, where they would import the interpreter's."""

    module: ClassVar[types.ModuleType]

    def setUp(self) -> None:
        run = self.module.assert_python_ok

        def run_with_ours(option: str, program: str) -> Any:
            ours = program.replace("from concurrent.futures import PoolExecutor", "from domains import PoolExecutor")
            return run(option, f"import multiprocessing\n{ours}")

        patch = mock.patch.object(self.module, "assert_python_ok", run_with_ours)
        patch.start()
        self.addCleanup(patch.stop)  # type: ignore[attr-defined]
        super().setUp()  # type: ignore[misc]


def _case(module_name: str, tests_name: str, *mixins: type, kind: str = "") -> type[unittest.TestCase]:
    module = importlib.import_module(f"{_PACKAGE}.{module_name}")
    tests = getattr(module, tests_name)
    members: dict[str, Any] = {"__module__": __name__, "module": module}
    for name, reason in EXCLUDED[module_name].items():
        method, _, excluded_kind = name.partition("[")
        if excluded_kind.rstrip("]") == kind:
            members[method] = unittest.skip(reason)(getattr(tests, method))
    return type(f"{tests_name}OnDomains", (*mixins, tests, PoolExecutorMixin, _util.BaseTestCase), members)


TestExecutor = _case("test_process_pool", "ProcessPoolExecutorTest")
TestShutdown = _case("test_shutdown", "ProcessPoolShutdownTest", _Scripts)
TestWait = _case("test_wait", "WaitTests")
TestAsCompleted = _case("test_as_completed", "AsCompletedTests")
TestInitializer = _case("test_init", "InitializerMixin")
TestFailingInitializer = _case("test_init", "FailingInitializerMixin", kind="failing")
TestDeadlock = _case("test_deadlock", "ExecutorDeadlockTest")
