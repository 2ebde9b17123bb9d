"""Which domain this process is. Set once, before anything of the user's runs; the main domain has number 0."""

from __future__ import annotations

import os
from typing import NamedTuple


class DomainInfo(NamedTuple):
    """A domain's number, unique among its parent's; its name, unique in the run; and its process."""

    id: int
    name: str
    pid: int


_current: DomainInfo | None = None


def current() -> DomainInfo:
    """The domain that this code runs in; the main domain, number 0, where no domain was started."""
    if _current is not None:
        return _current
    return DomainInfo(0, "main", os.getpid())


def become(info: DomainInfo) -> None:
    """Called once, in the process that is this domain."""
    global _current
    assert _current is None, f"this process is domain {_current} already"
    _current = info
