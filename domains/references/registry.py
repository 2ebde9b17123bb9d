"""The objects that this domain has handed to others, and those that others have handed to it.

An object keeps its home: the domain that made it. Pickling it for another domain exports it under a number; over
there a reference of the same class stands for it, and talks to the home by messages. Sent home, it is the original
object again. An export lives until every domain that holds a reference has released it or is gone.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping
from typing import Any

from domains.conversation import Conversation
from domains.variables import reduce_variable


class References:
    """One process's share in the objects that several domains know."""

    def reducers(self) -> Mapping[type, Callable[[Any], Any]]:
        """How to pickle what travels by reference."""
        return {contextvars.ContextVar: reduce_variable}

    def converse(self, conversation: Conversation) -> None:
        """Take part in a conversation that has not started."""
