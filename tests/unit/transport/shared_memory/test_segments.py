"""The pool of segments: used again only when nobody sees what is in one, and bounded."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from comfy_cluster.transport.shared_memory import segments
from comfy_cluster.transport.shared_memory.records import Fate
from comfy_cluster.transport.shared_memory.segments import (
    IDLE_TIMEOUT,
    SMALLEST_CAPACITY,
    Segment,
    SegmentPool,
    capacity_for,
)
from comfy_cluster.transport.shared_memory.stats import SharedMemoryStats

SIZE = SMALLEST_CAPACITY


class Fixture:
    def __init__(self) -> None:
        self.dropped: list[Segment] = []
        self.stats = SharedMemoryStats()
        self.pool = SegmentPool(
            idle_limit=4 * SIZE, stats=self.stats, on_dropped=self.dropped.append
        )

    def lent(self, *peers: int, size: int = SIZE, now: float = 0.0) -> Segment:
        """A segment that these peers borrow and no transfer needs any more."""
        segment = self.pool.take(size)
        for peer in peers:
            self.pool.lend(segment, peer)
        self.pool.on_unused(segment, now)
        return segment


@pytest.fixture
def made() -> Iterator[Fixture]:
    fixture = Fixture()
    yield fixture
    fixture.pool.close()
    assert len(fixture.pool) == fixture.pool.idle_bytes == fixture.stats.segments == 0


def test_size_classes_waste_an_eighth_at_most() -> None:
    for size in (1, SIZE, SIZE + 1, 1_000_003, 101_000_000, 403_000_001, (1 << 40) - 1):
        capacity = capacity_for(size)
        assert max(size, SIZE) <= capacity <= max(size, SIZE) * 9 / 8 + 4096
        assert capacity_for(capacity) == capacity


def test_a_segment_is_used_again_when_all_its_borrowers_released_it(made: Fixture) -> None:
    segment = made.lent(1, 2)
    made.pool.on_released(segment, 1, Fate.UNMAPPED, 0.0)
    assert made.pool.take(SIZE) is not segment  # instance 2 sees it still
    made.pool.on_released(segment, 2, Fate.UNMAPPED, 0.0)
    assert made.pool.take(SIZE) is segment
    assert (made.stats.segments_made, made.stats.segments_reused) == (2, 1)


def test_a_segment_that_a_transfer_needs_is_not_used_again(made: Fixture) -> None:
    segment = made.pool.take(SIZE)
    made.pool.lend(segment, 1)
    made.pool.on_released(segment, 1, Fate.UNMAPPED, 0.0)
    assert made.pool.take(SIZE) is not segment
    made.pool.on_unused(segment, 0.0)
    assert made.pool.take(SIZE) is segment


def test_a_peer_that_borrowed_twice_releases_twice(made: Fixture) -> None:
    segment = made.lent(1, 1)
    made.pool.on_released(segment, 1, Fate.UNMAPPED, 0.0)
    assert made.pool.take(SIZE) is not segment
    made.pool.on_released(segment, 1, Fate.UNMAPPED, 0.0)
    assert made.pool.take(SIZE) is segment


def test_a_peer_cannot_release_what_it_never_had(made: Fixture) -> None:
    segment = made.lent(1)
    for _ in range(3):
        made.pool.on_released(segment, 2, Fate.KEPT, 0.0)
    assert segment.keepers == set()
    assert made.pool.take(SIZE) is not segment


def test_what_a_lost_peer_borrowed_is_never_written_to_again(made: Fixture) -> None:
    lost, shared, others = made.lent(1), made.lent(1, 2), made.lent(2)
    made.pool.on_lost(1, 0.0)
    assert made.dropped == [lost]
    made.pool.on_released(shared, 2, Fate.UNMAPPED, 0.0)
    assert made.dropped == [lost, shared]
    made.pool.on_released(others, 2, Fate.UNMAPPED, 0.0)
    assert made.pool.take(SIZE) is others


def test_what_a_child_of_a_receiver_may_see_is_never_written_to_again(made: Fixture) -> None:
    segment = made.lent(1)
    made.pool.on_released(segment, 1, Fate.STILL_SEEN, 0.0)
    assert made.dropped == [segment]


def test_who_keeps_a_mapping_needs_no_descriptor_once(made: Fixture) -> None:
    segment = made.pool.take(SIZE)
    assert made.pool.lend(segment, 1)
    made.pool.on_released(segment, 1, Fate.KEPT, 0.0)
    assert not made.pool.lend(segment, 1)
    assert made.pool.lend(segment, 1)  # at the same time: the one that it kept is taken
    assert made.pool.lend(segment, 2)
    made.pool.on_unused(segment, 0.0)


def test_idle_segments_are_bounded_and_go_with_time(made: Fixture) -> None:
    many = [made.pool.take(SIZE) for _ in range(6)]
    for number, segment in enumerate(many):
        made.pool.on_unused(segment, 10.0 + number)
    assert made.pool.idle_bytes == 4 * SIZE
    assert len(made.dropped) == 2
    assert made.pool.next_timer() == 12.0 + IDLE_TIMEOUT
    made.pool.trim(12.9 + IDLE_TIMEOUT)
    assert made.pool.idle_bytes == 3 * SIZE
    made.pool.trim(100.0 + IDLE_TIMEOUT)
    assert (made.pool.idle_bytes, len(made.pool), made.pool.next_timer()) == (0, 0, None)


def test_what_is_larger_than_the_bound_never_idles(made: Fixture) -> None:
    segment = made.lent(size=5 * SIZE)
    assert made.dropped == [segment]


def test_the_number_of_segments_is_bounded(made: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Receivers that keep their tensors for ever cost no descriptors without end."""
    monkeypatch.setattr(segments, "LARGEST_COUNT", 3)
    lent = [made.lent(1) for _ in range(5)]
    assert made.dropped == lent[:2]
    assert len(made.pool) == 3
    made.pool.on_released(lent[2], 1, Fate.UNMAPPED, 0.0)
    in_use = [made.pool.take(SIZE) for _ in range(3)]
    assert in_use[0] is lent[2]
    with pytest.raises(OSError, match="segments are in use"):
        made.pool.take(SIZE)


def test_a_segment_given_up_holds_no_descriptor_and_no_memory(made: Fixture) -> None:
    before = len(os.listdir("/proc/self/fd"))
    segment = made.lent()
    assert made.pool.get(segment.segment_id) is segment
    assert len(os.listdir("/proc/self/fd")) == before + 1
    made.pool.trim(1000.0)
    assert made.pool.get(segment.segment_id) is None
    assert len(os.listdir("/proc/self/fd")) == before
