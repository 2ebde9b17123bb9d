"""What a domain keeps from one job to the next."""

from __future__ import annotations

from types import SimpleNamespace

domain_state = SimpleNamespace()
"""This domain's own: initializers and jobs that run in it set and read whatever attributes they like."""
