"""What is known of the way to some peers."""

from __future__ import annotations

import pytest

from comfy_cluster.cluster.links import ASSUMED_RATE, Link, link_to
from comfy_cluster.cluster.membership import Membership
from comfy_cluster.config import ClusterConfig
from comfy_cluster.protocol.events import PeerConnected
from tests.unit.cluster.fake_transport import FakeClusters, FakeTransport

ADDRESSES = ["127.0.0.1", "192.168.1.2", "192.168.1.3", "192.168.1.4"]


@pytest.fixture
def transport() -> FakeTransport:
    return FakeClusters(4).network.transports[0]


def link(
    transport: FakeTransport,
    *peers: int,
    is_relayed: bool = False,
    codecs: dict[int, tuple[str, ...]] | None = None,
    hostnames: list[str] = ADDRESSES,
) -> Link:
    config = ClusterConfig.static(0, [(hostname, 9998) for hostname in ADDRESSES])
    membership = Membership(config)
    for peer in range(1, 4):
        known = ("raw", "zstd") if codecs is None else codecs.get(peer, ())
        membership.handle_event(PeerConnected(peer, 1, (hostnames[peer], 9998), known))
    return link_to(peers, membership=membership, transport=transport, is_relayed=is_relayed)


def test_the_rate_is_what_the_path_was_seen_to_carry(transport: FakeTransport) -> None:
    transport.bandwidths = {1: 5e6, 2: 7e6}
    assert link(transport, 1).rate == 5e6
    assert link(transport, 2).rate == 7e6


def test_an_unknown_path_is_taken_for_a_common_one(transport: FakeTransport) -> None:
    assert link(transport, 3).rate == ASSUMED_RATE
    assert not link(transport, 3).is_local


def test_loopback_is_this_machine(transport: FakeTransport) -> None:
    local = ["127.0.0.1", "127.0.0.1", "::1", "192.168.1.4"]
    assert link(transport, 1, 2, hostnames=local).is_local
    assert not link(transport, 1, 3, hostnames=local).is_local
    transport.sharing = {3}
    assert link(transport, 1, 3, hostnames=local).is_local


def test_several_receivers_share_the_link_unless_they_pass_it_on(transport: FakeTransport) -> None:
    transport.bandwidths = {1: 9e6, 2: 6e6, 3: 12e6}
    assert link(transport, 1, 2, 3).rate == 2e6
    assert link(transport, 1, 2, 3, is_relayed=True).rate == 6e6


def test_who_shares_memory_takes_no_part_of_the_link(transport: FakeTransport) -> None:
    transport.bandwidths = {1: 1e3, 2: 6e6}
    transport.sharing = {1}
    mixed = link(transport, 1, 2)
    assert mixed.rate == 6e6 and not mixed.shares_memory
    assert link(transport, 1).shares_memory


def test_codecs_are_those_of_all_receivers(transport: FakeTransport) -> None:
    codecs = {1: ("raw", "zstd", "webp"), 2: ("raw", "webp"), 3: ()}
    assert link(transport, 1, 2, codecs=codecs).codecs == {"raw", "webp"}
    assert link(transport, 1, codecs=codecs).takes_parts
    older = link(transport, 1, 3, codecs=codecs)
    assert older.codecs == {"raw"} and not older.takes_parts
    assert link(transport, 3, codecs=codecs).codecs == {"raw", "png"}


def test_payloads_that_go_out_at_once_share_the_rate(transport: FakeTransport) -> None:
    transport.bandwidths = {1: 9e6}
    assert link(transport, 1).shared_by(3).rate == 3e6
