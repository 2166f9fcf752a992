"""The ways of moving bytes that are compared, by name. A way's module is loaded by instances only:
it needs torch, and whatever else the way is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

from comfy_cluster.benchmarks.place import Place
from comfy_cluster.benchmarks.transfers import Kind
from comfy_cluster.config import Codec

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
    arguments: Mapping[str, str] = field(default_factory=dict)
    """Of the class, beside the place."""


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


def codec_way(codec: str) -> str:
    """The name of the way that sends everything by one codec."""
    return f"codec-{codec}"


# Of the row `codecs` alone: all other rows leave the choice to `auto`.
CODEC_WAYS = {
    codec_way(codec): WayInfo(
        f"ours-udp, COMFY_CLUSTER_CODEC={codec}",
        "ours",
        "OursByCodec",
        is_ours=True,
        arguments={"codec": codec},
    )
    for codec in map(str, Codec)
}
ALL_WAYS = {**WAYS, **CODEC_WAYS}


def make_way(name: str, place: Place) -> Way:
    """A way in one instance. Unavailable: not here, for a reason that its text tells."""
    info = ALL_WAYS[name]
    module = import_module(f"{__name__}.{info.module}")
    way: Way = getattr(module, info.class_name)(place, **info.arguments)
    return way
