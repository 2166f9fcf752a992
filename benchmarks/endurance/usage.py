"""What a process holds: memory, descriptors, threads, and what its cluster has not finished.

The last one reads private parts of the layers, which have no user's reason to tell them.
"""

from __future__ import annotations

import os
import statistics
import threading
from array import array
from pathlib import Path
from typing import Any

from comfy_cluster.cluster import Cluster

STATM, DESCRIPTORS = Path("/proc/self/statm"), Path("/proc/self/fd")


class Usage:
    """Looks, taken at moments when no transfer is under way; their number is bounded by `look`'s
    caller. Arrays of numbers, so that the looking itself adds next to nothing."""

    def __init__(self) -> None:
        self._resident, self._descriptors, self._threads = array("q"), array("q"), array("q")
        self._page_size = os.sysconf("SC_PAGE_SIZE")

    def look(self) -> None:
        self._resident.append(int(STATM.read_text().split()[1]) * self._page_size)
        self._descriptors.append(len(os.listdir(DESCRIPTORS)))
        self._threads.append(threading.active_count())

    def quarter(self, number: int) -> dict[str, float]:
        """Of the quarters 0 to 3: the median of memory in bytes, the fewest of the others.

        Workers open a file for a moment, and their threads come with the first work: what is
        always there is what counts.
        """
        count = len(self._resident)
        span = slice(count * number // 4, count * (number + 1) // 4)
        return {
            "resident": statistics.median(self._resident[span]),
            "descriptors": min(self._descriptors[span]),
            "threads": min(self._threads[span]),
        }


def pending(cluster: Cluster) -> dict[str, int]:
    """What is under way, by name; all 0 some moments after the last transfer and job."""
    seen: Any = cluster
    transport, collectives = seen._transport, seen._collectives
    parts = transport._parts
    endpoint = parts.endpoint
    store = endpoint._incoming._store
    return {
        "bytes encoded": collectives._payloads._budget.used,
        "encodings waiting": collectives._payloads._budget.waiting_count,
        "jobs": len(seen._jobs._jobs),
        "handles": len(transport._handles),
        "outgoing handles": len(parts.outgoing._buffers) + len(parts.outgoing._messages),
        "claims": len(parts.incoming._waiting),
        "payloads nobody took": len(parts.incoming._arrived) + len(parts.incoming._verifying),
        "payloads relayed": len(parts.incoming._relayed),
        "outgoing buffers": len(endpoint._outgoing._transfers),
        "outgoing bytes": endpoint._outgoing._budget.used,
        "chains": len(endpoint._chains._chains),
        "incoming buffers": len(store),
        "incoming bytes": store._budget.used,
    }
