"""What fuzzing has found, and what it starts from, is taken as it must be; and more of that kind by hypothesis."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .fuzz import CORPUS, TARGETS

KNOWN = [(path.parent.name, path.name) for path in sorted(CORPUS.rglob("*")) if path.is_file()]


def test_there_is_a_corpus_for_each_target():
    assert {target for target, _ in KNOWN} == set(TARGETS)


@pytest.mark.parametrize(("target", "name"), KNOWN)
def test_what_is_in_the_corpus_breaks_no_promise(target, name):
    TARGETS[target](CORPUS.joinpath(target, name).read_bytes())


@pytest.mark.parametrize("target", TARGETS)
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_what_is_like_the_corpus_breaks_no_promise(target, data):
    name = data.draw(st.sampled_from([name for kind, name in KNOWN if kind == target]))
    changed = bytearray(CORPUS.joinpath(target, name).read_bytes()[:4096])
    for _ in range(data.draw(st.integers(0, 4))):
        where = data.draw(st.integers(0, len(changed)))
        changed[where : where + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=8))
    TARGETS[target](bytes(changed))
