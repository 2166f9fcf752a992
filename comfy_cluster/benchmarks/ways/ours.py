"""This project, through its public collectives: what a node of ComfyUI gets.

Included: encoding (codec `auto`), digests of all bytes at both ends, the announcement, chunks,
decoding, and the destination, which the receiver allocates itself. Point to point is a broadcast in
a cluster of two. A message there and back is a message and its ACK; messages in a row are sent
with up to WINDOW of them waiting for their ACKs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from comfy_cluster import fastpath
from comfy_cluster.benchmarks.place import Place
from comfy_cluster.benchmarks.transfers import Kind
from comfy_cluster.benchmarks.ways.base import SMALL_SIZE, Way, Work
from comfy_cluster.cluster import Cluster, CollectiveKey
from comfy_cluster.config import ClusterConfig, Codec, SharedMemory
from comfy_cluster.runtime import build_discovery
from comfy_cluster.transport.handle import Handle
from comfy_cluster.transport.sockets import open_udp_socket
from comfy_cluster.transport.transport import Transport
from comfy_cluster.wire import MessageType

WINDOW = 64  # messages
PEER_COUNTERS = ("chunks_sent", "chunks_retransmitted", "bytes_sent", "shared_bytes_sent")
CALL_COUNTERS = ("socket_receive_calls", "socket_send_calls")  # of the compiled loops
CODEC_COUNTERS = [f"codec_{codec}" for codec in Codec if codec is not Codec.AUTO]


class Ours(Way):
    """A cluster with its default settings: shared memory where instances share a machine."""

    shared_memory: ClassVar[SharedMemory] = SharedMemory.AUTO

    def __init__(self, place: Place, *, codec: str = "auto") -> None:
        super().__init__(place)
        self._codec = Codec(codec)
        self._transport: Transport | None = None
        self._cluster: Cluster | None = None
        self._result: Any = None

    def listen(self) -> int:
        """A UDP port that is free at this moment; every instance must know all before the start."""
        with open_udp_socket(self.place.address, 0) as sock:
            port: int = sock.getsockname()[1]
            return port

    def connect(self, listening: Sequence[int]) -> None:
        addresses = list(zip(self.place.addresses, listening, strict=True))
        config = replace(
            ClusterConfig.static(self.place.index, addresses),
            listen_address=self.place.address,
            cluster_id=f"benchmark-{self.shared_memory}-{self._codec}",
            shared_memory=self.shared_memory,
            codec=self._codec,
        )
        self._transport = Transport(config)
        discovery = build_discovery(config)
        engine_name = fastpath.ENGINE_NAME
        self._cluster = Cluster(config, self._transport, discovery, engine_name=engine_name)
        self._cluster.start()
        self._cluster.wait_until_ready(self.place.timeout)

    @property
    def cluster(self) -> Cluster:
        assert self._cluster is not None, "connect comes first"
        return self._cluster

    @property
    def transport(self) -> Transport:
        assert self._transport is not None, "connect comes first"
        return self._transport

    def run(self, work: Work) -> None:
        self._result = self._collective(work).result(self.place.timeout)

    def _collective(self, work: Work) -> Handle[Any]:
        key = CollectiveKey(_job_id(work), work.transfer.kind.value)
        source, cluster = work.tensors.source, self.cluster
        if work.transfer.kind is Kind.FAN_OUT:
            return cluster.fan_out(key, source)
        if work.transfer.kind is Kind.FAN_IN:
            return cluster.fan_in(key, source)
        if work.transfer.kind is Kind.ALL_GATHER:
            assert source is not None, "in an all-gather everybody has something"
            return cluster.all_gather(key, source)
        return cluster.broadcast(key, source, source=work.transfer.source)

    def received(self, work: Work) -> dict[int, torch.Tensor]:
        wanted = work.tensors.wanted
        if work.transfer.kind is Kind.FAN_IN and wanted:
            parts = self._result.chunk(work.transfer.part_count)
            return {part: parts[part] for part in wanted}
        if work.transfer.kind is Kind.ALL_GATHER:
            return {part: self._result[part] for part in wanted}
        return dict.fromkeys(wanted, self._result)

    def finish(self, work: Work) -> None:
        self._result = None
        self.cluster.end_job(_job_id(work))

    def counters(self) -> dict[str, int]:
        peers, stats = self.transport.peers(), self.cluster.info().stats
        counted = {name: sum(getattr(peer, name) for peer in peers) for name in PEER_COUNTERS}
        counted |= {name: stats[name] for name in CODEC_COUNTERS}
        return counted | {"socket_calls": sum(stats.get(name, 0) for name in CALL_COUNTERS)}

    def round_trips(self, count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            started_at = time.perf_counter()
            self._send_message().result(self.place.timeout)
            seconds.append(time.perf_counter() - started_at)
        return seconds

    def answer_round_trips(self, count: int) -> None:
        """Nothing: the cluster acknowledges."""

    def stream(self, count: int) -> float:
        started_at = time.perf_counter()
        under_way: deque[Handle[None]] = deque()
        for _ in range(count):
            if len(under_way) >= WINDOW:
                under_way.popleft().result(self.place.timeout)
            under_way.append(self._send_message())
        for handle in under_way:
            handle.result(self.place.timeout)
        return time.perf_counter() - started_at

    def answer_stream(self, count: int) -> None:
        """Nothing: the cluster acknowledges."""

    def _send_message(self) -> Handle[None]:
        peer = 1 - self.place.index
        return self.transport.send_message(peer, MessageType.EXECUTION_PROGRESS, bytes(SMALL_SIZE))

    def close(self) -> None:
        self._result = None
        if self._cluster is not None:
            self._cluster.close()


class OursOverUdp(Ours):
    """The same with COMFY_CLUSTER_SHARED_MEMORY=off: what instances on two machines have."""

    shared_memory = SharedMemory.OFF


class OursByCodec(OursOverUdp):
    """The same with another COMFY_CLUSTER_CODEC."""


def _job_id(work: Work) -> str:
    return f"benchmark-{work.number}"
