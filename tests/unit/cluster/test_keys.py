"""Names of collectives and of their transfers."""

from __future__ import annotations

from comfy_cluster.cluster import CollectiveKey
from comfy_cluster.wire import TransferKey


def test_each_source_has_a_transfer_of_its_own() -> None:
    key = CollectiveKey("job", "7", list_index=2, occurrence=3)
    assert key.from_source(4) == TransferKey("job", "7", 2, 3, 4)
    assert len({key.from_source(source) for source in range(5)}) == 5


def test_text_is_short_where_it_can_be() -> None:
    assert str(CollectiveKey("job", "7")) == "job job, node 7"
    assert str(CollectiveKey("job", "7", 2, 3)) == "job job, node 7, item 2, run 3"
