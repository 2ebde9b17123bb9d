"""A mixed load with random kills, for a given time and from a given seed; fails if anything is lost, hung or leaked.

    python -m tests.faults.soak [--seconds 600] [--seed 1]

Goes in rounds of some seconds, over each kind of link in turn. A round ends in order, or by Ctrl-C, or because the
parent itself is killed; after each nothing of it may be left on the machine. A round that the machine has no time for
is late and not hung (`patience.py`). The seed decides what is done and which process dies; how that falls in time is up
to the machine, so a seed is a kind of weather and not a recording.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .patience import OwnTime, Patience, what_it_does
from .program import GONE_SECONDS, Program, Silence

LOAD = Path(__file__).with_name("load.py").read_text()
ENDS = ["order", "order", "order", "SIGKILL", "SIGINT"]


HANG_SECONDS = 30.0
"""What has not happened after so much of a program's own time hangs."""

_LOOK_SECONDS = 0.5
_WRITES_STACKS = ([signal.SIGWINCH, signal.SIGUSR1], [signal.SIGWINCH])


class Hang(Exception):
    """A program makes no progress any more, though it could."""


class Round:
    """One run of the load, and what became of it."""

    def __init__(self, number: int, seed: int, most_seconds: float, directory: Path) -> None:
        rng = random.Random(f"{seed} {number}")
        self.end = rng.choice(ENDS)
        self.link = ["socketpair", "zmq"][number % 2]
        self.seconds = min(rng.uniform(5, 20), most_seconds)
        self.name = f"round {number}, {self.link}, {self.seconds:.0f} s, ended by {self.end}"
        self.counts: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        seconds = self.seconds if self.end == "order" else 3600
        self._run(Program(LOAD, directory, self.link, f"{seed}-{number}", str(seconds)))

    def _run(self, program: Program) -> None:
        with program:
            try:
                self._hear(program, Patience(program, HANG_SECONDS))
                status = _wait_for_end(program)
            except Hang as hang:
                self.counts["hung"] += 1
                self.problems.append(f"{hang}\n{what_it_does(program, *_WRITES_STACKS)}")
                return
            expected = {"order": 0, "SIGINT": -signal.SIGINT, "SIGKILL": -signal.SIGKILL}[self.end]
            if status != expected:
                self.counts["lost"] += 1
                self.problems.append(f"the program ended with status {status}:\n{program.errors[-6000:]}")
            elif self.end == "order" and (noise := surprising(program.errors)):
                self.problems.append(f"the program wrote:\n{noise[-3000:]}")
                self.counts["lost"] += 1
            clock = OwnTime(program)
            while program.processes() and clock.look() < GONE_SECONDS:
                time.sleep(0.01)
            try:
                program.check_nothing_is_left(0.0)
            except AssertionError as left:
                self.counts["leaked"] += 1
                self.problems.append(f"left behind: {left}")

    def _hear(self, program: Program, patience: Patience) -> None:
        """Listen to the end, and bring that about when it is time. Raises Hang if nothing happens for too long."""
        started = time.monotonic()
        is_told_to_end = self.end == "order"
        words = 0
        running: dict[str, Any] = {}
        pools: list[str] = []
        while True:
            with contextlib.suppress(Silence):
                line = program.hear_line(_LOOK_SECONDS)
                if line is None:
                    return
                said = json.loads(line)
                words += 1
                self.counts = collections.Counter(said["counts"])
                self.problems = said["problems"]
                running = said["running"]
                pools = said["pools"]
            things = [(name, *what) for name, what in running.items()]
            for overdue in patience.look([("words", words), *things]):
                state = "".join(f"\n{pool}" for pool in pools)
                raise Hang(f"no end, in {HANG_SECONDS} s of the program's own time, of {overdue}{state}")
            if not is_told_to_end and time.monotonic() - started > self.seconds:
                is_told_to_end = True
                if self.end == "SIGINT":
                    program.interrupt_group()
                else:
                    program.send_signal(signal.SIGKILL)


def _wait_for_end(program: Program) -> int:
    """The exit status. Raises Hang."""
    clock = OwnTime(program)
    while (status := program.process.poll()) is None:
        if clock.look() > HANG_SECONDS:
            raise Hang("its output has ended, and it does not")
        time.sleep(0.01)
    return status


def surprising(errors: str) -> str:
    """What was written that a killed or interrupted domain does not explain."""
    lines = [line for line in errors.splitlines() if line.strip()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    total: collections.Counter[str] = collections.Counter()
    failed = 0
    started = time.monotonic()
    deadline = started + options.seconds
    with tempfile.TemporaryDirectory() as directory:
        for number in itertools.count():
            left = deadline - time.monotonic()
            if left < 2:
                break
            result = Round(number, options.seed, left, Path(directory))
            bad = sum(result.counts[name] for name in ("lost", "hung", "leaked"))
            failed += bool(bad)
            total.update(result.counts)
            total["rounds"] += 1
            summary = ", ".join(f"{name} {result.counts[name]}" for name in ("done", "died", "kills", "lost", "hung"))
            print(f"{result.name}: {summary}, leaked {result.counts['leaked']}", flush=True)
            for problem in result.problems:
                print("    " + problem.replace("\n", "\n    "), flush=True)
    seconds = time.monotonic() - started
    jobs = total["done"] + total["died"]
    print(
        f"seed {options.seed}, {seconds:.0f} s, {total['rounds']} rounds: {jobs} operations, of which "
        f"{total['died']} met a death; {total['kills']} kills, one in {seconds / max(total['kills'], 1):.2f} s, "
        f"{total['domains']} domains started; "
        f"lost {total['lost']}, hung {total['hung']}, leaked {total['leaked']}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
