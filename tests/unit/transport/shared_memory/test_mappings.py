"""A receiver's mappings: its own to write, and told of when nobody sees them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import numpy as np
import pytest

from comfy_cluster.transport.shared_memory import mappings, system_calls
from comfy_cluster.transport.shared_memory.mappings import Mapping
from comfy_cluster.transport.shared_memory.segments import Segment, SegmentPool
from comfy_cluster.transport.shared_memory.stats import SharedMemoryStats

SIZE = 1 << 20


@pytest.fixture
def segment() -> Iterator[Segment]:
    stats = SharedMemoryStats()
    pool = SegmentPool(idle_limit=0, stats=stats, on_dropped=lambda _: None)
    segment = pool.take(SIZE)
    segment.view()[:] = 7
    yield segment
    pool.on_unused(segment, 0.0)


def map_of(segment: Segment) -> Mapping:
    return Mapping(segment.descriptor.fd, segment.capacity)


def test_what_a_receiver_writes_is_its_own(segment: Segment) -> None:
    first, second = map_of(segment), map_of(segment)
    seen = [np.asarray(each.show(SIZE, lambda: None)) for each in (first, second)]
    seen[0][:] += 1
    assert (seen[0] == 8).all()
    assert (seen[1] == 7).all()
    assert (segment.view()[:SIZE] == 7).all()
    for each in (first, second):
        each.unmap()


def test_the_end_of_the_last_view_is_told_once(segment: Segment) -> None:
    told: list[int] = []
    mapping = map_of(segment)
    memory = mapping.show(SIZE, lambda: told.append(1))
    views = [memory[10:20], np.frombuffer(memory, np.float32), np.asarray(memory)[5:]]
    del memory
    while views:
        gc.collect()
        assert told == []
        views.pop()
    assert told == [1]
    mapping.unmap()


def test_a_mapping_that_was_only_read_shows_the_next_payload(segment: Segment) -> None:
    mapping = map_of(segment)
    assert np.asarray(mapping.show(SIZE, lambda: None)).sum() == 7 * SIZE
    assert mapping.is_untouched()
    segment.view()[:] = 9
    assert np.asarray(mapping.show(SIZE, lambda: None)).sum() == 9 * SIZE
    mapping.unmap()


@pytest.mark.parametrize("place", [0, SIZE // 2, SIZE - 1])
def test_one_written_byte_is_noticed(segment: Segment, place: int) -> None:
    mapping = map_of(segment)
    memory = mapping.show(SIZE, lambda: None)
    assert mapping.is_untouched()
    memory[place] = 1
    assert not mapping.is_untouched()
    del memory
    mapping.unmap()


def test_without_page_tables_to_read_nothing_is_called_untouched(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError("/proc is hidden")

    mapping = map_of(segment)
    monkeypatch.setattr(os, "open", refuse)
    assert not mapping.is_untouched()
    mapping.unmap()


def test_page_tables_are_read_in_pieces(segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mappings, "_READ_SIZE", 64)
    mapping = map_of(segment)
    memory = mapping.show(SIZE, lambda: None)
    assert mapping.is_untouched()
    memory[SIZE - 1] = 1
    assert not mapping.is_untouched()
    del memory
    mapping.unmap()


def test_a_fork_is_noticed(segment: Segment) -> None:
    before = map_of(segment)
    assert [before.is_seen_elsewhere] == [False]
    child = os.fork()
    if not child:
        os._exit(0 if segment.descriptor.fd == -1 else 1)  # the child's copy was closed
    assert os.waitpid(child, 0)[1] == 0
    after = map_of(segment)
    assert [each.is_seen_elsewhere for each in (before, after)] == [True, False]
    for each in (before, after):
        each.unmap()


def test_what_is_no_segment_leaves_no_mapping(segment: Segment) -> None:
    def count() -> int:
        with open("/proc/self/maps") as maps:
            return sum("memfd:comfy-cluster" in line for line in maps)

    before = count()
    unsealed = system_calls.create_segment(SIZE)
    with pytest.raises(ValueError, match="seals"):
        Mapping(unsealed, SIZE)
    os.close(unsealed)
    with pytest.raises(ValueError, match="announced"):
        Mapping(segment.descriptor.fd, segment.capacity + 1)
    assert count() == before
