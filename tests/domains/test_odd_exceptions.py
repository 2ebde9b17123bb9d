"""Exceptions that refuse to be handled reach their caller, as themselves or as what says so, and end nothing else."""

import asyncio
import dataclasses
import os
import sys

import pytest

import domains
from domains import Cancelled, DomainDied, ExecutorPool, NotPicklable, Promise, Switch

NO_TEXT = os.fsdecode(b"no text: \xff")
"""Such as a file's name: nothing can encode it."""


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    pass


class Sealed(Exception):
    def __setattr__(self, name, value):
        raise AttributeError(f"{name} cannot be set")


class WithOddNotes(Exception):
    def __init__(self, *args):
        super().__init__(*args)
        self.__notes__ = "one string"


class WithoutNotes(Exception):
    def add_note(self, note):
        raise RuntimeError("no notes, please")


class WithOddCause(Exception):
    @property
    def __cause__(self):
        raise RuntimeError("no cause, please")


class Text(str):
    pass


class WithOddText(Exception):
    def __str__(self):
        return Text("odd")


class ExitsWhenShown(Exception):
    def __str__(self):
        sys.exit(4)


class Unreducible(Exception):
    def __reduce__(self):
        raise self.args[0]


class Unbuildable(Exception):
    def __init__(self, one, two):
        super().__init__(one)


def fail(error, *args):
    raise error(*args)


async def fail_in_a_fiber(error, *args):
    raise error(*args)


def fail_because(error, *args):
    try:
        raise error(*args)
    except error as cause:
        raise LookupError("because of that") from cause


def fail_circularly(error):
    one, other = error("one"), error("other")
    one.__cause__, other.__cause__ = other, one
    raise one


def outcome_of(main, link):
    """What `main(env)` returns, run with a time limit: who waits for ever fails."""

    async def limited(env):
        with domains.timeout(30):
            return await main(env)

    return domains.run(limited, link=link)


async def check_raises(error, pool, job, *args):
    """Returns what it raised, after the same domain has run another job."""
    (before,) = pool.stats().domains
    with pytest.raises(error) as caught:
        await pool.submit(job, *args, weight=1.0)
    assert await pool.submit(os.getpid, weight=1.0) == before.pid
    return caught.value


ODD = [
    (Frozen,),
    (Sealed, "sealed"),
    (WithOddNotes, "notes"),
    (WithoutNotes, "notes"),
    (WithOddCause, "cause"),
    (WithOddText, "text"),
    (ExitsWhenShown, "text"),
    (ValueError, NO_TEXT),
    (SystemExit, NO_TEXT),
]


@pytest.mark.parametrize("job", [fail, fail_in_a_fiber])
@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd[0].__name__)
def test_an_odd_exception_arrives_as_itself(link, odd, job):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.ready()
            error = await check_raises(odd[0], pool, job, *odd)
            assert type(error) is odd[0]
            assert error.args == odd[1:]
            assert "Traceback of job" in vars(error)["__notes__"][-1]
            because = await check_raises(LookupError, pool, fail_because, *odd)
            assert type(because.__cause__) is odd[0]

    outcome_of(main, link)


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), Cancelled(), SystemExit(3), RuntimeError("no")])
def test_one_that_cannot_be_pickled_arrives_as_not_picklable_whatever_that_raises(link, raised):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.ready()
            error = await check_raises(NotPicklable, pool, fail, Unreducible, raised)
            assert error.what.startswith("exception Unreducible raised by job 'fail' in domain 'domain-1'")
            assert type(raised).__name__ in error.why

    outcome_of(main, link)


class RaisesWhenRebuilt:
    """Travels as a call that raises something in every process but the one that made it."""

    def __init__(self, raised):
        self.raised = raised

    def __reduce__(self):
        return raise_elsewhere, (os.getpid(), type(self.raised), self.raised.args)


def raise_elsewhere(home, raised, args):
    if os.getpid() != home:
        raise raised(*args)


@pytest.mark.parametrize("raised", [Cancelled(), SystemExit(3), RuntimeError("no")])
def test_a_result_that_cannot_be_rebuilt_is_not_picklable_whatever_that_raises(link, raised):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.ready()
            error = await check_raises(NotPicklable, pool, RaisesWhenRebuilt, raised)
            assert error.what == "the result of job 'RaisesWhenRebuilt'"
            assert type(raised).__name__ in error.why

    outcome_of(main, link)


def test_one_that_cannot_be_rebuilt_says_so_once(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.ready()
            error = await check_raises(NotPicklable, pool, fail, Unbuildable, 1, 2)
            assert error.what.startswith("exception Unbuildable raised by job 'fail' in domain 'domain-1'")
            assert error.why.startswith("it cannot be rebuilt here: TypeError: ")
            assert error.hint == "It said: Unbuildable: 1. Its traceback is in the notes."

    outcome_of(main, link)


def test_one_that_holds_what_cannot_be_pickled_names_the_place(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.ready()
            error = await check_raises(NotPicklable, pool, fail_with_a_generator)
            assert error.what.endswith(".args[1] (type generator)")
            assert error.why == "TypeError: cannot pickle 'generator' object"

    outcome_of(main, link)


def fail_with_a_generator():
    raise ValueError("a generator", (n for n in ()))


def test_a_circle_of_causes_arrives(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.ready()
            error = await check_raises(ValueError, pool, fail_circularly, ValueError)
            assert (error.args, error.__cause__.args) == (("one",), ("other",))

    outcome_of(main, link)


@pytest.mark.parametrize("odd", ODD[:2] + ODD[-2:], ids=lambda odd: odd[0].__name__)
def test_an_odd_exception_is_no_other_in_a_call_a_map_and_a_promise(link, odd):
    async def await_it(promise):
        with pytest.raises(odd[0]):
            await promise
        return True

    async def main(env):
        with pytest.raises(odd[0]):
            await env.domain_mgr.run(fail, *odd)
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(odd[0]):
                await pool.map(lambda _: fail(*odd), [1, 2], weight=1.0)
            promise, resolver = Promise.create(NO_TEXT)
            resolver.fail(odd[0](*odd[1:]))
            assert await pool.submit(await_it, promise, weight=1.0)

    outcome_of(main, link)


def test_a_job_is_cancelled_whatever_the_reason_says(link):
    async def wait(begun):
        begun.resolve(None)
        await domains.fiber.await_cancel()

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            begun, begin = Promise.create()
            with pytest.raises(ValueError, match="no text"):
                async with Switch() as switch:
                    promise = pool.submit_fork(switch, wait, begin, weight=1.0)
                    await begun
                    raise ValueError(NO_TEXT)
            assert promise.is_resolved
            assert await pool.submit(abs, -1, weight=1.0) == 1

    outcome_of(main, link)


def test_a_job_and_a_domain_may_be_called_by_no_text(link):
    def job():
        raise ValueError(f"in {domains.current().name}")

    job.__name__ = job.__qualname__ = NO_TEXT

    async def main(env):
        async with env.domain_mgr.spawn(NO_TEXT) as domain:
            assert domain.name == r"no text: \udcff"
            with pytest.raises(ValueError, match=r"in no text: \\udcff"):
                await domain.call(job)
        for name in (5, b"worker"):
            with pytest.raises(TypeError, match="a domain's name must be a str"):
                env.domain_mgr.spawn(name)

    outcome_of(main, link)


class Explosive:
    def __setstate__(self, state):
        raise ValueError("exploded")

    def __getstate__(self):
        return 1


class Lasting(Exception):
    def __reduce__(self):
        return "LASTING"


LASTING = Lasting()


def raise_what_lasts(n):
    raise LASTING from (None if n % 2 else ValueError(n))


def raise_because_of_what_lasts():
    raise ValueError from LASTING


def chain_of(error):
    return [error] + ([] if error.__cause__ is None else chain_of(error.__cause__))


def test_an_exception_that_is_the_same_object_each_time_tells_of_its_last_failure_only():
    async def main(env):
        LASTING.__notes__ = ["its own"]
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.ready()
            for n in range(4):
                error = await check_raises(Lasting, pool, raise_what_lasts, n)
                assert error is LASTING
                assert [note[:16] for note in error.__notes__] == ["its own", "Traceback of job"]
                assert len(chain_of(error)) == (2 if n % 2 else 3)
                assert str(chain_of(error)[-1]).lstrip() == error.__notes__[1]
            for _ in range(2):
                error = await check_raises(ValueError, pool, raise_because_of_what_lasts)
                assert [type(link).__name__ for link in chain_of(error)] == ["ValueError", "Lasting", "RemoteTraceback"]

    outcome_of(main, "socketpair")


def test_what_cannot_be_rebuilt_is_told_with_the_name_of_its_job(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            await pool.ready()
            error = await check_raises(NotPicklable, pool, Explosive)
            assert str(error).startswith("the result of job 'Explosive' cannot be pickled: it cannot be rebuilt here")
            await pool.submit(id, 1, weight=1.0)
            error = await check_raises(NotPicklable, pool, id, Explosive())
            assert str(error).startswith("the arguments of job 'id' cannot be pickled: it cannot be rebuilt here")

    outcome_of(main, link)


async def _exit_in_a_callback():
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    await domains.fiber.await_cancel()


async def _exit_in_a_callback_of_asyncio():
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    await asyncio.Event().wait()


@pytest.mark.parametrize("job", [_exit_in_a_callback, _exit_in_a_callback_of_asyncio])
def test_a_callback_that_exits_ends_the_domain_and_cancels_nobody(link, job):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(DomainDied) as caught:
                await pool.submit(job, weight=1.0)
            assert caught.value.exitcode == 3

    outcome_of(main, link)


def test_a_kill_that_nobody_here_asked_for_says_what_it_may_be(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            with pytest.raises(DomainDied, match="not by this program; it may have been the system"):
                await pool.submit(lambda: os.kill(os.getpid(), 9), weight=1.0)

    outcome_of(main, link)
