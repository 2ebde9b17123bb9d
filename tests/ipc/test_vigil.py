"""When a loop stays awake for an answer, and when it does not."""

import asyncio

import pytest

from domains.ipc.vigil import SOON_SECONDS, Vigil
from domains.scheduler.run import new_event_loop

from .links import turns

SHORT = SOON_SECONDS / 8
LONG = SOON_SECONDS / 2


class Awaited:
    """Answers to a vigil, by a clock that is set by hand."""

    def __init__(self):
        self.now = 0.0
        self.vigil = Vigil(lambda: self.now)

    async def come(self, count, *, asleep, awake):
        """How many of them the loop stayed awake for."""
        kept = 0
        for _ in range(count):
            self.begin()
            kept += self.vigil.is_turning
            self.now += awake if self.vigil.is_turning else asleep
            self.vigil.end()
            await turns(2)
            assert not self.vigil.is_turning
        return kept

    def begin(self):
        self.vigil.begin(asyncio.get_running_loop())


@pytest.fixture(params=[asyncio.new_event_loop, new_event_loop], ids=["asyncio", "preferred"])
def run(request):
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


@pytest.mark.parametrize(
    ("before", "asleep", "awake", "kept"),
    [
        pytest.param(32, LONG, SHORT, 630, id="waking takes long"),
        pytest.param(64, SHORT, LONG, 10, id="it takes longer"),
        pytest.param(64, SHORT, SHORT, 10, id="it takes as long"),
        pytest.param(0, 2 * SOON_SECONDS, 0.0, 0, id="answers take long"),
    ],
)
def test_a_loop_stays_awake_only_where_that_is_faster(run, before, asleep, awake, kept):
    async def main():
        awaited = Awaited()
        await awaited.come(before, asleep=asleep, awake=awake)
        assert await awaited.come(640, asleep=asleep, awake=awake) == kept

    run(main())


def test_a_loop_follows_what_changes(run):
    async def main():
        awaited = Awaited()
        for _ in range(3):
            await awaited.come(5000, asleep=LONG, awake=SHORT)
            assert await awaited.come(640, asleep=LONG, awake=SHORT) == 630
            await awaited.come(5000, asleep=SHORT, awake=LONG)
            assert await awaited.come(640, asleep=SHORT, awake=LONG) == 10
            await awaited.come(1000, asleep=1.0, awake=1.0)
            assert await awaited.come(640, asleep=1.0, awake=1.0) == 0

    run(main())


def test_a_vigil_is_bounded(run):
    async def main():
        awaited = Awaited()
        await awaited.come(32, asleep=LONG, awake=SHORT)
        awaited.begin()
        await turns(10)
        assert awaited.vigil.is_turning
        awaited.now += 2 * SOON_SECONDS
        await turns(2)
        assert not awaited.vigil.is_turning
        awaited.begin()  # another answer than the first, which never comes
        assert awaited.vigil.is_turning
        awaited.vigil.end()
        awaited.begin()
        await turns(2)
        assert awaited.vigil.is_turning
        awaited.vigil.end()

    run(main())
