"""The arena: what lies where, who may read it for how long, and that nothing is left of it."""

import errno
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from multiprocessing import resource_tracker
from pathlib import Path

import numpy
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains import NotPicklable
from domains.ipc import arena as arena_module
from domains.ipc import leases
from domains.ipc.arena import Arena
from domains.ipc.blocks import Blocks, whole_pages
from domains.ipc.descriptors import DESCRIPTOR_BYTES, Descriptor, LostBuffer
from domains.ipc.leases import CELLS, Cells, LeaseState, StaleLease, is_alive, this_process
from domains.ipc.parts import Foreign, new_loan
from domains.ipc.pickling import Pickling
from domains.ipc.segments import Segment, has_memfd
from tests.faults.limits import no_more_descriptors
from tests.ipc.borrower import Borrower

MB = 1 << 20
KINDS = ["memfd", "named"] if has_memfd else ["named"]


@pytest.fixture(scope="session", autouse=True)
def what_multiprocessing_starts_once():
    """The process that cleans up after named segments, for the life of this one."""
    resource_tracker.ensure_running()
    tracker = psutil.Process(resource_tracker._resource_tracker._pid)
    while tracker.status() != psutil.STATUS_SLEEPING:
        time.sleep(0.001)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def borrowers(kind):
    made = []

    def make():
        made.append(Borrower(kind == "named"))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def borrower(borrowers):
    return borrowers()


@pytest.fixture
def make_arena(kind):
    made = []

    def make(limit_bytes=64 * MB):
        made.append(Arena(limit_bytes, named=kind == "named"))
        made[-1].enter()
        return made[-1]

    yield make
    gc.collect()
    for each in made:
        each.leave()


@pytest.fixture
def arena(make_arena):
    return make_arena()


def lend(arena, buffer, link="link"):
    (descriptor,) = arena.lend([buffer], link)
    assert len(descriptor) == DESCRIPTOR_BYTES
    return descriptor


def wait_for_names_to_go(borrower):
    """Until the resource tracker of a killed process, if it had named anything, has cleaned up after it."""
    while list(Path("/dev/shm").glob(f"domains-{borrower.pid}-*")):
        time.sleep(0.001)


# Own memory


def test_what_is_kept_is_a_copy_joined_and_read_only(arena):
    source = bytearray(b"ab" * 50_000)
    kept = arena.keep([source, b"end"])
    source[:] = bytes(100_000)
    assert bytes(kept) == b"ab" * 50_000 + b"end"
    assert kept.readonly


def test_memory_is_used_again_once_nothing_refers_to_it(arena):
    first = arena.keep([bytes(MB)])
    address = numpy.frombuffer(first, numpy.uint8).ctypes.data
    part = memoryview(first)[10:20]
    del first
    other = arena.keep([bytes(MB)])
    assert numpy.frombuffer(other, numpy.uint8).ctypes.data != address  # a part of the first is still in use
    del part
    again = arena.keep([bytes(MB)])
    assert numpy.frombuffer(again, numpy.uint8).ctypes.data == address


def test_there_is_no_room_beyond_the_limit_and_again_when_something_goes(make_arena):
    arena = make_arena(4 * MB)
    kept = [arena.keep([bytes(MB)]) for _ in range(4)]
    assert None not in kept
    assert arena.keep([bytes(MB)]) is None
    assert arena.statistics().committed_bytes == 4 * MB
    kept.pop()
    assert arena.keep([bytes(MB)]) is not None


def test_what_is_larger_than_any_segment_gets_one_of_its_own_within_the_limit(make_arena):
    arena = make_arena(100 * MB)
    small = arena.keep([bytes(MB)])
    assert arena.keep([bytes(99 * MB)]).nbytes == 99 * MB
    assert small.nbytes == MB


def test_empty_segments_make_room_for_a_segment_of_another_size(make_arena):
    arena = make_arena(100 * MB)
    assert arena.keep([bytes(50 * MB)]) is not None
    assert arena.keep([bytes(90 * MB)]) is not None


def test_shared_memory_is_zero_even_where_there_was_something(arena):
    assert arena.keep([b"x" * 3 * MB]) is not None
    shared = arena.allocate_shared(3 * MB - 5)
    assert bytes(shared) == bytes(3 * MB - 5)
    assert not shared.readonly


def test_a_full_file_system_means_no_room_and_not_a_crash():
    # The limit on a file's size stands for a tmpfs that is full: what is committed beyond it is refused alike.
    program = (
        "import resource\n"
        "from domains.ipc.arena import Arena\n"
        "arena = Arena(1 << 30); arena.enter()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))\n"
        "print(arena.keep([bytes(8 << 20)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "None", "")


def test_a_tiny_tmpfs_means_no_room_and_not_a_crash(tmp_path):
    program = (
        "from domains.ipc.arena import Arena\n"
        "arena = Arena(1 << 30, named=True); arena.enter()\n"
        "first = arena.keep([b'x' * (2 << 20)])\n"
        "print(first.nbytes, arena.keep([b'x' * (8 << 20)]))\n"
        "del first\n"
        "arena.leave()\n"
    )
    script = f'mount -t tmpfs -o size=5m tiny /dev/shm && exec {sys.executable} -c "$PROGRAM"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env={**os.environ, "PROGRAM": program},
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"this user may not mount a tmpfs: {done.stderr}")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, f"{2 << 20} None", "")


# Lending


def test_another_process_reads_what_was_kept_here_where_it_lies(arena, borrower):
    kept = arena.keep([b"\x07" * MB])
    assert borrower.borrow(lend(arena, kept)) == "7"
    assert arena.statistics().leases == 1


def test_what_does_not_lie_in_an_arena_travels_as_it_is(arena):
    buffer = bytes(MB)
    (sent,) = arena.lend([buffer], "link")
    assert sent is buffer
    (received,) = arena.borrow([memoryview(buffer)])
    assert received.obj is buffer


def test_what_was_lent_is_kept_until_it_is_given_back(arena, borrower):
    descriptor = lend(arena, arena.keep([b"\x07" * MB]))
    assert borrower.borrow(descriptor) == "7"
    other = arena.keep([b"\x08" * MB])
    assert borrower("read") == "7"
    assert arena.statistics().used_bytes == 2 * MB
    borrower("drop")
    del other
    assert arena.statistics()[2:] == (0, 0, 0)


def test_only_shared_memory_can_be_written_by_who_borrows_it(make_arena):
    arena, other = make_arena(), make_arena()
    kept, shared = arena.keep([bytes(MB)]), arena.allocate_shared(MB)
    for buffer, readonly in (kept, True), (shared, False), (shared.toreadonly(), True):
        (view,) = other.borrow([memoryview(lend(arena, buffer))])
        assert view.readonly is readonly
    assert other.has_shared


def test_both_sides_see_what_either_writes_to_shared_memory(arena, borrower):
    shared = arena.allocate_shared(10)
    shared[0] = 3
    assert borrower.borrow(lend(arena, shared)) == "3"
    borrower("write", 9)
    assert shared[0] == 9


def test_a_part_of_what_lies_in_the_arena_is_lent_like_the_whole(arena, borrower):
    kept = arena.keep([bytes(MB) + b"\x05" * MB])
    part = kept[MB:]
    del kept
    assert borrower.borrow(lend(arena, part)) == "5"


def test_a_process_that_is_killed_gives_back_what_it_had(arena, borrower):
    borrower.borrow(lend(arena, arena.keep([b"\x07" * MB])))
    assert arena.statistics().leases == 1
    borrower.kill()
    arena.link_gone("link")
    assert arena.statistics()[2:] == (0, 0, 0)


def test_what_was_never_opened_comes_back_when_its_link_is_gone(arena, borrower):
    descriptors = [lend(arena, arena.keep([b"\x07" * MB]), link) for link in ("one", "other")]
    arena.link_gone("one")
    assert arena.statistics().leases == 1
    assert borrower.borrow(descriptors[0]) == "lost"
    assert borrower.borrow(descriptors[1]) == "7"


def test_a_borrower_that_lives_on_keeps_what_it_opened_when_the_link_is_gone(arena, borrower):
    borrower.borrow(lend(arena, arena.keep([b"\x07" * MB])))
    arena.link_gone("link")
    assert arena.statistics().leases == 1
    borrower("drop")
    assert arena.keep_house()
    assert arena.statistics().leases == 0


def test_the_dead_are_buried_later_if_they_still_lived_when_the_link_ended(arena, borrower):
    borrower.borrow(lend(arena, arena.keep([b"\x07" * MB])))
    arena.link_gone("link")
    borrower.kill()
    arena.keep_house()
    assert arena.statistics().leases == 0


def test_a_full_arena_looks_for_the_dead_before_it_gives_up(make_arena, borrower):
    arena = make_arena(MB)
    borrower.borrow(lend(arena, arena.keep([b"\x07" * MB])))
    assert arena.keep([bytes(MB)]) is None
    borrower.kill()
    assert arena.keep([bytes(MB)]) is not None


def test_a_view_outlives_its_lender(arena, borrower):
    descriptor = bytes.fromhex(borrower("keep", MB, 6))
    (view,) = arena.borrow([memoryview(descriptor)])
    borrower.kill()
    assert bytes(view) == b"\x06" * MB


def test_what_a_dead_lender_sent_is_lost_and_said_to_be(arena, borrower):
    descriptor = bytes.fromhex(borrower("keep", MB, 6))
    borrower.kill()
    wait_for_names_to_go(borrower)
    (view,) = arena.borrow([memoryview(descriptor)])
    assert isinstance(view, LostBuffer)
    assert arena.lend([view], "link") == [view]  # passed on, it is as lost there


def test_a_descriptor_of_something_else_is_lost_and_harms_nothing(arena):
    kept = arena.keep([bytes(MB)])
    good = lend(arena, kept)
    for bad in good[:-26] + b"\xff" * 26, good[:16] + bytes(DESCRIPTOR_BYTES - 16):
        (view,) = arena.borrow([memoryview(bad)])
        assert isinstance(view, LostBuffer)


def test_a_lease_is_opened_once(make_arena):
    arena, other = make_arena(), make_arena()
    descriptor = memoryview(lend(arena, arena.keep([bytes(MB)])))
    (first,) = other.borrow([descriptor])
    (second,) = other.borrow([descriptor])
    assert (len(first), type(second)) == (MB, LostBuffer)


def test_what_cannot_be_mapped_for_want_of_descriptors_says_so_and_is_given_back(make_arena):
    arena, other = make_arena(), make_arena()
    descriptor = lend(arena, arena.keep([bytes(MB)]))
    with no_more_descriptors():
        (lost,) = other.borrow([memoryview(descriptor)])
        other.keep_house()
    with pytest.raises(NotPicklable, match="Too many open files"):
        Pickling().loads(b"", [lost])
    assert arena.statistics().leases == 1
    other.keep_house()
    assert arena.statistics().leases == 0


def test_a_borrower_that_cannot_be_looked_up_for_want_of_descriptors_counts_as_alive(arena, borrower):
    assert borrower.borrow(lend(arena, arena.keep([b"\x07" * MB]))) == "7"
    with no_more_descriptors():
        arena.link_gone("link")
    assert arena.statistics().leases == 1
    assert borrower("read") == "7"
    borrower.kill()
    arena.keep_house()
    assert arena.statistics().leases == 0


def test_a_process_that_could_not_read_when_it_was_born_counts_as_alive(monkeypatch):
    monkeypatch.setattr(leases, "_this_process", 0)
    with no_more_descriptors():
        process = this_process()
    assert process == this_process()
    assert is_alive(process)


def test_a_descriptor_without_a_lease_keeps_no_other_that_was_not_opened_from_going_back(make_arena, monkeypatch):
    arena, other = make_arena(), make_arena()
    kept = arena.keep([bytes(MB)])
    right = lend(arena, kept)
    there = Descriptor.read(memoryview(lend(arena, kept)))
    wrong = there._replace(cell=CELLS).pack()

    def fail(location):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Segment, "open", fail)
        other.borrow([memoryview(wrong), memoryview(right)])
    other.keep_house()
    assert arena.statistics().leases == 1


# Passing on


def test_a_view_is_passed_on_without_a_copy_and_stays_lent_until_the_last_lets_go(arena, borrowers):
    near, far = borrowers(), borrowers()
    near.borrow(lend(arena, arena.keep([b"\x07" * MB])))
    assert far("borrow", near("lend")) == "7"
    near("drop")
    assert arena.statistics().leases == 1
    far("drop")
    near("keep", MB, 1)  # it looks for what was given back whenever it needs memory
    assert arena.statistics().leases == 0


def test_a_small_view_that_cannot_be_written_is_shared_as_well_by_who_has_nothing_else(make_arena):
    arena, near = make_arena(), make_arena()
    shared = arena.allocate_shared(10)
    values = numpy.frombuffer(shared.toreadonly(), numpy.uint8)
    for memory in arena, near:
        data, (buffer,), _ = Pickling(memory=memory).dumps(values, "a view")
        (received,) = near.borrow([memoryview(lend(memory, buffer))])
        values = Pickling().loads(data, [received])
    shared[0] = 3
    assert values[0] == 3


def test_what_comes_home_is_the_same_memory(arena, borrower):
    kept = arena.keep([b"\x07" * MB])
    borrower.borrow(lend(arena, kept))
    (view,) = arena.borrow([memoryview(bytes.fromhex(borrower("lend")))])
    assert numpy.shares_memory(numpy.frombuffer(view, numpy.uint8), numpy.frombuffer(kept, numpy.uint8))


def test_memory_is_not_used_again_when_one_who_passed_it_on_has_died(arena, borrowers):
    near, far = borrowers(), borrowers()
    near.borrow(lend(arena, arena.keep([b"\x07" * MB])))
    far("borrow", near("lend"))
    near.kill()
    arena.link_gone("link")
    assert arena.statistics()[1:] == (0, 0, 0, 0)  # the segment is retired
    assert arena.keep([b"\x08" * MB]) is not None
    assert far("read") == "7"


def test_nor_when_that_one_had_another_view_that_began_where_the_one_it_passed_on_began(arena, borrowers):
    near, far = borrowers(), borrowers()
    kept = arena.keep([b"\x07" * MB])
    near.borrow(lend(arena, kept))
    near.borrow(lend(arena, kept[1000:]))
    far("borrow", near("lend", 1000))  # a part of the whole
    near("drop", "last")
    del kept
    near.kill()
    arena.link_gone("link")
    assert arena.keep([b"\x08" * MB]) is not None
    assert far("read") == "7"


def test_nor_when_the_last_of_a_longer_chain_is_out_of_sight(arena, borrowers):
    near, middle, far = borrowers(), borrowers(), borrowers()
    near.borrow(lend(arena, arena.keep([b"\x07" * MB])))
    middle("borrow", near("lend"))
    far("borrow", middle("lend"))
    middle.kill()
    near("drop")
    # The one that is near finds out as it looks for memory, and says that others may have it for longer.
    (other,) = arena.borrow([memoryview(bytes.fromhex(near("keep", MB, 1)))])
    assert other[0] == 1
    assert arena.keep([b"\x08" * MB]) is not None
    assert far("read") == "7"


# Keeping house


def test_idle_segments_are_given_up_and_their_memory_with_them(arena, monkeypatch):
    arena.keep([bytes(MB)])
    assert arena.keep_house()
    assert arena.statistics().segments == 1
    monkeypatch.setattr(arena_module, "IDLE_SECONDS", 0.0)
    assert not arena.keep_house()
    assert arena.statistics() == (0, 0, 0, 0, 0)


def test_memory_that_was_given_up_is_free_though_others_still_map_it(arena, borrower, monkeypatch):
    borrower.borrow(lend(arena, arena.keep([b"\x07" * MB])))
    borrower("drop")
    assert arena.statistics().leases == 0
    (segment,) = arena._own.segments
    watched = os.dup(segment.memory._descriptor)
    assert os.fstat(watched).st_blocks * 512 >= MB
    monkeypatch.setattr(arena_module, "IDLE_SECONDS", 0.0)
    arena.keep_house()
    assert os.fstat(watched).st_blocks == 0
    os.close(watched)
    assert borrower.borrow(lend(arena, arena.keep([b"\x09" * MB]))) == "9"


def test_once_the_last_user_has_left_only_what_is_in_use_stays(kind):
    arena = Arena(64 * MB, named=kind == "named")
    arena.enter()
    kept = arena.keep([b"\x07" * MB])
    lend(arena, kept)
    arena.leave()
    assert arena.statistics().leases == 0
    assert bytes(kept) == b"\x07" * MB
    del kept
    assert arena.statistics() == (0, 0, 0, 0, 0)


def test_what_is_allocated_outside_of_any_use_goes_as_it_is_dropped(kind):
    arena = Arena(64 * MB, named=kind == "named")
    shared = arena.allocate_shared(MB)
    assert arena.statistics().segments == 1
    del shared
    assert arena._own.segments == []


def test_any_number_of_threads_may_use_it(make_arena):
    arena, other = make_arena(), make_arena()
    failures = []

    def work(byte):
        for _ in range(200):
            descriptor = lend(arena, arena.keep([bytes([byte]) * 100_000]))
            (view,) = other.borrow([memoryview(descriptor)])
            if bytes(view) != bytes([byte]) * 100_000:
                failures.append(byte)

    threads = [threading.Thread(target=work, args=(byte,)) for byte in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert arena.statistics()[2:] == (0, 0, 0)


def test_a_finalizer_in_the_midst_of_a_change_finds_no_room(make_arena):
    arena, other = make_arena(), make_arena()
    seen = []

    def finalize():
        (sent,) = arena.lend([shared.toreadonly()], "link")
        seen.append((arena.is_busy, arena.keep([bytes(MB)]), arena.holds(shared), len(sent)))

    shared = arena.allocate_shared(MB)
    values = numpy.frombuffer(shared, numpy.uint8)
    weakref.finalize(values, finalize)
    descriptor = memoryview(lend(arena, values))
    del values
    other.borrow([descriptor])
    assert seen == []
    assert arena.statistics().leases == 0  # ends the lease, which was the last to have the array
    assert seen == [(True, None, True, MB)]


def in_the_midst_of_a_change(arena, monkeypatch, finalize):
    """Call this where a finalizer may be called while the arena takes back two parts, of which it has one."""
    parts = [arena.keep([bytes(100)]) for _ in range(2)]
    give_back = Blocks.give_back

    def give_back_later(blocks, start, length):
        monkeypatch.setattr(Blocks, "give_back", give_back)
        finalize()
        give_back(blocks, start, length)

    monkeypatch.setattr(Blocks, "give_back", give_back_later)
    parts.clear()
    return arena.statistics()


def fork():
    if not (pid := os.fork()):
        os._exit(0)
    os.waitpid(pid, 0)


def test_a_finalizer_in_the_midst_of_a_change_may_fork(make_arena, monkeypatch):
    arena = make_arena()
    monkeypatch.setattr(arena_module, "_of_this_process", arena)
    assert in_the_midst_of_a_change(arena, monkeypatch, fork).segments == 0
    assert arena.keep([b"\x07" * MB]) == b"\x07" * MB


def test_what_a_finalizer_changes_in_the_midst_of_another_change_comes_after_it(make_arena, monkeypatch):
    arena = make_arena()
    lend(arena, arena.keep([bytes(100)]))
    seen = []

    def finalize():
        arena.enter()
        arena.link_gone("link")
        arena.leave()
        seen.append((arena.keep_house(), arena.statistics().leases))

    assert in_the_midst_of_a_change(arena, monkeypatch, finalize).leases == 0
    assert seen == [(True, 1)]
    assert arena.statistics().used_bytes == 0


def test_a_finalizer_may_use_the_arena_of_the_process_while_it_is_made(monkeypatch):
    monkeypatch.setattr(arena_module, "_of_this_process", None)
    usual_limit_bytes, seen = arena_module.usual_limit_bytes, []

    def limit_bytes():
        monkeypatch.setattr(arena_module, "usual_limit_bytes", usual_limit_bytes)
        seen.append(arena_module.process_arena())  # as a finalizer may
        return usual_limit_bytes()

    monkeypatch.setattr(arena_module, "usual_limit_bytes", limit_bytes)
    seen.append(arena_module.process_arena())
    assert seen == [arena_module.process_arena()] * 2


def test_a_forked_copy_of_the_process_gives_nothing_back(make_arena):
    arena, other = make_arena(), make_arena()
    descriptor = lend(arena, arena.keep([bytes(MB)]))
    (view,) = other.borrow([memoryview(descriptor)])
    pid = os.fork()
    if not pid:
        del view
        gc.collect()
        os._exit(0)
    os.waitpid(pid, 0)
    assert arena.statistics().leases == 1
    del view
    assert arena.statistics().leases == 0


@pytest.mark.parametrize("length", [100, MB])
def test_what_a_forked_copy_of_the_process_has_stays_as_it_was(make_arena, monkeypatch, length):
    arena, other = make_arena(), make_arena()
    monkeypatch.setattr(arena_module, "_of_this_process", other)
    (lent,) = other.borrow([memoryview(lend(arena, arena.keep([b"\x07" * length])))])
    own, _also_in_its_segment = other.keep([b"\x05" * length]), other.keep([bytes(length)])
    gate_read, gate = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(gate)
        os.read(gate_read, 1)
        os._exit(10 * lent[0] + own[0])
    del lent, own
    for each in arena, other:
        assert each.keep([b"\x08" * length]) is not None
    os.close(gate)
    os.close(gate_read)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75


def test_what_is_made_between_forks_takes_no_segment_for_each(make_arena, monkeypatch):
    arena = make_arena()
    monkeypatch.setattr(arena_module, "_of_this_process", arena)
    kept = []
    for _ in range(3):
        kept.append(arena.keep([bytes(100)]))
        fork()
    assert arena.statistics().segments == 1
    kept.clear()
    assert arena.statistics().segments == 0


def test_what_is_lost_to_forked_processes_does_not_fill_the_segment_of_what_stays(make_arena, monkeypatch):
    arena = make_arena(4 * MB)
    monkeypatch.setattr(arena_module, "_of_this_process", arena)
    _stays = arena.keep([bytes(100)])
    for _ in range(6):
        assert arena.keep([bytes(MB)]) is not None
        passing = arena.keep([bytes(MB)])
        assert passing is not None
        fork()
        del passing


def test_nothing_is_left_when_all_are_killed(arena, borrowers, kind):
    one, other = borrowers(), borrowers()
    other("borrow", one("keep", MB, 3))
    one.kill()
    other.kill()
    if kind == "named":
        wait_for_names_to_go(one)
        wait_for_names_to_go(other)
    for each in one, other:
        assert list(Path("/dev/shm").glob(f"domains-{each.pid}-*")) == []


# Cells


@pytest.fixture
def cells(kind):
    made = Cells.create(named=kind == "named")
    yield made
    made.segment.close()
    vars(made).clear()  # pytest keeps it, and with it the mapping


def test_a_cell_that_was_taken_back_cannot_be_opened(cells):
    index, generation = cells.send()
    assert cells.retract(index)
    with pytest.raises(StaleLease):
        cells.open(index, generation)
    assert cells.state(index) == LeaseState.FREE


def test_a_cell_that_was_opened_cannot_be_taken_back(cells):
    index, generation = cells.send()
    cells.open(index, generation)
    assert not cells.retract(index)
    assert cells.borrower(index) == this_process()


def test_a_cell_of_an_earlier_loan_cannot_be_opened(cells):
    index, generation = cells.send()
    cells.retract(index)
    cells._latest = index - 1
    assert cells.send()[0] == index
    with pytest.raises(StaleLease):
        cells.open(index, generation)
    assert cells.state(index) == LeaseState.SENT


@pytest.mark.parametrize("count", [3, 100])
def test_those_that_are_over_are_found_among_many(cells, count):
    sent = [cells.send() for _ in range(count)]
    for index, generation in sent:
        cells.open(index, generation)
    cells.give_back(sent[0][0])
    cells.give_back(sent[2][0], abandon=True)
    assert cells.over(dict(sent)) == [sent[0][0], sent[2][0]]


def test_more_loans_than_there_are_cells_travel_as_copies(make_arena, monkeypatch):
    monkeypatch.setattr("domains.ipc.lending.CELLS", 2)
    arena = make_arena()
    kept = arena.keep([bytes(MB)])
    sent = arena.lend([kept, kept, kept], "link")
    assert [len(each) for each in sent] == [DESCRIPTOR_BYTES, DESCRIPTOR_BYTES, MB]


def test_shared_memory_beyond_them_is_no_copy_but_an_error(make_arena, monkeypatch):
    monkeypatch.setattr("domains.ipc.lending.CELLS", 2)
    arena, other = make_arena(), make_arena()
    shared = arena.allocate_shared(MB)
    received = other.borrow(map(memoryview, arena.lend([shared, shared, shared], "link")))
    assert [type(each) for each in received] == [memoryview, memoryview, LostBuffer]
    with pytest.raises(NotPicklable, match="share it: 2 parts of arrays are lent already"):
        Pickling().loads(b"", received)


def test_a_process_is_told_apart_from_one_with_its_number(borrower):
    assert is_alive(this_process())
    assert not is_alive(this_process() ^ 1 << 40)
    borrower.kill()
    assert not is_alive(borrower.pid)


# Segments and blocks


def test_a_segment_is_opened_only_if_it_is_the_one_that_was_meant(kind):
    one = Segment.create(MB, named=kind == "named")
    one.map[0] = 5
    other = Segment.open(one.location)
    assert other.map[0] == 5
    other.close()
    location = one.location
    one.close()
    replaced = Segment.create(MB, named=kind == "named")
    with pytest.raises(OSError, match=r"."):
        Segment.open(location)
    replaced.close()


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 40))), st.integers(0, 140))
def test_all_loans_that_a_byte_belongs_to_are_found_and_no_others(ranges, offset):
    segment = Foreign(None)
    memory = set()
    loans = [new_loan(memory, segment, start, length, id, None, 0) for start, length in ranges]
    for loan in loans[::3]:
        segment.remove_loan(loan)
    left = {loan for index, loan in enumerate(loans) if index % 3}
    assert set(segment.loans_at(offset)) == {loan for loan in left if loan.start <= offset < loan.start + loan.length}
    for loan in left:
        segment.remove_loan(loan)
    assert segment.is_idle


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 20))))
def test_blocks_never_overlap_and_all_comes_back(steps):
    page = whole_pages(1)
    blocks = Blocks(64 * page)
    taken = []
    for take, number in steps:
        if take:
            length = number * page
            start = blocks.take(length)
            if start is None and blocks.committed_bytes + blocks.growth(length) <= blocks.size_bytes:
                blocks.grow(blocks.growth(length))
                start = blocks.take(length)
                assert start is not None
            if start is not None:
                assert start + length <= blocks.committed_bytes
                assert all(start + length <= other or start >= other + size for other, size in taken)
                taken.append((start, length))
        elif taken:
            blocks.give_back(*taken.pop(number % len(taken)))
        assert blocks.used_bytes == sum(length for _, length in taken)
    for each in taken:
        blocks.give_back(*each)
    assert blocks.used_bytes == 0
    assert blocks.take(blocks.committed_bytes) == (0 if blocks.committed_bytes else None)
