"""Pickling: what travels, how, and what one is told when something cannot."""

import array
import asyncio
import collections
import copyreg
import dataclasses
import functools
import io
import os
import pickle
import subprocess
import sys
import threading

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains import Cancelled, NotPicklable
from domains.ipc import pickling as pickling_module
from domains.ipc.arena import Arena
from domains.ipc.pickling import OUT_OF_BAND_BYTES, Payload, Pickling


@pytest.fixture
def pickling():
    return Pickling()


def there_and_back(pickling, value):
    payload = pickling.dumps(value, "a value")
    return pickling.loads(payload.data, [memoryview(buffer) for buffer in payload.buffers])


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner) | st.frozensets(st.integers())
    ),
    max_leaves=20,
)


@given(plain)
def test_plain_values_arrive_equal_and_of_the_same_type(value):
    arrived = there_and_back(Pickling(), value)
    assert arrived == value
    assert type(arrived) is type(value)


def test_small_values_have_no_buffers(pickling):
    assert pickling.dumps((1, "two", [3.0]), "a value").buffers == []


# Buffers


@pytest.mark.parametrize("size", [OUT_OF_BAND_BYTES, OUT_OF_BAND_BYTES + 1])
def test_a_large_array_goes_out_of_band_without_a_copy(pickling, size):
    sent = numpy.arange(size, dtype=numpy.uint8)
    data, buffers = pickling.dumps([sent], "a value")[:2]
    assert len(data) < 1000
    assert len(buffers) == 1
    assert numpy.shares_memory(numpy.frombuffer(buffers[0], numpy.uint8), sent)
    assert (pickling.loads(data, buffers)[0] == sent).all()


def test_an_array_below_the_threshold_stays_in_the_pickle(pickling):
    sent = numpy.zeros(OUT_OF_BAND_BYTES // 2, numpy.uint8)
    payload = pickling.dumps(sent, "a value")
    assert payload.buffers == []
    assert (pickling.loads(payload.data, payload.buffers) == sent).all()


def test_more_buffers_than_a_message_takes_are_refused(pickling, monkeypatch):
    monkeypatch.setattr(pickling_module, "MOST_BUFFERS", 3)
    large = [bytearray(OUT_OF_BAND_BYTES) for _ in range(3)]
    assert len(pickling.dumps([*map(memoryview, large[:2])], "a value").buffers) == 2
    with pytest.raises(NotPicklable, match="a value cannot be pickled: it has 3 large buffers"):
        pickling.dumps([*map(memoryview, large)], "a value")


def test_large_and_small_buffers_keep_their_order(pickling):
    sent = [numpy.full(size, n, numpy.uint8) for n, size in enumerate([10, 100_000, 20, 200_000, 30])]
    payload = pickling.dumps(sent, "a value")
    assert [memoryview(buffer).nbytes for buffer in payload.buffers] == [100_000, 200_000]
    for arrived, was in zip(pickling.loads(payload.data, payload.buffers), sent, strict=True):
        assert (arrived == was).all()


def test_a_buffer_in_a_by_value_pickle_goes_out_of_band_too(pickling):
    large = numpy.zeros(OUT_OF_BAND_BYTES, numpy.uint8)
    payload = pickling.dumps((lambda: 1, large), "a value")
    assert len(payload.buffers) == 1
    f, arrived = pickling.loads(payload.data, payload.buffers)
    assert f() == 1
    assert (arrived == large).all()


def test_a_failed_first_attempt_leaves_no_buffers_behind(pickling):
    """The plain pickler meets the array before the lambda that it refuses."""
    large = numpy.zeros(OUT_OF_BAND_BYTES, numpy.uint8)
    assert len(pickling.dumps((large, lambda: 1), "a value").buffers) == 1


def test_an_array_that_is_not_contiguous_arrives_whole(pickling):
    sent = numpy.arange(200_000, dtype=numpy.int32)[::2]
    assert (there_and_back(pickling, sent) == sent).all()


@pytest.mark.parametrize(
    "make", [lambda: bytes(200_000), lambda: "x" * 200_000, lambda: (bytes(200_000),)], ids=range(3)
)
def test_a_large_pickle_is_itself_the_last_buffer(pickling, make):
    sent = (make(), numpy.zeros(100_000, numpy.uint8))
    data, buffers = pickling.dumps(sent, "a value")[:2]
    assert len(data) == 1
    assert len(buffers) == 2
    assert pickling.loads(data, buffers)[0] == make()
    assert there_and_back(pickling, make()) == make()


def test_a_fortran_ordered_array_arrives_whole(pickling):
    sent = numpy.asfortranarray(numpy.arange(90_000, dtype=numpy.int32).reshape(300, 300))
    arrived = there_and_back(pickling, sent)
    assert (arrived == sent).all()


@pytest.mark.parametrize("value", [bytes(200_000), bytearray(200_000), array.array("d", [1.5] * 30_000)], ids=type)
def test_other_large_values_arrive_equal(pickling, value):
    assert there_and_back(pickling, value) == value


# Reducers


class Counter:
    def __init__(self, number):
        self.number = number


def make_counter(number):
    return Counter(number)


class Exports:
    def __init__(self):
        self.exported = []

    def reduce(self, counter):
        self.exported.append(counter)
        return make_counter, (counter.number + 1,)


def test_a_reducer_may_be_a_bound_method_that_keeps_account():
    exports = Exports()
    one, two = Counter(1), Counter(2)
    arrived = there_and_back(Pickling({Counter: exports.reduce}), {"inner": [one, (two,)]})
    assert arrived["inner"][0].number == 2
    assert arrived["inner"][1][0].number == 3
    assert exports.exported == [one, two]


def test_a_reducer_is_asked_in_by_value_pickles_too():
    exports = Exports()
    counter = Counter(1)
    f = there_and_back(Pickling({Counter: exports.reduce}), lambda: counter.number)
    assert f() == 2
    assert counter in exports.exported


def test_reducers_of_one_pickling_are_not_those_of_another():
    Pickling({Counter: Exports().reduce})
    assert there_and_back(Pickling(), Counter(1)).number == 1


class RegisteredLater:
    pass


def _make_registered():
    return "registered"


def test_a_reducer_registered_with_copyreg_later_is_used(pickling):
    assert type(there_and_back(pickling, [RegisteredLater()])[0]) is RegisteredLater
    copyreg.pickle(RegisteredLater, lambda value: (_make_registered, ()))
    try:
        assert there_and_back(pickling, [RegisteredLater()]) == ["registered"]
    finally:
        del copyreg.dispatch_table[RegisteredLater]


def test_a_reducer_replaced_in_copyreg_is_used(pickling):
    copyreg.pickle(RegisteredLater, lambda value: (_make_registered, ()))
    try:
        assert there_and_back(pickling, [RegisteredLater()]) == ["registered"]
        copyreg.pickle(RegisteredLater, lambda value: (str, ("replaced",)))
        assert there_and_back(pickling, [RegisteredLater()]) == ["replaced"]
    finally:
        del copyreg.dispatch_table[RegisteredLater]


# Functions


def _top_level(x):
    return x + 1


def test_an_importable_function_goes_by_name(pickling):
    code = pickling.dumps_function(os.path.join)
    assert len(code) < 100
    assert pickling.loads(code, ()) is os.path.join


def test_the_same_function_gives_the_same_bytes(pickling):
    def f(x):
        return x * 2

    assert pickling.dumps_function(f) == pickling.dumps_function(f)


def test_lambdas_closures_and_partials_travel(pickling):
    n = 5

    def closure(x):
        return x + n

    for f, expected in [(lambda x: x - 1, 9), (closure, 15), (functools.partial(pow, 2), 1024)]:
        assert pickling.loads(pickling.dumps_function(f), ())(10) == expected


def test_a_function_with_a_large_array_is_bytes_alone(pickling):
    large = numpy.arange(100_000)

    def total():
        return int(large.sum())

    code = pickling.dumps_function(total)
    assert type(code) is bytes
    assert pickling.loads(code, ())() == large.sum()


_IN_MAIN = """
import sys
from domains.ipc.pickling import Pickling

class Point:
    def __init__(self, x): self.x = x
    def double(self): return self.x * 2

def f(x): return Point(x).double()

pickling = Pickling()
out = sys.stdout.buffer
out.write(pickling.dumps_function(f).hex().encode() + b"\\n")
out.write(pickling.dumps([Point(21)], "a value").data.hex().encode() + b"\\n")
out.write(pickling.dumps([Point(21), 1 << 1_100_000], "a value").buffers[0].hex().encode() + b"\\n")
"""


def test_what_main_defines_opens_in_a_process_that_never_saw_it():
    done = subprocess.run([sys.executable, "-c", _IN_MAIN], capture_output=True, check=True)
    function, points, beside_large_int = (bytes.fromhex(line.decode()) for line in done.stdout.split())
    pickling = Pickling()
    assert pickling.loads(function, ())(4) == 8
    assert pickling.loads(points, ())[0].double() == 42
    assert pickling.loads(beside_large_int, ())[0].double() == 42


def test_text_that_mentions_main_arrives_as_it_is(pickling):
    assert there_and_back(pickling, ["__main__"]) == ["__main__"]


# What cannot travel


def refused(pickling, value, what="argument 1 of job 'resize'"):
    with pytest.raises(NotPicklable) as caught:
        pickling.dumps(value, what)
    return str(caught.value)


class HasSlots:
    __slots__ = ("empty", "handle")

    def __init__(self, handle):
        self.handle = handle


@dataclasses.dataclass
class Picture:
    name: str
    handle: object


Named = collections.namedtuple("Named", ["first", "second"])


class WithAttributes:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def _lock():
    return threading.Lock()


_A_LOCK = _lock()


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (_lock, " (type _thread.lock)"),
        (lambda: [1, [2, _lock()]], "[1][1] (type _thread.lock)"),
        (lambda: {"pictures": [0, 1, 2, Picture("a", _lock())]}, "['pictures'][3].handle (type _thread.lock)"),
        (lambda: {_lock(): 1}, " key "),
        (lambda: {_lock()}, " member "),
        (lambda: HasSlots(_lock()), ".handle (type _thread.lock)"),
        (lambda: WithAttributes(a=1, b=_lock()), ".b (type _thread.lock)"),
        (lambda: Named(1, _lock()), "[1] (type _thread.lock)"),
        (lambda: functools.partial(print, 1, _lock()), ".args[1] (type _thread.lock)"),
        (lambda: functools.partial(print, end=_lock()), ".keywords['end'] (type _thread.lock)"),
        (lambda: functools.partial(print, 1, [{}, {"x": _lock()}]), ".args[1][1]['x'] (type _thread.lock)"),
        (lambda: WithAttributes(a=_lock()).__init__, ".__self__.a (type _thread.lock)"),
        (lambda: ValueError("text", _lock()), ".args[1] (type _thread.lock)"),
        (lambda: collections.deque([1, _lock()]), "[1] (type _thread.lock)"),
    ],
)
def test_the_path_leads_to_what_cannot_travel(pickling, make, path):
    assert f"argument 1 of job 'resize'{path}" in refused(pickling, make())


def test_an_open_file_is_named_with_its_type(pickling, tmp_path):
    with open(tmp_path / "file", "w") as file:
        assert "['handle'] (type _io.TextIOWrapper)" in refused(pickling, {"handle": file})


def test_the_variable_of_a_closure_is_named(pickling):
    guard = _lock()

    def f():
        return guard

    assert "variable 'guard' of its closure (type _thread.lock)" in refused(pickling, f)


def test_a_default_of_a_function_is_named(pickling):
    def f(x, y=_A_LOCK, *, z=1):
        return x, y, z

    def g(x, *, z=_A_LOCK):
        return x, z

    assert "default 0 (type _thread.lock)" in refused(pickling, f)
    assert "default of 'z' (type _thread.lock)" in refused(pickling, g)


def test_a_global_that_a_by_value_function_uses_is_named(pickling):
    space = {"guard": _lock(), "__name__": "__main__", "__builtins__": __builtins__}
    exec("def f():\n    return guard", space)
    assert "global 'guard' (type _thread.lock)" in refused(pickling, space["f"])


def test_a_global_that_only_a_nested_function_uses_is_named(pickling):
    space = {"guard": _lock(), "__name__": "__main__", "__builtins__": __builtins__}
    exec("def f():\n    return [guard for _ in range(2)], (lambda: guard)", space)
    assert "global 'guard' (type _thread.lock)" in refused(pickling, space["f"])


class Refuses:
    def __reduce__(self):
        raise RuntimeError("never to leave home")


class ReducesToNonsense:
    def __reduce__(self):
        return 42


class ReducesToItself:
    def __reduce__(self):
        return ReducesToItself, (ReducesToItself(),)


def test_what_a_reduce_raises_is_the_reason(pickling):
    text = refused(pickling, {"x": Refuses()})
    assert "['x']" in text
    assert "never to leave home" in text


def test_a_reduce_that_returns_nonsense_is_refused(pickling):
    assert "['x']" in refused(pickling, {"x": ReducesToNonsense()})


def test_endless_nesting_is_refused(pickling):
    refused(pickling, ReducesToItself())
    value = []
    for _ in range(100_000):
        value = [value]
    try:
        refused(pickling, value)
    finally:
        while value:
            value = value.pop()


def test_a_container_that_contains_itself_is_walked_once(pickling):
    value = [1]
    value.append(value)
    value.append(_lock())
    assert "[2] (type _thread.lock)" in refused(pickling, value)


class BadRepr:
    def __repr__(self):
        raise RuntimeError("no repr")

    def __hash__(self):
        return 1

    def __reduce__(self):
        raise RuntimeError("nor a pickle")


class ReprThatExits(BadRepr):
    def __repr__(self):
        raise SystemExit(3)


class BadProperty:
    __slots__ = ()

    def __reduce__(self):
        raise RuntimeError("no pickle")

    @property
    def __dict__(self):
        raise RuntimeError("no attributes either")


class PropertyThatExits(BadProperty):
    __slots__ = ()

    @property
    def __dict__(self):
        raise SystemExit(3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: {BadRepr(): 1},
        lambda: {ReprThatExits(): 1},
        lambda: {BadRepr()},
        BadRepr,
        BadProperty,
        PropertyThatExits,
    ],
    ids=range(6),
)
def test_objects_that_raise_while_they_are_walked_still_give_one_clear_error(pickling, make):
    assert "argument 1" in refused(pickling, make())


def test_the_walk_is_bounded(pickling):
    calls = 0

    class Costly:
        def __reduce__(self):
            nonlocal calls
            calls += 1
            return int, ()

    refused(pickling, [Costly() for _ in range(20_000)] + [_lock()])
    assert calls < 200_000


def test_the_error_travels_itself(pickling):
    with pytest.raises(NotPicklable) as caught:
        pickling.dumps([_lock()], "a value")
    arrived = there_and_back(pickling, caught.value)
    assert str(arrived) == str(caught.value)


# Opening


def _raise(error):
    raise error


class Trap:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        return _raise, (self.error,)


class NeedsTwo(Exception):
    def __init__(self, first, second):
        super().__init__("one")


@pytest.mark.parametrize(
    "error", [ValueError("trap"), RecursionError("trap"), MemoryError("trap"), KeyError("trap")], ids=repr
)
def test_what_a_constructor_raises_is_not_picklable(pickling, error):
    data = pickle.dumps(Trap(error))
    with pytest.raises(NotPicklable, match=f"{type(error).__name__}.*trap"):
        pickling.loads(data, ())


@pytest.mark.parametrize("error", [SystemExit(1), asyncio.CancelledError(), GeneratorExit()], ids=repr)
def test_a_constructor_that_exits_does_not_take_the_reader_along(pickling, error):
    with pytest.raises(NotPicklable, match=type(error).__name__):
        pickling.loads(pickle.dumps(Trap(error)), ())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Cancelled()], ids=repr)
def test_what_interrupts_from_outside_passes_through(pickling, error):
    with pytest.raises(type(error)):
        pickling.loads(pickle.dumps(Trap(error)), ())
    with pytest.raises(type(error)):
        pickling.dumps(RaisesInReduce(error), "a value")


def test_a_reduce_that_exits_is_refused(pickling):
    assert "['x']" in refused(pickling, {"x": RaisesInReduce(SystemExit(3))})


class RaisesInReduce:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


class BadText(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def test_an_error_that_has_no_text_is_reported_by_its_type(pickling):
    assert "BadText" in refused(pickling, RaisesInReduce(BadText()))
    with pytest.raises(NotPicklable, match="BadText"):
        pickling.loads(pickle.dumps(Trap(BadText())), ())


def test_an_exception_whose_constructor_wants_more_is_not_picklable(pickling):
    with pytest.raises(NotPicklable, match="second"):
        pickling.loads(pickling.dumps(NeedsTwo(1, 2), "a value").data, ())


def test_a_missing_module_is_named_with_a_hint(pickling):
    data = pickle.dumps(_top_level).replace(__name__.encode(), b"x" * len(__name__))
    with pytest.raises(NotPicklable, match="must be importable in every domain"):
        pickling.loads(data, ())


def test_a_missing_name_is_not_picklable(pickling):
    data = pickle.dumps(_top_level).replace(b"_top_level", b"_not_there")
    with pytest.raises(NotPicklable, match="_not_there"):
        pickling.loads(data, ())


def test_too_few_buffers_is_not_picklable(pickling):
    payload = pickling.dumps(numpy.zeros(OUT_OF_BAND_BYTES, numpy.uint8), "a value")
    with pytest.raises(NotPicklable):
        pickling.loads(payload.data, [])


@given(st.data())
def test_a_truncated_pickle_is_not_picklable(data):
    pickling = Pickling()
    whole = pickling.dumps({"a": [1, 2.0, "three"], "b": (None, b"four")}, "a value").data
    with pytest.raises(NotPicklable):
        pickling.loads(whole[: data.draw(st.integers(0, len(whole) - 1))], ())


def test_a_payload_is_data_and_buffers(pickling):
    assert pickling.dumps(1, "a value")[:2] == Payload(pickle.dumps(1, 5), [])[:2]


def test_nothing_is_kept_between_values(pickling):
    file = io.StringIO()
    refused(pickling, [numpy.zeros(OUT_OF_BAND_BYTES), file, _lock()])
    assert there_and_back(pickling, [1, 2]) == [1, 2]


@pytest.mark.parametrize(
    "values",
    [
        numpy.arange(12).reshape(3, 4),
        numpy.arange(12).reshape(3, 4).T,
        numpy.arange(12)[::2],
        numpy.array(3.5),
        numpy.zeros((3, 0)),
        numpy.array([True, False]),
        numpy.array([1 + 2j], numpy.complex64),
        numpy.array([1, 2], ">i4"),
        numpy.array([1, 2], numpy.longlong),
        numpy.array(["a", "bc"]),
        numpy.array([b"a"]),
        numpy.array(["2020-01-01"], "M8[D]"),
        numpy.array([(1, 2.0)], [("x", int), ("y", float)]),
        numpy.zeros((0, 3), "m8[s]"),
        numpy.array(5, ">M8[s]"),
        numpy.asfortranarray(numpy.arange(20_000).view("M8[s]").reshape(200, 100)),
        numpy.zeros(2, [("inner", [("when", "M8[D]")], 3), ("name", "U3")]),
        numpy.zeros(2, "V0"),
        numpy.array([1, "x", None], object),
        numpy.array([1.0], numpy.dtype(float, metadata={"unit": "m"})),
        numpy.ma.masked_array([1, 2], [True, False]),
        numpy.ones(20_000),
        numpy.asfortranarray(numpy.ones((200, 100))),
    ],
    ids=lambda values: f"{type(values).__name__} {values.dtype} {values.shape}",
)
def test_arrays_of_all_kinds_arrive_as_they_are(values):
    arrived = there_and_back(Pickling(), [values])[0]
    assert type(arrived) is type(values)
    assert arrived.dtype == values.dtype
    assert arrived.dtype.char == values.dtype.char
    assert arrived.shape == values.shape
    assert (arrived == values).all()


@pytest.mark.parametrize("dtype", ["M8[s]", "m8[s]", [("when", "M8[s]"), ("x", float)]], ids=str)
def test_arrays_of_times_are_shared_as_others_are(dtype):
    arena = Arena(1 << 20)
    values = numpy.ndarray((2, 3), dtype, arena.allocate_shared(6 * numpy.dtype(dtype).itemsize))
    for each in values, values[1], values.T:
        payload = Pickling(memory=arena).dumps(each, "a value")
        arrived = pickle.loads(payload.data, buffers=payload.buffers)
        assert numpy.shares_memory(arrived, values)
        assert (arrived.dtype, arrived.strides) == (each.dtype, each.strides)


def test_a_small_array_can_be_written_where_it_arrives_unless_it_could_not_be_here():
    values = numpy.arange(3)
    assert there_and_back(Pickling(), values).flags.writeable
    values.flags.writeable = False
    assert not there_and_back(Pickling(), values).flags.writeable


def test_memoryviews_arrive_with_their_format_and_shape():
    for view in (
        memoryview(array.array("d", [1.5, 2.5])),
        memoryview(bytes(range(12))).cast("B", (3, 4)),
        memoryview(b""),
        memoryview(bytes(10))[::2],
        memoryview(numpy.ones((200, 100))),
    ):
        arrived = there_and_back(Pickling(), view)
        assert (arrived.format, arrived.shape) == (view.format, view.shape)
        assert arrived.tolist() == view.tolist()


def test_a_memoryview_that_cannot_be_rebuilt_is_refused():
    with pytest.raises(NotPicklable, match="format"):
        Pickling().dumps(memoryview(numpy.zeros(2, ">i4")), "a value")


@pytest.mark.parametrize("size", [OUT_OF_BAND_BYTES - 100, OUT_OF_BAND_BYTES, 3 * OUT_OF_BAND_BYTES])
def test_large_bytes_among_other_things_arrive(size):
    value = {"x": [b"a" * size, 1, bytearray(b"b" * size)], "y": "c" * size, "z": (b"", {b"d" * size})}
    assert there_and_back(Pickling(), value) == value
