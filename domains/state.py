"""What a domain keeps from one job to the next."""

from __future__ import annotations

from types import SimpleNamespace


class _DomainState(SimpleNamespace):
    """Travels by name: a function that uses it, and is pickled by value, finds that of the domain that it runs in."""

    def __reduce__(self) -> str:
        return "domain_state"


domain_state = _DomainState()
"""This domain's own: initializers and jobs that run in it set and read whatever attributes they like."""
