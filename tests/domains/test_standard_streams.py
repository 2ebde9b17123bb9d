"""What is printed in domains comes out in whole lines, whatever the streams are and whoever else writes to them."""

import contextlib
import fcntl
import os
import select
import subprocess
import sys

_LETTERS = 300_000
"""Of a line that no pipe takes at once."""


@contextlib.contextmanager
def pipe():
    reading, writing = os.pipe()
    with open(reading, "rb") as reading, open(writing, "wb", buffering=0) as writing:
        yield reading, writing


@contextlib.contextmanager
def start(body, writing, **options):
    """Run this as a domain's job would be, with the pipe for its standard output."""
    program = f"from domains.standard_streams import print_whole_lines\nprint_whole_lines()\n{body}"
    with subprocess.Popen([sys.executable, "-c", program], stdout=writing, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until_full(writing):
    while select.select([], [writing], [], 0)[1]:
        os.sched_yield()


def test_a_long_line_is_written_once_to_a_pipe_that_does_not_block():
    with pipe() as (reading, writing):
        os.set_blocking(writing.fileno(), False)
        with start(f"print('x' * {_LETTERS})\nprint('next')", writing) as program:
            wait_until_full(writing)
            writing.close()
            assert reading.read() == b"x" * _LETTERS + b"\nnext\n"
            assert program.wait(60) == 0


def test_lines_of_threads_stay_whole_where_both_streams_are_one_pipe():  # S63
    body = f"""
import select, sys, threading
thread = threading.Thread(target=print, args=("x" * {_LETTERS},))
thread.start()
while thread.is_alive() and select.select([], [1], [], 0)[1]:
    pass
print("y" * {_LETTERS}, file=sys.stderr)
thread.join()
"""
    with pipe() as (reading, writing):
        with start(body, writing, stderr=writing) as program:
            writing.close()
            lines = reading.read().splitlines()
            assert program.wait(60) == 0
    assert sorted((bytes(set(line)), len(line)) for line in lines) == [(b"x", _LETTERS), (b"y", _LETTERS)]


def test_what_begins_a_line_behind_a_newline_waits_for_the_rest_of_it():  # S63
    body = """
import os, sys
real = os.write

def write(descriptor, data):
    real(descriptor, bytes(data) + b"|")
    return len(data)

os.write = write
print("\\na", 1)
sys.stdout.writelines(["b\\nc\\nd", "e\\n", "f"])
sys.stdout.flush()
try:
    sys.stdout.write(b"g\\n")
except TypeError:
    print("h", "i")
"""
    with pipe() as (reading, writing):
        with start(body, writing) as program:
            assert program.wait(60) == 0
        writing.close()
        assert reading.read() == b"\n|a 1\n|b\nc\n|de\n|f|h i\n|"


def test_a_process_forked_while_a_thread_prints_can_print():
    body = """
import os, signal, sys, threading, warnings
warnings.simplefilter("ignore")  # that of a fork beside threads would be printed while the thread prints
real, inside, go_on = os.write, threading.Event(), threading.Event()

def write(descriptor, data):
    if threading.current_thread() is thread:
        inside.set()
        go_on.wait()
    return real(descriptor, data)

os.write = write
thread = threading.Thread(target=print, args=("thread",))
thread.start()
inside.wait()
child = os.fork()
if child == 0:
    signal.alarm(10)  # it ends in any case
    print("child", file=sys.stderr)
    os._exit(0)
go_on.set()
thread.join()
sys.exit(os.waitpid(child, 0)[1])
"""
    with pipe() as (reading, writing):
        with start(body, writing, stderr=writing) as program:
            assert program.wait(60) == 0
        writing.close()
        assert reading.read() == b"thread\nchild\n"


def test_a_signals_handler_that_prints_leaves_the_pipe_to_the_line_that_it_interrupts():
    body = """
import fcntl, os, signal, sys
real = os.write

def write(descriptor, data):
    os.write = real
    signal.raise_signal(signal.SIGUSR1)
    if os.fork() == 0:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os._exit(0)
        os._exit(1)
    others.append(os.wait()[1])
    return real(descriptor, data)

os.write, others = write, []
signal.signal(signal.SIGUSR1, lambda *_: print("handler", file=sys.stderr))
print("line")
sys.exit(others != [0])
"""
    with pipe() as (reading, writing):
        with start(body, writing, stderr=writing) as program:
            assert program.wait(60) == 0
        writing.close()
        assert reading.read() == b"handler\nline\n"


def test_a_signals_handler_prints_where_another_thread_waits_to_print_to_the_same_stream():
    body = """
import os, signal, sys, threading
from domains import standard_streams
real = os.write

def write(descriptor, data):
    os.write = real
    thread.start()
    while sys._current_frames()[thread.ident].f_code.co_filename != standard_streams.__file__:
        os.sched_yield()
    signal.raise_signal(signal.SIGUSR1)
    return real(descriptor, data)

os.write = write
thread = threading.Thread(target=print, args=("thread",), kwargs={"file": sys.stderr})
signal.signal(signal.SIGUSR1, lambda *_: print("handler", file=sys.stderr))
signal.alarm(10)  # it ends in any case
print("line")
thread.join()
"""
    with pipe() as (reading, writing):
        with start(body, writing, stderr=writing) as program:
            assert program.wait(60) == 0
        writing.close()
        assert reading.read() == b"handler\nline\nthread\n"


def test_who_is_stopped_as_it_prints_keeps_nobody_else_from_it():
    with pipe() as (reading, writing):
        fcntl.lockf(writing, fcntl.LOCK_EX)  # as a domain has it that writes
        with start("print('first')\nprint('second')", writing) as program:
            assert program.wait(60) == 0
        writing.close()
        assert reading.read() == b"first\nsecond\n"


_ENCODING = """
import sys
import domains

async def main(env):
    await env.domain_mgr.run(print, chr(233))
    print(chr(233))

domains.run(main)
"""


def test_a_domains_output_is_encoded_as_its_programs():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:namereplace"}
    done = subprocess.run([sys.executable, "-c", _ENCODING], capture_output=True, env=environment, timeout=60)
    assert done.stdout.decode().splitlines() == [r"\N{LATIN SMALL LETTER E WITH ACUTE}"] * 2
