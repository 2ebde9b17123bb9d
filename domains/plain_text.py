"""Text that can be sent: what users call things, and what their exceptions say, need not be valid text.

A file name that is no UTF-8 is a string that nothing can encode, and one such string would keep all that is in its
frame from being sent.
"""

from __future__ import annotations

__all__ = ["plain_text"]


def plain_text(text: str) -> str:
    """The same, as an exact `str`, with escapes for what UTF-8 cannot tell."""
    return str.encode(text, errors="backslashreplace").decode()
