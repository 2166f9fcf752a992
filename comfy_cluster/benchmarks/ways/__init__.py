"""The ways of moving bytes that are compared, by name. A way's module is loaded by instances only:
it needs torch, and whatever else the way is made of."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from comfy_cluster.benchmarks.place import Place
from comfy_cluster.benchmarks.transfers import Kind

if TYPE_CHECKING:
    from comfy_cluster.benchmarks.ways.base import Way

ALL_KINDS = frozenset(Kind)
POINT_TO_POINT_ONLY = frozenset({Kind.POINT_TO_POINT})


@dataclass(frozen=True, slots=True)
class WayInfo:
    """What is known of a way without loading it."""

    text: str
    """For the list of ways."""
    module: str
    class_name: str
    kinds: frozenset[Kind] = ALL_KINDS
    """The transfers that it can do."""
    fewest_bytes: int = 0
    """Below that the way cannot be measured."""
    has_python: bool = True
    """Whether it runs Python code between a tensor's first byte and its last, and has messages."""
    is_ours: bool = False


# In the order of the tables.
WAYS = {
    "ours": WayInfo("this project; shared memory on one machine", "ours", "Ours", is_ours=True),
    "ours-udp": WayInfo(
        "this project, COMFY_CLUSTER_SHARED_MEMORY=off", "ours", "OursOverUdp", is_ours=True
    ),
    "gloo": WayInfo("torch.distributed with gloo", "gloo", "Gloo"),
    "pyzmq": WayInfo("pyzmq, PAIR over tcp", "zeromq", "ZeroMq"),
    "tcp": WayInfo("plain TCP sockets, sendall and recv_into", "tcp", "Tcp"),
    "ceiling": WayInfo(
        "UDP with GSO and GRO and no protocol",
        "ceiling",
        "Ceiling",
        kinds=POINT_TO_POINT_ONLY,
        has_python=False,
    ),
    "iperf3": WayInfo(
        "iperf3 over TCP",
        "iperf3",
        "Iperf3",
        kinds=POINT_TO_POINT_ONLY,
        fewest_bytes=10_000_000,  # below, its receiver counts part of the bytes, or none
        has_python=False,
    ),
}


def make_way(name: str, place: Place) -> Way:
    """A way in one instance. Unavailable: not here, for a reason that its text tells."""
    info = WAYS[name]
    module = import_module(f"{__name__}.{info.module}")
    way: Way = getattr(module, info.class_name)(place)
    return way
