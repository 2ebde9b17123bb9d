"""A mixed load with random kills, for a given time and from a given seed; fails if anything is lost, hung or leaked.

    python tests/faults/soak.py [--seconds 600] [--seed 1]

Goes in rounds of some seconds, over each kind of link in turn. A round ends in order, or by Ctrl-C, or because the
parent itself is killed; after each nothing of it may be left on the machine. The seed decides what is done and which
process dies; how that falls in time is up to the machine, so a seed is a kind of weather and not a recording.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from program import Program  # type: ignore[import-not-found]  # a script beside this one

LOAD = Path(__file__).with_name("load.py").read_text()
ENDS = ["order", "order", "order", "SIGKILL", "SIGINT"]


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
        started = time.monotonic()
        with program:
            interrupted = False
            try:
                while True:
                    said: Any = json.loads(program.hear_line() or "null")
                    if said is None:
                        break
                    self.counts = collections.Counter(said["counts"])
                    self.problems = said["problems"]
                    if self.end != "order" and not interrupted and time.monotonic() - started > self.seconds:
                        interrupted = True
                        if self.end == "SIGINT":
                            program.interrupt_group()
                        else:
                            program.send_signal(signal.SIGKILL)
                status = program.wait()
            except AssertionError as silence:
                self.counts["hung"] += 1
                self.problems.append(f"the program: {silence}")
                return
            expected = {"order": 0, "SIGINT": -signal.SIGINT, "SIGKILL": -signal.SIGKILL}[self.end]
            if status != expected:
                self.counts["lost"] += status != 3
                self.problems.append(f"the program ended with status {status}:\n{program.errors[-6000:]}")
            elif self.end == "order" and (noise := surprising(program.errors)):
                self.problems.append(f"the program wrote:\n{noise[-3000:]}")
                self.counts["lost"] += 1
            try:
                program.check_nothing_is_left()
            except AssertionError as left:
                self.counts["leaked"] += 1
                self.problems.append(f"left behind: {left}")


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
    deadline = time.monotonic() + options.seconds
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
    jobs = total["done"] + total["died"]
    print(
        f"seed {options.seed}, {options.seconds:.0f} s, {total['rounds']} rounds: {jobs} operations, of which "
        f"{total['died']} met a death; {total['kills']} kills, {total['domains']} domains started; "
        f"lost {total['lost']}, hung {total['hung']}, leaked {total['leaked']}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
