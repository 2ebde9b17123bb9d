"""Large data between domains: it arrives as it was, is not copied where it need not be, and is let go of."""

import array
import gc
import os
import signal

import numpy
import pytest

import domains
from domains.ipc.arena import process_arena

MB = 1 << 20


@pytest.fixture
def run(link):
    def run(main, **options):
        return domains.run(main, link=link, domains=2, **options)

    return run


def leases():
    return process_arena().statistics().leases


def used_bytes():
    return process_arena().statistics().used_bytes


def describe(value):
    """What there is to say of a large value where it arrived."""
    writable = not memoryview(value).readonly
    return type(value), len(value), value[0], value[-1], writable


@pytest.mark.parametrize(
    ("sent", "type_there", "writable"),
    [
        (b"ab" * MB, bytes, False),
        (bytearray(b"ab" * MB), bytearray, True),
        (memoryview(b"ab" * MB), memoryview, False),
        (array.array("d", [0.5, 1.5] * 100_000), array.array, True),
        (numpy.arange(MB), numpy.ndarray, False),
        (numpy.asfortranarray(numpy.ones((1000, 1000)))[:, 0].copy(), numpy.ndarray, True),
    ],
    ids=["bytes", "bytearray", "memoryview", "array", "ndarray", "small ndarray"],
)
def test_large_data_of_any_kind_arrives_and_returns_as_what_it_is(run, sent, type_there, writable):
    async def main(env):
        async with domains.ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            assert await pool.submit(describe, sent, weight=1.0) == (
                type_there,
                len(sent),
                sent[0],
                sent[-1],
                writable,
            )
            back = await pool.submit(lambda value: value, sent, weight=1.0)
            assert type(back) is type_there
            assert memoryview(back) == memoryview(sent)
            assert memoryview(back).readonly != writable

    run(main)


def arrow_buffers(value):
    """All the memory of something of Arrow's."""
    import pyarrow

    if isinstance(value, pyarrow.Buffer):
        return [value]
    arrays = [value] if isinstance(value, pyarrow.Array) else [array for column in value for array in chunks_of(column)]
    return [buffer for array in arrays for buffer in array.buffers() if buffer is not None]


def chunks_of(column):
    return column.chunks if hasattr(column, "chunks") else [column]


def where_it_lies(value):
    """Of each buffer whether it lies in shared memory, and whether it can be written."""
    return [(process_arena().holds(buffer), buffer.is_mutable) for buffer in arrow_buffers(value)]


@pytest.mark.parametrize("kind", ["buffer", "array", "strings", "nulls", "record batch", "table of chunks"])
def test_what_is_arrows_arrives_without_a_copy_and_can_only_be_read(run, kind):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    numbers = pyarrow.array(numpy.arange(MB))
    strings = pyarrow.array(["a string"] * MB)
    sent = {
        "buffer": lambda: pyarrow.py_buffer(bytes(MB)),
        "array": lambda: numbers,
        "strings": lambda: strings,
        "nulls": lambda: pyarrow.array([None, 1.5] * MB),
        "record batch": lambda: pyarrow.record_batch({"x": numbers, "y": strings}),
        "table of chunks": lambda: pyarrow.table({"x": pyarrow.chunked_array([numbers, numbers.slice(10)])}),
    }[kind]()

    async def main(env):
        async with domains.ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            places = await pool.submit(where_it_lies, sent, weight=1.0)
            assert set(places) == {(True, False)}
            assert len(places) == len(arrow_buffers(sent))
            back = await pool.submit(lambda value: value, sent, weight=1.0)
            assert type(back) is type(sent)
            assert back.equals(sent)
            assert set(where_it_lies(back)) == {(True, False)}
            before = used_bytes()
            again = await pool.submit(lambda value: value, back, weight=1.0)
            assert again.equals(sent)
            assert used_bytes() == before  # what lies in shared memory already is lent as it is

    run(main)


def test_large_data_does_not_travel_over_the_link(run):
    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            link = domain._handle.link
            sizes = []
            write = link._write
            link._write = lambda envelope, buffers: (
                sizes.extend(memoryview(buffer).nbytes for buffer in buffers),
                write(envelope, buffers),
            )
            assert await domain.call(numpy.sum, numpy.ones(MB)) == MB
            assert await domain.call(len, b"x" * 4 * MB) == 4 * MB
            assert len(sizes) == 2
            assert max(sizes) < 1000

    run(main)


def test_arguments_are_what_they_were_when_they_were_submitted(run):
    async def main(env):
        async with domains.ExecutorPool(env.domain_mgr, domain_count=1) as pool, domains.Switch() as switch:
            values = numpy.ones(MB)
            promise = pool.submit_fork(switch, numpy.sum, values, weight=1.0)
            values[:] = 0
            assert await promise == MB

    run(main)


def test_what_was_sent_is_let_go_of_when_the_job_has_ended_and_dropped_it(run):
    async def main(env):
        async with domains.ExecutorPool(env.domain_mgr, domain_count=2) as pool:
            async for _ in pool.map(len, [b"x" * MB for _ in range(20)], weight=1.0):
                pass
            for _ in range(20):
                await pool.submit(numpy.sum, numpy.ones(MB), weight=1.0)
            await pool.submit(gc.collect, weight=1.0)
            await pool.submit(gc.collect, weight=1.0)
            assert used_bytes() <= 8 * MB  # what a domain's last job had may wait there for the next
            assert process_arena().statistics().committed_bytes < 64 * MB
        assert leases() == used_bytes() == 0

    run(main)
    assert process_arena().statistics() == (0, 0, 0, 0, 0)


_kept = []


def keep(value):
    _kept.append(value)


def kept_sum():
    return float(_kept[-1].sum())


def test_a_view_may_be_kept_for_as_long_as_one_likes(run):
    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            await domain.call(keep, numpy.full(MB, 2.0))
            for number in range(20):
                await domain.call(numpy.sum, numpy.full(MB, float(number)))
            assert await domain.call(kept_sum) == 2.0 * MB

    run(main)


def test_a_result_outlives_the_domain_that_made_it_and_the_program(run):
    async def main(env):
        return await env.domain_mgr.run(numpy.full, MB, 3.0)

    result = run(main)
    assert result.sum() == 3.0 * MB
    assert not result.flags.writeable


def test_what_came_from_one_domain_goes_to_another_without_a_copy(run):
    async def main(env):
        async with env.domain_mgr.spawn() as one, env.domain_mgr.spawn() as other:
            made = await one.call(numpy.full, MB, 3.0)
            await other.call(keep, made)
            assert used_bytes() == 0  # nothing of it was copied here
            del made
            assert await other.call(kept_sum) == 3.0 * MB
        assert leases() == 0

    run(main)


def test_it_is_there_still_when_the_one_it_came_from_and_the_one_between_are_gone(run):
    async def main(env):
        async with env.domain_mgr.spawn() as other:
            async with env.domain_mgr.spawn() as one:
                made = await one.call(numpy.full, MB, 3.0)
                await other.call(keep, made)
                del made
            async with env.domain_mgr.spawn() as third:
                assert (await third.call(numpy.full, MB, 4.0)).sum() == 4.0 * MB
            assert await other.call(kept_sum) == 3.0 * MB

    run(main)


def die(value):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_domain_that_is_killed_leaves_nothing_lent(run):
    async def main(env):
        for _ in range(3):
            with pytest.raises(domains.DomainDied):
                await env.domain_mgr.run(die, numpy.ones(MB))
        process_arena().keep_house()
        assert leases() == used_bytes() == 0

    run(main)


def fail_once(path, values):
    if not os.path.exists(path):
        with open(path, "w"):
            os.kill(os.getpid(), signal.SIGKILL)
    return float(values.sum())


def test_a_job_that_is_tried_again_has_its_arguments_again(run, tmp_path):
    async def main(env):
        async with domains.ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            values = numpy.ones(MB)
            assert await pool.submit(fail_once, str(tmp_path / "died"), values, weight=1.0, retries=1) == MB

    run(main)


def resolve(resolver):
    resolver.resolve(numpy.full(MB, 5.0))


async def total(promise):
    return float((await promise).sum())


def test_a_promise_is_resolved_with_large_data_by_a_domain_that_ends_at_once(run):
    async def main(env):
        promise, resolver = domains.Promise.create()
        async with env.domain_mgr.spawn() as other, domains.Switch() as switch:
            there = switch.fork_promise(other.call, total, promise)
            await env.domain_mgr.run(resolve, resolver)
            assert await there == 5.0 * MB
            assert (await promise).sum() == 5.0 * MB

    run(main)


def test_exceptions_carry_large_data(run):
    async def main(env):
        def fail():
            raise ValueError(numpy.full(MB, 5.0))

        with pytest.raises(ValueError, match="5") as caught:
            await env.domain_mgr.run(fail)
        assert caught.value.args[0].sum() == 5.0 * MB

    run(main)


@pytest.mark.parametrize("size", [1, 100, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 5 * MB, 70 * MB])
def test_messages_of_any_size_arrive(run, size):
    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            assert await domain.call(bytes, size) == bytes(size)
            assert await domain.call(len, bytearray(size)) == size
            assert (await domain.call(lambda x: x, numpy.ones(size, numpy.uint8))).sum() == size

    run(main)


@pytest.mark.slow
def test_two_gigabytes_arrive(run):
    async def main(env):
        size = 1 << 31
        assert await env.domain_mgr.run(len, bytes(size)) == size
        assert await env.domain_mgr.run(numpy.sum, numpy.ones(size, numpy.uint8)) == size

    run(main)


def test_ten_thousand_small_buffers_arrive_in_one_message(run):
    async def main(env):
        arrays = [numpy.full(100, number) for number in range(10_000)]
        back = await env.domain_mgr.run(lambda xs: [x + 1 for x in xs], arrays)
        assert all((x == number + 1).all() for number, x in enumerate(back))

    run(main)


def test_a_thousand_large_buffers_arrive_in_one_message(run):
    async def main(env):
        arrays = [numpy.full(1 << 16, number % 256, numpy.uint8) for number in range(1000)]
        back = await env.domain_mgr.run(lambda xs: [x[7] for x in xs], arrays)
        assert back == [number % 256 for number in range(1000)]

    run(main)


def test_what_does_not_fit_into_the_arena_travels_over_the_link(run, monkeypatch):
    async def main(env):
        monkeypatch.setattr(process_arena()._own, "limit_bytes", 9 * MB)
        async with domains.ExecutorPool(env.domain_mgr, domain_count=1) as pool, domains.Switch() as switch:
            values = numpy.ones(MB)
            promises = []
            for _ in range(3):
                promises.append(pool.submit_fork(switch, numpy.sum, values, weight=1.0))
                values += 1
            assert [await promise for promise in promises] == [MB, 2 * MB, 3 * MB]
            assert await pool.submit(len, b"x" * 12 * MB, weight=1.0) == 12 * MB

    run(main)


# Shared arrays


def fill(values, number):
    values[:] = number


def test_a_shared_array_is_written_by_all_who_have_it(run):
    async def main(env):
        values = domains.shared_array((1000, 100), numpy.int64)
        assert values.shape == (1000, 100)
        assert not values.any()
        async with env.domain_mgr.spawn() as one, env.domain_mgr.spawn() as other:
            await one.call(fill, values, 3)
            assert (values == 3).all()
            await other.call(fill, values[500:], 4)
            values[0] = 5
            assert await one.call(numpy.sum, values) == values.sum() == 499 * 300 + 500 * 400 + 500

    run(main)


def test_a_small_shared_array_is_shared_as_well(run):
    async def main(env):
        values = domains.shared_array(3)
        await env.domain_mgr.run(fill, values, 3)
        assert list(values) == [3, 3, 3]

    run(main)


@pytest.mark.parametrize("dtype", ["U", "S", "V"])
def test_a_shared_array_of_items_without_a_size_is_refused(dtype):
    with pytest.raises(TypeError, match="has no size"):
        domains.shared_array(3, dtype)


def test_a_shared_array_of_a_domain_is_shared_by_its_parent_and_its_siblings(run):
    async def main(env):
        async with env.domain_mgr.spawn() as one, env.domain_mgr.spawn() as other:
            values = await one.call(make_shared)
            await other.call(fill, values, 7)
            assert (values == 7).all()
            assert await one.call(kept_sum) == 7.0 * len(values)

    run(main)


def make_shared():
    keep(domains.shared_array(1000))
    return _kept[-1]


def test_a_shared_array_is_released_when_the_last_lets_go_of_it(run):
    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            values = domains.shared_array(MB, numpy.uint8)
            await domain.call(keep, values)
            del values
            assert used_bytes() == MB
            await domain.call(_kept.clear)
            await domain.call(forget)
            assert used_bytes() == 0

    run(main)


def forget():
    _kept.clear()
    gc.collect()


def test_a_shared_array_outside_of_any_program_is_there_for_the_next(run):
    values = domains.shared_array(1000)

    async def main(env):
        await env.domain_mgr.run(fill, values, 3)

    run(main)
    assert (values == 3).all()


def test_a_shared_array_beyond_the_limit_is_refused_with_its_size(monkeypatch):
    monkeypatch.setattr(process_arena()._own, "limit_bytes", MB)
    with pytest.raises(domains.ArenaFull, match=f"{8 * MB} bytes .* limit of {MB} bytes") as caught:
        domains.shared_array(MB)
    assert (caught.value.size_bytes, caught.value.limit_bytes) == (8 * MB, MB)


@pytest.mark.parametrize(
    ("shape", "dtype", "error"),
    [(-1, float, ValueError), ((2, -3), float, ValueError), (2.5, float, TypeError), (3, object, TypeError)],
)
def test_a_shared_array_that_makes_no_sense_is_refused(shape, dtype, error):
    with pytest.raises(error):
        domains.shared_array(shape, dtype)


@pytest.mark.parametrize("shape", [0, (), (3, 0)])
def test_a_shared_array_may_be_empty_or_a_scalar(shape):
    assert domains.shared_array(shape).shape == (shape if isinstance(shape, tuple) else (shape,))
