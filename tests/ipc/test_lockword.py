"""Lock words: one process at a time, whoever is killed and wherever."""

import gc
import mmap
import os
import random
import signal
import subprocess
import sys
import threading

import pytest

from domains.ipc import lockword
from domains.ipc.leases import is_alive, this_process
from domains.ipc.lockword import LockWord


@pytest.fixture
def word():
    made = LockWord.create()
    yield made
    if made.is_mine:
        made.unlock()
    made.close()
    made._page = None  # pytest keeps the word


class Child:
    """A forked process that runs a function with the word attached, says so when it is done, and stays."""

    def __init__(self, word, act):
        said, say = os.pipe()
        self._rest, rest = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.close(rest)
                os.write(say, b"1" if act(LockWord.attach(word.descriptor)) else b"0")
                os.read(self._rest, 1)
            finally:
                os._exit(0)
        os.close(say)
        self._leave = rest
        os.close(self._rest)
        self.answer = os.read(said, 1) == b"1"
        os.close(said)

    def end(self):
        os.close(self._leave)
        os.waitpid(self.pid, 0)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.end()


def test_one_at_a_time(word):
    assert word.try_lock()
    child = Child(word, lambda theirs: theirs.try_lock())
    assert not child.answer
    child.end()
    word.unlock()
    child = Child(word, lambda theirs: theirs.try_lock())
    assert child.answer
    assert not word.try_lock()
    child.end()


def test_two_words_of_one_process_exclude_each_other_as_well(word):
    other = LockWord.attach(word.descriptor)
    assert word.try_lock()
    assert not other.try_lock()
    assert not word.try_lock()
    assert (word.is_mine, other.is_mine) == (True, False)
    word.unlock()
    assert other.try_lock()
    other.unlock()


def test_threads_exclude_each_other(word):
    counts = [0, 0]

    def work():
        mine = LockWord.attach(word.descriptor)
        for _ in range(500):
            while not mine.try_lock():
                pass
            counts[0] += 1
            before = counts[1]
            mine.holder  # noqa: B018 - something that takes a while
            counts[1] = before + 1
            mine.unlock()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [1500, 1500]


def test_words_are_independent():
    words = [LockWord.create() for _ in range(lockword._WORDS + 5)]
    assert all(word.try_lock() for word in words)
    assert len({word.descriptor for word in words}) == len(words)
    for word in words:
        word.unlock()
        word.close()


def test_a_word_that_its_home_closed_is_used_for_another_lock():
    kept = LockWord.create()
    first = LockWord.create()
    first.mark_waiting()
    descriptor = first.descriptor
    first.close()
    second = LockWord.create()
    assert second.descriptor == descriptor
    assert not second.is_waited_for
    kept.close()
    second.close()


def test_what_was_abandoned_looks_to_its_own_process_too_as_if_its_holder_had_died(word):
    assert word.try_lock(note=7)
    word.abandon()
    assert not word.is_mine
    other = LockWord.attach(word.descriptor)
    assert other.try_lock(note=1)
    assert (other.abandoned.pid, other.abandoned.note) == (os.getpid(), 7)
    other.recover(note=1)
    assert other.abandoned is None
    other.unlock()


def test_what_is_abandoned_as_its_page_is_collected_with_it_is_abandoned_all_the_same(word):
    class Owner:
        def __init__(self):
            self.word = LockWord.attach(word.descriptor)
            self.itself = self

        def __del__(self):
            self.word.abandon()

    def act(theirs):
        failures = []
        sys.unraisablehook = failures.append
        lockword._pages._pages.clear()  # so that nobody else here has the page, as its maker, whom it copies, does
        owner = Owner()
        assert owner.word.try_lock(note=7)
        del owner
        gc.collect()
        return not failures

    child = Child(word, act)
    assert child.answer
    assert word.try_lock()
    assert (word.abandoned.pid, word.abandoned.note) == (child.pid, 7)
    word.recover()
    word.unlock()
    child.end()


def test_one_who_did_not_lock_it_cannot_unlock_it(word):
    other = LockWord.attach(word.descriptor)
    assert word.try_lock()
    with pytest.raises(AssertionError):
        other.unlock()
    assert word.is_mine


def test_who_holds_it_is_known(word):
    assert word.holder is None
    assert word.try_lock(7)
    assert word.holder == (this_process(), 7)
    assert word.holder.pid == os.getpid()
    word.unlock()
    assert word.holder is None


def test_a_holder_that_is_killed_leaves_the_lock_and_the_news(word):
    child = Child(word, lambda theirs: theirs.try_lock(5))
    assert not word.try_lock()
    assert is_alive(word.holder.process)
    child.kill()
    assert not is_alive(word.holder.process)
    assert word.try_lock(1)
    assert (word.abandoned.pid, word.abandoned.note) == (child.pid, 5)


def test_that_it_was_abandoned_is_known_until_somebody_has_seen_to_it(word):
    Child(word, lambda theirs: theirs.try_lock(5)).kill()
    Child(word, lambda theirs: theirs.try_lock(6)).kill()  # dies before it has seen to it
    assert word.try_lock(7)
    assert word.abandoned.note == 5
    word.recover(7)
    assert word.abandoned is None
    assert word.holder == (this_process(), 7)
    word.unlock()
    assert word.try_lock()
    assert word.abandoned is None


def test_a_process_that_ends_between_locks_leaves_no_news(word):
    Child(word, lambda theirs: theirs.try_lock() and not theirs.unlock()).kill()
    assert word.try_lock()
    assert word.abandoned is None


def test_an_unlock_tells_that_somebody_waits(word):
    assert word.try_lock()
    assert word.unlock() is False
    assert word.try_lock()
    word.mark_waiting()
    assert word.unlock() is True


def test_while_somebody_waits_only_who_is_sent_ahead_gets_in(word):
    word.mark_waiting()
    child = Child(word, lambda theirs: theirs.try_lock())
    assert not child.answer
    child.end()
    child = Child(word, lambda theirs: theirs.try_lock(ahead=True))
    assert child.answer
    child.end()
    word.clear_waiting()
    assert word.try_lock()


def test_a_child_of_the_holder_neither_holds_nor_frees_it(word):
    assert word.try_lock()
    pid = os.fork()
    if not pid:
        try:
            word.unlock()
        except AssertionError:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    assert word.is_mine
    child = Child(word, lambda theirs: theirs.try_lock())
    assert not child.answer
    child.end()


def test_a_stranger_attaches_by_the_descriptor_alone(word):
    program = (
        "import sys; from domains.ipc.lockword import LockWord\n"
        "word = LockWord.attach(bytes.fromhex(sys.argv[1]))\n"
        "print(word.try_lock(), word.holder.pid)\n"
    )
    command = [sys.executable, "-c", program, word.descriptor.hex()]
    assert word.try_lock()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", str(os.getpid())]
    word.unlock()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "True"


def test_a_word_of_a_process_that_is_gone_cannot_be_attached(word):
    descriptor = word.descriptor
    gone = descriptor[:16] + b"\xff\xff\xff\x7f" + descriptor[20:]  # the number of a process that there is not
    with pytest.raises(OSError, match="No such"):
        LockWord.attach(b"12345678" + gone[8:])
    with pytest.raises(OSError, match="no lock word"):
        LockWord.attach(descriptor[:-4] + b"\xff\xff\xff\xff")


def test_the_file_is_closed_with_the_last_word():
    word = LockWord.create()
    other = LockWord.attach(word.descriptor)
    path = f"/proc/self/fd/{word._page.segment.descriptor}"
    word.close()
    del word
    gc.collect()
    assert "memfd" in os.readlink(path)
    del other
    gc.collect()
    assert not os.path.exists(path) or "memfd" not in os.readlink(path)


# Killing

WORKERS = 3


def increment(word, numbers, worker, random_seed, parent):
    """Until killed, or left alone: add one to the counter and to the worker's own, under the lock."""
    pause = random.Random(random_seed)
    while os.getppid() == parent:
        if not word.try_lock():
            os.sched_yield()
            continue
        if word.abandoned is not None:
            numbers[0] = sum(numbers[2:])
            numbers[1] = 0
            word.recover()
        assert numbers[1] == 0, "somebody else is inside"
        numbers[1] = os.getpid()
        count = numbers[0]
        for _ in range(pause.randrange(20)):
            pass
        numbers[2 + worker] += 1
        numbers[0] = count + 1
        assert numbers[1] == os.getpid(), "somebody else was inside"
        numbers[1] = 0
        word.unlock()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_update_is_lost_and_no_lock_stuck_whoever_is_killed_wherever(word, kills):
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    numbers = memoryview(shared).cast("Q")
    chance = random.Random(kills)
    descriptor = word.descriptor

    def start(worker):
        seed = chance.random()
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            try:
                increment(LockWord.attach(descriptor), numbers, worker, seed, parent)
            finally:
                os._exit(1)
        return pid

    workers = [start(worker) for worker in range(WORKERS)]
    try:
        for _ in range(kills):
            # That others make progress is what shows that the lock is never stuck.
            goal = sum(numbers[2:]) + chance.randrange(1, 40)
            while sum(numbers[2:]) < goal:
                os.sched_yield()
            victim = chance.randrange(WORKERS)
            os.kill(workers[victim], signal.SIGKILL)
            _, status = os.waitpid(workers[victim], 0)
            assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "it had ended by itself"
            workers[victim] = start(victim)
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert word.try_lock()
    if word.abandoned is not None:
        assert numbers[0] in (sum(numbers[2:]), sum(numbers[2:]) - 1)
    else:
        assert numbers[0] == sum(numbers[2:]) > 0
    numbers.release()
    shared.close()


def test_what_is_poisoned_stays_that_whoever_waits_or_has_waited():
    word = LockWord.create()
    word.mark_waiting()
    word.mark_poisoned()
    word.mark_waiting()  # by a home that has not seen it
    assert not word.try_lock(ahead=True)
    word.clear_waiting()
    assert word.is_poisoned
    assert not word.try_lock()
    word.close()


def test_a_word_that_another_process_holds_for_ever_becomes_nobody_elses():
    word = LockWord.create()
    descriptor = word.descriptor
    locked, let_lock = os.pipe()
    pid = os.fork()
    if not pid:
        mine = LockWord.attach(descriptor)
        os.write(let_lock, b"1" if mine.try_lock() else b"0")
        signal.pause()
        os._exit(0)
    try:
        assert os.read(locked, 1) == b"1"
        word.close()
        others = [LockWord.create() for _ in range(3)]
        assert descriptor not in [other.descriptor for other in others]
        for other in others:
            assert other.try_lock()
            other.unlock()
            other.close()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(locked)
        os.close(let_lock)
