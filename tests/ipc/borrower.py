"""Another process with an arena: obeys commands line by line, and answers each with a line.

borrow DESCRIPTOR -> the first byte of the view, or "lost";  write BYTE -> done, into the view;  read -> the first byte
lend -> a descriptor of the view that was borrowed last;  lend START -> one of the first view from there on
keep SIZE BYTE -> a descriptor of so many such bytes;  drop -> all views let go of;  drop last -> the last one
"""

import os
import subprocess
import sys
import weakref
from pathlib import Path

from domains.ipc.arena import Arena
from domains.ipc.descriptors import LostBuffer


def serve(named, commands, answers):
    arena = Arena(1 << 26, named=named)
    arena.enter()
    views = []
    for line in commands:
        command, *arguments = line.split()
        answer = "done"
        if command == "borrow":
            (view,) = arena.borrow([memoryview(bytes.fromhex(arguments[0]))])
            if isinstance(view, LostBuffer):
                answer = "lost"
            else:
                views.append(view)
                answer = str(view[0])
            del view
        elif command == "write":
            views[-1][0] = int(arguments[0])
        elif command == "read":
            answer = str(views[-1][0])
        elif command == "lend":
            view = views[0][int(arguments[0]) :] if arguments else views[-1]
            answer = bytes(arena.lend([view], "link")[0]).hex()
            del view
        elif command == "keep":
            kept = arena.keep([bytes([int(arguments[1])]) * int(arguments[0])])
            views.append(kept)
            answer = bytes(arena.lend([kept], "link")[0]).hex()
            del kept
        elif command == "drop":
            del views[-1 if arguments else 0 :]
        print(answer, file=answers, flush=True)


_living = weakref.WeakSet()


class Borrower:
    """That process, as its parent has it. Without named segments it is forked, which is faster."""

    def __init__(self, named):
        theirs, self._commands = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), "rw", strict=True))
        self._answers, answers = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), "rw", strict=True))
        self._process = None
        if named:
            # Not forked: it has to have a resource tracker of its own, which sees it die.
            self._process = subprocess.Popen([sys.executable, Path(__file__)], stdin=theirs, stdout=answers)
            self.pid = self._process.pid
        else:
            self.pid = os.fork()
            if not self.pid:
                try:
                    for borrower in [self, *_living]:
                        borrower._commands.close()  # lest none of them ever reads the end of it
                    serve(False, theirs, answers)
                finally:
                    os._exit(0)
        theirs.close()
        answers.close()
        self._alive = True
        _living.add(self)

    def __call__(self, *command):
        self._commands.write(" ".join(map(str, command)) + "\n")
        self._commands.flush()
        return self._answers.readline().strip()

    def borrow(self, descriptor):
        return self("borrow", bytes(descriptor).hex())

    def kill(self):
        os.kill(self.pid, 9)
        self._reap()

    def close(self):
        if self._alive:
            self._commands.close()
            self._reap()
        self._commands.close()
        self._answers.close()

    def _reap(self):
        self._alive = False
        if self._process is not None:
            self._process.wait()
        else:
            os.waitpid(self.pid, 0)


if __name__ == "__main__":
    serve(True, sys.stdin, sys.stdout)
