"""The environment: the authority to affect the world outside, handed to `main` and from there to whom it trusts.

Code that takes only what it is handed can be tested with stand-ins, and cannot do what it was not meant to.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, TextIO

from domains.domain_manager import DomainManager
from domains.scheduler.clock import Clock

if TYPE_CHECKING:
    import random


def _system_random() -> random.Random:
    import random  # slow to import, and most programs do not need it

    return random.SystemRandom()


@dataclasses.dataclass(frozen=True)
class Environment:
    """What a program may use: domains, time, the standard streams, randomness."""

    domain_mgr: DomainManager
    clock: Clock
    stdin: TextIO = dataclasses.field(default_factory=lambda: sys.stdin)
    stdout: TextIO = dataclasses.field(default_factory=lambda: sys.stdout)
    stderr: TextIO = dataclasses.field(default_factory=lambda: sys.stderr)
    random: random.Random = dataclasses.field(default_factory=_system_random)
