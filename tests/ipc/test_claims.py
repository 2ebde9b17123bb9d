"""The right to start a job: what is offered is claimed or taken back, and what finds no room was not offered."""

import os
import resource
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


def test_a_page_that_cannot_be_mapped_leaves_no_descriptor() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(0) for _ in range(3)]
    for descriptor in free:
        os.close(descriptor)
    # Enough for the pipe and the page, and none for the copy that the mapping makes of the page's.
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            OfferedClaims()
        again = [os.dup(0) for _ in range(3)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for descriptor in again:
        os.close(descriptor)
    assert again == free
