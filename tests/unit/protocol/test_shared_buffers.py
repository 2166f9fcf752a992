"""Payloads through shared memory as the core sees them, over a fake of it, in virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from comfy_cluster.errors import PeerLost, TransferCancelled
from comfy_cluster.protocol import (
    BufferArrived,
    BufferFailed,
    BufferSent,
    DigestNeeded,
    IncomingFailed,
    PeerProof,
    SharedArrived,
    SharedEvent,
    SharedFailed,
)
from comfy_cluster.protocol.outgoing_buffers import SMALLEST_SHARED
from comfy_cluster.wire import MessageType
from tests.unit.protocol.fake_engine import key_of, payload_of
from tests.unit.protocol.world import World

if TYPE_CHECKING:
    from typing_extensions import Buffer

SIZE = SMALLEST_SHARED
CONTENT = bytes(range(256)) * (SIZE // 256)


class FakeSharedMemory:
    """One instance's; `Machine` joins them."""

    def __init__(self, machine: Machine, index: int) -> None:
        self.machine = machine
        self.index = index
        self.proofs: dict[int, PeerProof] = {}
        self.outgoing: dict[int, tuple[int, bytes]] = {}
        self.incoming: dict[int, int] = {}
        self.wanted: list[int] = []
        """What was told to be sent while the machine holds back."""
        self.events: list[SharedEvent] = []

    def connect_peer(self, peer: int, proof: PeerProof, now: float) -> None:
        self.proofs[peer] = proof

    def disconnect_peer(self, peer: int) -> None:
        self.proofs.pop(peer, None)
        assert peer not in self.incoming.values()
        assert peer not in [owner for owner, _ in self.outgoing.values()]

    def is_shared_with(self, peer: int) -> bool:
        return peer in self.proofs and frozenset((self.index, peer)) not in self.machine.cut

    def open_outgoing(self, peer: int, buffer_id: int, prefix: bytes, body: Buffer) -> None:
        assert self.is_shared_with(peer) and buffer_id not in self.outgoing
        self.outgoing[buffer_id] = (peer, prefix + bytes(body))

    def send(self, buffer_id: int) -> None:
        if self.machine.is_holding:
            self.wanted.append(buffer_id)
            return
        peer, content = self.outgoing[buffer_id]
        target = self.machine.ports[peer]
        if self.machine.is_full and target.incoming.pop(buffer_id, None) is not None:
            target.events.append(SharedFailed(buffer_id, "no shared memory left"))
        elif self.is_shared_with(peer) and buffer_id in target.incoming:
            assert target.incoming.pop(buffer_id) == self.index
            target.events.append(SharedArrived(buffer_id, bytearray(content)))

    def close_outgoing(self, buffer_id: int) -> None:
        self.outgoing.pop(buffer_id, None)

    def open_incoming(self, peer: int, buffer_id: int, size: int) -> None:
        assert self.is_shared_with(peer)
        self.incoming[buffer_id] = peer

    def close_incoming(self, buffer_id: int) -> None:
        self.incoming.pop(buffer_id, None)

    def take_events(self) -> Sequence[SharedEvent]:
        taken, self.events = self.events, []
        return taken


class Machine:
    """All instances of a world share memory, but for pairs that are cut off."""

    def __init__(self, count: int = 2) -> None:
        self.ports: dict[int, FakeSharedMemory] = {}
        self.cut: set[frozenset[int]] = set()
        self.is_full = False
        """There is no memory for what is told to be sent: each receiver is told so."""
        self.is_holding = False
        self.world = World(count, shared_memory_of=self._port)
        self.world.connect()

    def _port(self, index: int) -> FakeSharedMemory:
        port = self.ports[index] = FakeSharedMemory(self, index)
        return port

    def send(self, name: str, *, target: int = 1, digest: bytes | None = None) -> int:
        return self.world.endpoints[0].send_buffer(
            target,
            key_of(name, 0),
            payload_of(CONTENT),
            digest=digest,
            message_type=MessageType.DISTRIBUTE_BUFFER_FANOUT,
            now=self.world.now,
        )

    def let_go(self) -> None:
        self.is_holding = False
        wanted, self.ports[0].wanted = self.ports[0].wanted, []
        for buffer_id in wanted:
            self.ports[0].send(buffer_id)

    def lose_link(self) -> None:
        """Both notice it; what the receiver expects fails."""
        self.cut.add(frozenset((0, 1)))
        for port in self.ports.values():
            for buffer_id in list(port.incoming):
                port.close_incoming(buffer_id)
                port.events.append(SharedFailed(buffer_id, "the link is lost"))

    def answer_digests(self) -> None:
        """What the transport does for each DigestNeeded."""
        for event in self.world.seen(0, DigestNeeded):
            digest = payload_of(CONTENT).digest()
            self.world.endpoints[0].provide_digest(event.buffer_id, digest, self.world.now)

    def confirm(self) -> None:
        for event in self.world.seen(1, BufferArrived):
            self.world.endpoints[1].confirm_buffer(event.buffer_id, self.world.now)
            self.world.endpoints[1].release_buffer(event.buffer_id, self.world.now)

    def stat(self, index: int, name: str) -> int:
        return int(getattr(self.world.endpoints[index].stats, name))

    def is_clean(self) -> bool:
        """Nothing is left on either side of shared memory."""
        return not any(port.outgoing or port.incoming for port in self.ports.values())


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_both_sides_hand_on_the_same_proof(machine: Machine) -> None:
    at_leader, at_follower = machine.ports[0].proofs[1], machine.ports[1].proofs[0]
    assert at_leader.local_session == at_follower.remote_session
    assert at_leader.remote_session == at_follower.local_session
    assert (at_leader.boot_id, at_follower.boot_id) == (2, 1)


def test_payload_goes_without_digest_and_chunks(machine: Machine) -> None:
    transfer = machine.send("a")
    machine.world.claim(1, "a")
    machine.world.run_for(1.0)
    (arrived,) = machine.world.seen(1, BufferArrived)
    assert bytes(arrived.memory)[: arrived.size] == CONTENT
    assert arrived.digest == b""
    assert machine.world.engines[0].outgoing == {} == machine.world.engines[1].incoming
    machine.confirm()
    machine.world.run_for(1.0)
    assert machine.world.seen(0, BufferSent) == [BufferSent(transfer)]
    assert machine.world.seen(0, DigestNeeded) == []
    assert machine.is_clean()


def test_payloads_that_shared_memory_refuses_take_the_budget_once_more_at_most(
    machine: Machine,
) -> None:
    machine.is_full = True
    machine.world.boot(1, memory_budget=4 * SIZE)  # half of it is for what comes in
    machine.world.run_for(2.0)
    for number in range(20):
        machine.send(f"n{number}")
        machine.world.claim(1, f"n{number}")
    machine.world.run_for(0.5)
    machine.answer_digests()
    peak = 0
    for _ in range(200):
        machine.world.run_for(0.01)
        peak = max(peak, machine.world.bookkeeping(1)["incoming budget"])
        machine.confirm()
    assert SIZE <= peak <= 4 * SIZE
    assert len(machine.world.arrived(1)) == 20


@pytest.mark.parametrize("size", [0, 100, SIZE - 1])
def test_small_payloads_and_large_messages_stay_with_udp(machine: Machine, size: int) -> None:
    machine.world.send(0, 1, "small", bytes(size))
    machine.world.endpoints[0].send_message(
        1, MessageType.EXECUTE_WORKFLOW, bytes(2 * SIZE), now=machine.world.now
    )
    machine.world.claim(1, "small")
    machine.world.run_for(1.0)
    (arrived,) = machine.world.seen(1, BufferArrived)
    assert arrived.digest != b""
    assert machine.ports[0].outgoing == {}


def test_without_a_link_the_digest_is_asked_for_and_udp_brings_it(machine: Machine) -> None:
    """The link is lost between the caller's look at it and the announcement."""
    machine.cut.add(frozenset((0, 1)))
    transfer = machine.send("a")
    machine.world.claim(1, "a")
    machine.world.run_for(1.0)
    assert machine.world.seen(0, DigestNeeded) == [DigestNeeded(transfer)]
    assert machine.world.seen(1, BufferArrived) == []
    machine.answer_digests()
    machine.world.run_for(1.0)
    (arrived,) = machine.world.seen(1, BufferArrived)
    assert bytes(arrived.memory)[: arrived.size] == CONTENT and arrived.digest


@pytest.mark.parametrize("is_claimed", [True, False])
@pytest.mark.parametrize("moment", ["announced", "accepted"])
def test_a_lost_link_brings_the_payload_over_udp(
    machine: Machine, moment: str, is_claimed: bool
) -> None:
    machine.is_holding = True
    transfer = machine.send("a")
    if is_claimed:
        machine.world.claim(1, "a")
    if moment == "accepted":
        machine.world.run_for(1.0)
        assert machine.ports[0].wanted
    machine.lose_link()
    machine.world.run_for(1.0)
    machine.answer_digests()
    machine.world.run_for(1.0)
    (arrived,) = machine.world.seen(1, BufferArrived)
    assert arrived.digest
    machine.confirm()
    machine.world.run_for(1.0)
    assert machine.world.seen(0, BufferSent) == [BufferSent(transfer)]
    assert machine.world.seen(0, BufferFailed) == []
    assert machine.world.seen(1, IncomingFailed) == []
    assert machine.stat(0, "buffers_unshared") == 1
    assert machine.stat(0, "buffers_resent") == 0
    assert machine.is_clean()


def test_a_digest_that_came_along_is_not_asked_for_again(machine: Machine) -> None:
    machine.is_holding = True
    machine.send("a", digest=payload_of(CONTENT).digest())
    machine.world.claim(1, "a")
    machine.world.run_for(1.0)
    machine.lose_link()
    machine.world.run_for(1.0)
    assert machine.world.seen(0, DigestNeeded) == []
    assert len(machine.world.seen(1, BufferArrived)) == 1


def test_what_arrived_before_the_link_was_lost_is_not_sent_again(machine: Machine) -> None:
    machine.send("a")
    machine.world.claim(1, "a")
    machine.world.run_until(lambda: bool(machine.world.seen(1, BufferArrived)), 1.0)
    machine.lose_link()
    machine.confirm()
    machine.world.run_for(1.0)
    assert len(machine.world.seen(0, BufferSent)) == 1
    assert machine.stat(0, "buffers_unshared") == 0


def test_a_receiver_without_a_link_says_so(machine: Machine) -> None:
    """The two may differ for a moment."""
    machine.is_holding = True
    receiver = machine.ports[1]
    proof = receiver.proofs.pop(0)
    machine.send("a", digest=payload_of(CONTENT).digest())
    machine.world.claim(1, "a")
    machine.world.run_for(1.0)
    receiver.proofs[0] = proof
    machine.world.run_for(1.0)
    assert len(machine.world.seen(1, BufferArrived)) == 1
    assert machine.stat(0, "buffers_unshared") == 1
    assert machine.is_clean()


def test_a_lost_peer_ends_all_on_both_sides(machine: Machine) -> None:
    machine.is_holding = True
    transfer = machine.send("a")
    machine.world.claim(1, "a")
    machine.world.run_for(1.0)
    machine.world.is_lost = lambda packet: True
    machine.world.run_for(10.0)
    (failed,) = machine.world.seen(0, BufferFailed)
    assert failed.buffer_id == transfer and isinstance(failed.error, PeerLost)
    (gone,) = machine.world.seen(1, IncomingFailed)
    assert isinstance(gone.error, PeerLost)
    assert machine.is_clean()


def test_cancel_and_end_of_job_end_both_sides(machine: Machine) -> None:
    machine.is_holding = True
    cancelled, ended = machine.send("cancelled"), machine.send("ended")
    for name in ("cancelled", "ended"):
        machine.world.claim(1, name)
    machine.world.run_for(1.0)
    assert machine.world.endpoints[0].cancel_buffer(cancelled, machine.world.now)
    machine.world.run_for(1.0)
    (failed,) = machine.world.seen(1, IncomingFailed)
    assert isinstance(failed.error, TransferCancelled) and failed.key.node_id == "cancelled"
    machine.world.endpoints[1].end_job("job", machine.world.now)
    machine.world.run_for(1.0)
    assert {event.buffer_id for event in machine.world.seen(0, BufferFailed)} == {cancelled, ended}
    assert machine.is_clean()


def test_the_budget_holds_for_shared_payloads_too() -> None:
    machine = Machine()
    machine.is_holding = True
    sent = [machine.send(str(number)) for number in range(40)]  # 2.6 MB; a half is 2 MB
    for number in range(40):
        machine.world.claim(1, str(number))
    machine.world.run_for(1.0)
    assert SIZE * len(machine.ports[1].incoming) <= 2_000_000
    for _ in range(60):
        machine.let_go()
        machine.world.run_for(0.1)
        machine.confirm()
        machine.world.run_for(0.1)
        machine.is_holding = True
    assert {event.buffer_id for event in machine.world.seen(0, BufferSent)} == set(sent)


def test_each_peer_has_its_own_transfer_of_one_payload() -> None:
    machine = Machine(3)
    machine.cut.add(frozenset((0, 2)))
    digest = payload_of(CONTENT).digest()
    for target in (1, 2):
        machine.send("a", target=target, digest=digest)
        machine.world.claim(target, "a")
    machine.world.run_for(1.0)
    digests = [machine.world.seen(index, BufferArrived)[0].digest for index in (1, 2)]
    assert digests == [b"", digest]
