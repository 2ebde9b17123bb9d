"""Functions that travel by value: pickled again exactly if what they refer to may have changed."""

from __future__ import annotations

import functools
import types
from typing import Any

import pytest

from domains import fingerprint, testing
from domains.domain_manager import DomainManager
from domains.functions import Function, FunctionCatalogue
from domains.scheduler.switch import Switch
from domains.testing.virtual import _NoDomains


def catalogued(uses: list[Any]) -> list[Function]:
    """What a catalogue makes of functions, and of what is called in between."""

    async def main() -> list[Function]:
        async with Switch() as switch:
            manager = DomainManager(_NoDomains(), 1, switch)
            switch.on_release(manager.close)
            catalogue: FunctionCatalogue = manager.catalogue
            pickled: list[object] = []
            dump = catalogue._pickling.dumps_function
            catalogue._pickling.dumps_function = lambda f: pickled.append(f) or dump(f)  # type: ignore[method-assign]
            found = []
            for use in uses:
                if isinstance(use, types.LambdaType) and use.__name__ == "change":
                    use()
                else:
                    found.append(catalogue.add(use))
            counts.append(len(pickled))
            return found

    return testing.run(main)


counts: list[int] = []


def in_main(source: str) -> dict[str, Any]:
    """The names of a program: a module that only this process has."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(source, names)
    return names


SOURCE = """
import collections, json, math, types
from json import JSONDecoder
limit = 5
items = [1]
look_up = {}.get
join = ",".join
from_keys = dict.fromkeys
settings = types.ModuleType("settings")
Local = collections.namedtuple("Local", "x", module="json")
def helper(): return limit
def uses_what_goes_by_name(): return math, math.sin, JSONDecoder, json.dumps, join, from_keys, print
def uses_method(): return look_up
def uses_module(): return settings
def uses_class(): return Local
def uses_helper(x=1): return helper() + math.pi + x
def uses_list(): return items
def make(n):
    return lambda: n
"""


@pytest.mark.parametrize("name", ["uses_helper", "uses_what_goes_by_name"])
def test_a_function_that_cannot_have_changed_is_pickled_once(name: str) -> None:
    f = in_main(SOURCE)[name]
    one, other = catalogued([f, f])
    assert one is other
    assert counts.pop() == 1


@pytest.mark.parametrize(
    "change", ["limit = 6", "def helper(): return 0", "uses_helper.__defaults__ = (2,)", "uses_helper.attribute = 1"]
)
def test_one_that_has_changed_is_pickled_anew(change: str) -> None:
    names = in_main(SOURCE)

    def step() -> None:
        exec(change, names)

    step.__name__ = "change"
    f = names["uses_helper"]
    one, other = catalogued([f, step, f])
    assert counts.pop() == 2
    assert one.code != other.code or "attribute" in change


@pytest.mark.parametrize("name", ["uses_list", "uses_method", "uses_module", "uses_class", "closure"])
def test_one_that_refers_to_what_may_change_is_pickled_each_time(name: str) -> None:
    names = in_main(SOURCE)
    f = names["make"](1) if name == "closure" else names[name]
    catalogued([f, f])
    assert counts.pop() == 2


def test_a_partial_with_much_data_is_not_kept() -> None:
    big = functools.partial(len, b"x" * 1_000_000)
    (function,) = catalogued([big])
    counts.clear()
    assert function.passed == (big.args, {})
    assert len(function.code) < 1000
    assert function.name == "len"


def test_a_partial_shares_its_function_and_nothing_that_it_adds() -> None:
    f = in_main(SOURCE)["uses_helper"]
    partials = [functools.partial(f, each) for each in ([1], [2])]
    one, other, itself = catalogued([*partials, f])
    assert one.number == other.number != itself.number
    assert [one.passed, other.passed] == [(([1],), {}), (([2],), {})]
    assert one.name == itself.name
    assert counts.pop() == 2  # once for each of the two that are sent


def test_what_is_known_of_code_that_comes_and_goes_is_bounded() -> None:
    for number in range(2000):
        assert fingerprint.fingerprint(eval(f"lambda: print({number})")) is not None
    assert len(fingerprint._names) <= 1024
