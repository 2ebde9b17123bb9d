"""For tests of programs: `run` runs one in virtual time and finds deadlocks; the pytest plugin runs every test so.

The plugin comes with the package: an `async def test_…()` just runs, in virtual time, unless the mark of another plugin
(`asyncio`, `anyio`, `trio`) claims it.
"""

from domains.testing.virtual import run

__all__ = ["run"]
