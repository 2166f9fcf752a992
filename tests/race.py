"""One sender of ours and one TCP cubic flow on the same simulated bottleneck."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType

from tests.cubic import CubicReceiver, CubicSender
from tests.engine_instance import EngineInstance, address_of
from tests.simnet import Link, SimNetwork

PACKET = 1472
BUFFER = 2_000_000
IN_ADVANCE = 8  # buffers: what is to be sent never limits
RECEIVE_CAPACITY = 32 << 20
OURS, THEIRS = (address_of(0), address_of(1)), (("10.0.1.1", 5201), ("10.0.1.2", 5201))


@dataclass
class Race:
    """Ours sends buffers without a pause; `lead`: seconds that ours, or cubic if < 0, has alone."""

    engine: ModuleType
    link: Link
    lead: float = 0.0

    def __post_init__(self) -> None:
        self.network = SimNetwork(seed=1, link=self.link)
        back = replace(self.link, rate=None)
        self.sender, self.receiver = (
            EngineInstance(self.engine, receive_capacity=RECEIVE_CAPACITY) for _ in range(2)
        )
        for index, instance in enumerate((self.sender, self.receiver)):
            instance.connect(
                1 - index,
                local_session=1 + index,
                remote_session=2 - index,
                packet_size=PACKET,
                now=0.0,
            )
            self.network.attach(address_of(index), instance)
        self.cubic_receiver = CubicReceiver()
        self.cubic_sender = CubicSender(
            THEIRS[1], packet_size=PACKET, starts_at=max(0.0, self.lead)
        )
        self.network.attach(THEIRS[0], self.cubic_sender)
        self.network.attach(THEIRS[1], self.cubic_receiver)
        self.network.share_link(OURS, THEIRS)
        self.network.set_link(THEIRS[1], THEIRS[0], back)
        self.network.set_link(OURS[1], OURS[0], back)
        self._payload = bytes(BUFFER)
        self._memory = bytearray(BUFFER)
        self._opened = self._done = 0

    @property
    def counts(self) -> tuple[int, int]:
        """Bytes that arrived: ours, cubic's."""
        stats = self.receiver.core.peer_stats(0)
        return stats["chunks_received"] * PACKET, self.cubic_receiver.received * PACKET

    def run(self, seconds: float) -> None:
        end = self.network.now + seconds
        if self.network.now < -self.lead:
            self.network.run_for(min(-self.lead - self.network.now, seconds))
        while self.network.now < end:
            self._feed()
            self.network.run_for(min(0.001, end - self.network.now))

    def _feed(self) -> None:
        self._done += len(self.sender.events)
        self.sender.events.clear()
        self.receiver.events.clear()
        size = self.engine.chunk_size_for(PACKET)
        while self._opened - self._done < IN_ADVANCE:
            number = self._opened
            self.receiver.core.open_incoming(
                0, number, memoryview(self._memory), size=BUFFER, chunk_size=size
            )
            self.sender.core.open_outgoing(1, number, b"", self._payload, chunk_size=size)
            self._opened += 1
