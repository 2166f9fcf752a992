"""How a collective's transfers are found: by name, never by the order of arrival.

Used by the collectives and by who calls them.
"""

from __future__ import annotations

from dataclasses import dataclass

from comfy_cluster.wire import TransferKey


@dataclass(frozen=True, slots=True)
class CollectiveKey:
    """Names one collective; every instance that takes part makes the same one.

    `list_index` tells apart the items of a list that go through one node, `occurrence` the times
    that one node runs in a job.
    """

    job_id: str
    node_id: str
    list_index: int = 0
    occurrence: int = 0

    def from_source(self, source: int) -> TransferKey:
        """The key of the buffer that instance `source` sends in this collective."""
        return TransferKey(self.job_id, self.node_id, self.list_index, self.occurrence, source)

    def __str__(self) -> str:
        text = f"job {self.job_id}, node {self.node_id}"
        if self.list_index or self.occurrence:
            text += f", item {self.list_index}, run {self.occurrence}"
        return text
