"""The right to start a job: what is offered is claimed or taken back, and what finds no room was not offered."""

from collections.abc import Iterator

import pytest

from domains.ipc.claims import OfferedClaims, ReceivedClaims


@pytest.fixture
def offered() -> Iterator[OfferedClaims]:
    claims = OfferedClaims()
    yield claims
    claims.close()


def test_offers_that_find_no_room_are_not_made(offered: OfferedClaims) -> None:
    received = ReceivedClaims(offered.descriptors())
    count = offered.offer(range(100_000))
    assert 0 < count < 100_000
    assert offered.offer([100_000]) == 0
    assert received.claim() == 0
    assert offered.take_back() == list(range(1, count))
    assert offered.take_back() == []
    assert received.claim() is None
    received._started.release()
    received._map.close()
