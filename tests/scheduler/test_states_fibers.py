"""Random trees of switches, scopes, deadlines and races, cancelled and failing at random steps, against a model."""

from __future__ import annotations

from hypothesis import given

from domains import testing

from .interleaving import thorough
from .trees import Node, play, scripts, trees


@thorough
@given(trees, scripts)
def test_every_operation_completes_or_is_cancelled_and_nothing_outlives_its_switch(
    tree: list[Node], script: list[Node]
) -> None:  # S1 S2 S5 S8 S9 S15 S16 S20 S21 S26 S27 S30 S31 S32 S35
    async def main() -> None:
        await play(tree, script)

    testing.run(main)
