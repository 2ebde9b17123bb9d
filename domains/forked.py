"""What a process does that a job has forked, once the job's function has ended in it as well: it exits.

It was born in the midst of a job and would otherwise go on as a second copy of its domain: answer the same job on the
same link, and claim others. It exits as a script would that had come to its end in this way.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn


def exit_as_a_script(error: BaseException | None) -> NoReturn:
    """Print what has to be said, and leave without running anything that belongs to the domain."""
    status = 0
    if isinstance(error, SystemExit):
        if isinstance(error.code, int):
            status = error.code & 0xFF
        elif error.code is not None:
            print(error.code, file=sys.stderr)
            status = 1
    elif error is not None:
        import traceback  # slow to import, and hardly ever needed

        traceback.print_exception(error)
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)
