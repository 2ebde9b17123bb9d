"""What a process does that a job has forked, once the job's function has ended in it as well: it exits.

It was born in the midst of a job and would otherwise go on as a second copy of its domain: answer the same job on the
same link, and claim others. It exits as a script would that had come to its end in this way, whatever keeps it from
saying why.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn


def exit_as_a_script(error: BaseException | None) -> NoReturn:
    """Print what has to be said, and leave without running anything that belongs to the domain."""
    status = 1
    try:
        if error is None:
            status = 0
        elif isinstance(error, SystemExit) and isinstance(error.code, int | None):
            status = (error.code or 0) & 0xFF
        elif sys.stderr is not None:  # without it, what is printed would go to standard output
            with contextlib.suppress(BaseException):
                _report(error)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
    finally:
        os._exit(status)


def _report(error: BaseException) -> None:
    if isinstance(error, SystemExit):
        print(error.code, file=sys.stderr)
    else:
        import traceback  # slow to import, and hardly ever needed

        traceback.print_exception(error)
