"""STUN servers asked through the socket of a transport, over real sockets of this machine."""

from __future__ import annotations

import dataclasses
import random
import socket
import time
from collections.abc import Iterator
from types import ModuleType

import pytest

from comfy_cluster.config import ClusterConfig, SharedMemory
from comfy_cluster.errors import (
    ConfigError,
    LocalProtocolError,
    RemoteProtocolError,
    TransferCancelled,
    TransferTimeout,
)
from comfy_cluster.fastpath import MAX_STUN_TRANSACTIONS
from comfy_cluster.transport.transport import Transport
from stun_server.binding.responder import BindingResponder
from tests.integration.transports import (
    FANIN,
    WAIT,
    Instances,
    bytes_of,
    key_of,
    payload_of,
    wait_until,
)
from tests.packets import stun
from tests.stun_responder import Address, StunResponder, error, honest, success

pytestmark = pytest.mark.integration

FORGED: Address = ("192.0.2.66", 6)


def new_transport(engine: ModuleType, address: str = "127.0.0.1", *, own_port: int) -> Transport:
    config = ClusterConfig.static(0, [("127.0.0.1", own_port), ("127.0.0.1", 2)])
    config = dataclasses.replace(config, listen_address=address, direct_listen_port=own_port)
    return Transport(config, make_engine=engine.PacketEngine)


@pytest.fixture
def own_port() -> int:
    return free_port()


@pytest.fixture
def transport(engine: ModuleType, own_port: int) -> Iterator[Transport]:
    made = new_transport(engine, own_port=own_port)
    made.start()
    yield made
    made.close()


def free_port(family: int = socket.AF_INET) -> int:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_the_server_tells_the_port_of_the_data_socket(transport: Transport, own_port: int) -> None:
    with StunResponder() as server:
        handles = [transport.ask_reflexive(server.address, timeout=WAIT) for _ in range(3)]
        assert {each.result(WAIT) for each in handles} == {("127.0.0.1", own_port)}
    assert transport.stats()["stun_answers"] == 3
    assert len({request for request, _ in server.requests}) >= 3


def test_the_rendezvous_servers_responder_answers(transport: Transport, own_port: int) -> None:
    responder = BindingResponder(port=0, addresses=("127.0.0.1",))
    responder.start()
    try:
        (server,) = responder.bound_addresses
        asked = transport.ask_reflexive(server, timeout=WAIT)
        assert asked.result(WAIT) == ("127.0.0.1", own_port)
    finally:
        responder.close()


def test_the_first_request_may_be_lost(transport: Transport, own_port: int) -> None:
    seen: list[bytes] = []

    def second_time(request: bytes, source: Address) -> list[bytes]:
        seen.append(request)
        return honest(request, source) if len(seen) > 1 else []

    with StunResponder(answer=second_time) as server:
        asked = transport.ask_reflexive(server.address, timeout=WAIT)
        assert asked.result(WAIT) == ("127.0.0.1", own_port)
    assert seen[0] == seen[1]
    assert transport.stats()["stun_requests_sent"] >= 2


def test_forged_answers_are_dropped_and_the_true_one_counts(
    transport: Transport, own_port: int
) -> None:
    """Another port of the server's machine knows the id; the server's own knows it not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
        forger.bind(("127.0.0.1", 0))

        def forge(request: bytes, source: Address) -> list[bytes]:
            forger.sendto(success(request[8:20], FORGED), source)
            forger.sendto(error(request[8:20], 400), source)
            return [
                success(bytes(12), FORGED),
                stun(request[8:20], b"\0" * 8),
                *honest(request, source),
            ]

        with StunResponder(answer=forge) as server:
            asked = transport.ask_reflexive(server.address, timeout=WAIT)
            assert asked.result(WAIT) == ("127.0.0.1", own_port)
    assert transport.failure is None
    assert transport.stats()["stun_packets_ignored"] >= 3
    assert transport.stats()["engine_malformed"] >= 1


def test_a_server_that_is_silent_or_refuses_is_an_error(transport: Transport) -> None:
    with StunResponder(answer=lambda *_: []) as silent:
        begin = time.monotonic()
        failure = transport.ask_reflexive(silent.address, timeout=0.7).exception(WAIT)
        assert isinstance(failure, TransferTimeout)
        assert time.monotonic() - begin >= 0.7
    with StunResponder(answer=lambda request, _: [error(request[8:20], 420)]) as unwilling:
        failure = transport.ask_reflexive(unwilling.address, timeout=WAIT).exception(WAIT)
        assert isinstance(failure, RemoteProtocolError)
    failure = transport.ask_reflexive(("127.0.0.1", free_port()), timeout=0.1).exception(WAIT)
    assert isinstance(failure, TransferTimeout)  # nobody is there: the system's word is no news
    assert transport.failure is None


def test_closing_and_cancelling_end_questions_at_once(transport: Transport) -> None:
    with StunResponder(answer=lambda *_: []) as silent:
        asked = [
            transport.ask_reflexive(silent.address, timeout=WAIT)
            for _ in range(MAX_STUN_TRANSACTIONS)
        ]
        refused = transport.ask_reflexive(silent.address, timeout=WAIT)
        assert isinstance(refused.exception(WAIT), LocalProtocolError)
        assert asked[0].cancel()
        again = transport.ask_reflexive(silent.address, timeout=WAIT)
        begin = time.monotonic()
        transport.close()
        for each in (*asked, again):
            assert isinstance(each.exception(WAIT), TransferCancelled)
        assert time.monotonic() - begin < 5.0


def test_what_the_socket_cannot_reach_is_refused(engine: ModuleType) -> None:
    transport = new_transport(engine, own_port=free_port())
    with pytest.raises(LocalProtocolError):
        transport.ask_reflexive(("127.0.0.1", 3478), timeout=1.0)
    transport.start()
    with pytest.raises(ConfigError):
        transport.ask_reflexive(("2001:db8::1", 3478), timeout=1.0)
    transport.close()


def test_a_socket_of_both_kinds_asks_servers_of_both(engine: ModuleType) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    port = free_port(socket.AF_INET6)
    transport = new_transport(engine, "::", own_port=port)
    transport.start()
    try:
        for address in ("127.0.0.1", "::1"):
            with StunResponder(address) as server:
                asked = transport.ask_reflexive(server.address, timeout=WAIT)
                assert asked.result(WAIT) == (address, port)
    finally:
        transport.close()


def has_ipv6() -> bool:
    try:
        return bool(free_port(socket.AF_INET6))
    except OSError:
        return False


def test_questions_and_transfers_go_on_beside_each_other(
    engine: ModuleType, rng: random.Random
) -> None:
    """Answers, and packets that nobody asked for, come in among the chunks."""
    payload = payload_of(rng, 20_000_000)
    with (
        Instances(2, engine, shared_memory=SharedMemory.OFF) as (first, second),
        StunResponder() as server,
    ):
        key = key_of(0)
        received = second.transport.receive_buffer(key, peer=0)
        first.transport.send_buffer(1, key, payload, message_type=FANIN)
        answered = 0
        while not received.done():
            for each in (first, second):
                port = each.config.udp_hostnames[each.index].port
                server.sock.sendto(stun(bytes(12), bytes(12)), ("127.0.0.1", port))
                asked = each.transport.ask_reflexive(server.address, timeout=WAIT)
                assert asked.result(WAIT) == ("127.0.0.1", port)
                answered += 1
        assert received.result(WAIT).data == bytes_of(payload)
        assert answered > 0
        wait_until(
            lambda: second.transport.stats()["engine_malformed"] > 0, "what nobody asked for"
        )
        assert first.connected == {1} and second.connected == {0}
