"""The UDP responder on loopback: real sockets, and two clients that others wrote."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from stun_server.binding.messages import (
    LARGEST_MESSAGE,
    UNKNOWN_ATTRIBUTE,
    Address,
    AttributeType,
    Message,
    encode_binding_error,
    encode_binding_request,
    encode_binding_success,
    parse_message,
)
from stun_server.binding.responder import BindingResponder, BindingStats, CannotListen, answer_to
from tests.stun_server.stun_encoder import ID, INDICATION, attribute, message, with_fingerprint

pytestmark = pytest.mark.integration

TIMEOUT = 10.0  # seconds; a busy machine
REQUEST = encode_binding_request(ID)
STUNCLIENT = shutil.which("turnutils_stunclient")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine's loopback")
needs_shared_ports = pytest.mark.skipif(
    not hasattr(socket, "SO_REUSEPORT"), reason="no two sockets can share a port here"
)
LOOPBACKS = ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)]


@pytest.fixture
def start() -> Iterator[Callable[..., BindingResponder]]:
    """Starts responders on loopback, at any port, and closes them."""
    with contextlib.ExitStack() as stack:

        def start(**arguments: object) -> BindingResponder:
            arguments = {"port": 0, "addresses": ("127.0.0.1",)} | arguments
            responder = BindingResponder(**arguments)  # type: ignore[arg-type]
            stack.callback(responder.close)
            responder.start()
            return responder

        yield start


@contextlib.contextmanager
def client(responder: BindingResponder, *, hostname: str | None = None) -> Iterator[socket.socket]:
    """Connected, so that it hears nobody else, and nothing from another address."""
    address = (hostname or responder.bound_addresses[0][0], responder.bound_addresses[0][1])
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect(address)
        yield sock


def ask(sock: socket.socket, request: bytes = REQUEST) -> Message:
    sock.send(request)
    return parse_message(sock.recv(2048))


def own_address(sock: socket.socket) -> Address:
    hostname, port = sock.getsockname()[:2]
    return hostname, port


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("hostname", LOOPBACKS)
def test_a_client_learns_its_own_address(
    start: Callable[..., BindingResponder], hostname: str
) -> None:
    responder = start(addresses=(hostname,))
    with client(responder) as sock:
        answer = ask(sock)
        assert answer.is_response_to(ID)
        assert answer.xor_mapped_address == own_address(sock)
        assert answer.software is None
    wait_for(lambda: responder.stats() == BindingStats(requests=1, answers=1))


@needs_ipv6
def test_both_protocols_have_the_same_port(start: Callable[..., BindingResponder]) -> None:
    responder = start(addresses=("0.0.0.0", "::"))
    (_, ipv4_port), (_, ipv6_port) = responder.bound_addresses
    assert ipv4_port == ipv6_port
    for hostname in ("127.0.0.1", "::1"):
        with client(responder, hostname=hostname) as sock:
            assert ask(sock).reflexive_address == own_address(sock)


@pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8 on loopback")
def test_the_address_that_was_asked_answers(start: Callable[..., BindingResponder]) -> None:
    """The way back to 127.0.0.1 begins at 127.0.0.1; the client would not hear that."""
    responder = start(addresses=("0.0.0.0",))
    for hostname in ("127.0.0.2", "127.9.9.9"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(TIMEOUT)
            sock.bind(("127.0.0.1", 0))
            sock.connect((hostname, responder.bound_addresses[0][1]))
            assert ask(sock).reflexive_address == own_address(sock)


def test_fingerprint_answers_fingerprint(start: Callable[..., BindingResponder]) -> None:
    with client(start()) as sock:
        request = encode_binding_request(ID, software="someone", fingerprint=True)
        assert ask(sock, request).first(AttributeType.FINGERPRINT) is not None
        assert ask(sock).first(AttributeType.FINGERPRINT) is None


def test_what_is_no_binding_request_gets_no_answer(
    start: Callable[..., BindingResponder],
) -> None:
    malformed = [
        b"",
        b"hello",
        b"\xff" * 300,
        REQUEST[:-1],
        REQUEST + b"\0\0\0\0",
        bytes(8) + REQUEST,
        message(0x0001, attribute(0x8028, b"")),  # FINGERPRINT
        bytes(LARGEST_MESSAGE + 1),
        bytes(60_000),
    ]
    success = encode_binding_success(ID, ("192.0.2.1", 9))
    error = encode_binding_error(ID, UNKNOWN_ATTRIBUTE, unknown_attributes=[3])
    allocate = message(0x0003)  # a request of TURN
    ignored = [message(INDICATION), allocate, success, error]
    responder = start()
    with client(responder) as sock:
        for packet in malformed + ignored:
            sock.send(packet)
        last = encode_binding_request(b"the last one")
        assert ask(sock, last).is_response_to(b"the last one")
    expected = BindingStats(requests=1, answers=1, malformed=len(malformed), ignored=len(ignored))
    wait_for(lambda: responder.stats() == expected)


def test_unknown_attributes_are_refused_by_name(start: Callable[..., BindingResponder]) -> None:
    change_request = attribute(0x0003, b"\0\0\0\6")  # of RFC 5780
    request = message(0x0001, change_request, attribute(0x0024, b""))
    responder = start()
    with client(responder) as sock:
        answer = ask(sock, request)
    assert answer.is_response_to(ID)
    assert (answer.error_code, answer.reason) == (UNKNOWN_ATTRIBUTE, "Unknown Attribute")
    assert answer.rejected_attributes == (0x0003, 0x0024)
    wait_for(lambda: responder.stats() == BindingStats(requests=1, answers=1))


@pytest.mark.parametrize("source", [("255.255.255.255", 65535), ("ffff::1", 1)])
@pytest.mark.parametrize("unknown_count", [0, 1, 2, 5, 63])
def test_no_answer_is_much_larger_than_its_request(source: Address, unknown_count: int) -> None:
    bare = message(0x0001, *(attribute(0x7000 + each, b"") for each in range(unknown_count)))
    for request in (bare, with_fingerprint(bare)):
        answer = answer_to(parse_message(request), source)
        assert len(answer) <= 2 * len(request) + 4
        assert parse_message(answer).is_response_to(ID)


# The rate limit


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_who_asks_too_often_is_not_answered_until_later(
    start: Callable[..., BindingResponder],
) -> None:
    clock = Clock()
    responder = start(rate=2.0, burst=3.0, clock=clock)
    with client(responder) as sock:
        for _ in range(3):
            ask(sock)
        for _ in range(4):
            sock.send(REQUEST)
        wait_for(lambda: responder.stats().limited == 4)
        clock.now += 0.5  # one token
        sock.send(REQUEST)
        sock.send(encode_binding_request(b"one too many"))
        assert parse_message(sock.recv(2048)).is_response_to(ID)
        wait_for(lambda: responder.stats().limited == 5)
        clock.now += 1e6
        for number in range(3):
            transaction_id = bytes([number]) * 12
            assert ask(sock, encode_binding_request(transaction_id)).is_response_to(transaction_id)
        sock.send(REQUEST)
        wait_for(lambda: responder.stats().limited == 6)
    assert responder.stats() == BindingStats(requests=7, answers=7, limited=6)


@pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8 on loopback")
def test_another_network_has_its_own_limit(start: Callable[..., BindingResponder]) -> None:
    responder = start(addresses=("0.0.0.0",), rate=1.0, burst=1.0, clock=Clock())
    with contextlib.ExitStack() as stack:
        socks = []
        for hostname in ("127.0.0.1", "127.0.0.9", "127.0.1.1"):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.settimeout(TIMEOUT)
            sock.bind((hostname, 0))
            sock.connect(("127.0.0.1", responder.bound_addresses[0][1]))
            socks.append(sock)
        ask(socks[0])
        socks[1].send(REQUEST)
        wait_for(lambda: responder.stats().limited == 1)
        assert ask(socks[2]).reflexive_address == own_address(socks[2])


def test_other_protocols_take_nothing_from_the_limit(
    start: Callable[..., BindingResponder],
) -> None:
    responder = start(rate=1.0, burst=1.0, clock=Clock())
    with client(responder) as sock:
        for _ in range(5):
            sock.send(b"\xc0 no STUN at all, but as long as a STUN header")
        assert ask(sock).is_response_to(ID)


# Ports and lives


@needs_shared_ports
def test_two_responders_share_a_port(start: Callable[..., BindingResponder]) -> None:
    """As those of two workers do: the kernel sends each client to one of them."""
    first = start()
    port = first.bound_addresses[0][1]
    second = start(port=port)
    count = 0
    while not (first.stats().requests and second.stats().requests):
        count += 1
        assert count < 200
        with client(first) as sock:
            assert ask(sock).reflexive_address == own_address(sock)
    first.close()
    with client(second) as sock:
        ask(sock)


@needs_shared_ports
def test_a_closed_responder_frees_its_port_at_once(start: Callable[..., BindingResponder]) -> None:
    responder = start()
    port = responder.bound_addresses[0][1]
    with client(responder) as sock:
        ask(sock)
        began = time.monotonic()
        responder.close()
        responder.close()
        assert time.monotonic() - began < 0.5
    assert "stun-binding" not in {thread.name for thread in threading.enumerate()}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", port))  # without SO_REUSEPORT


def test_it_is_started_once() -> None:
    responder = BindingResponder(port=0, addresses=("127.0.0.1",))
    assert responder.bound_addresses == ()
    responder.close()
    with pytest.raises(RuntimeError, match="started once"):
        responder.start()
    responder = BindingResponder(port=0, addresses=("127.0.0.1",))
    responder.start()
    with pytest.raises(RuntimeError, match="started once"):
        responder.start()
    responder.close()


def test_a_taken_port_is_told_with_what_to_do() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        responder = BindingResponder(port=port, addresses=("127.0.0.1",))
        with pytest.raises(CannotListen) as caught:
            responder.start()
        responder.close()
    assert f"at UDP 127.0.0.1:{port}: " in str(caught.value)
    assert "another program has that port: end it, or choose another port" in str(caught.value)


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("192.0.2.77", r"UDP 192\.0\.2\.77:\d+: .*; choose an address of this machine"),
        ("no address", r"UDP no address:\d+: .*; choose another address or port"),
        pytest.param("2001:db8::77", r"UDP \[2001:db8::77\]:\d+: .*; choose", marks=needs_ipv6),
    ],
)
def test_an_address_of_another_machine_is_refused(address: str, advice: str) -> None:
    with pytest.raises(CannotListen, match=advice):
        BindingResponder(port=0, addresses=("127.0.0.1", address)).start()


def test_ipv6_may_be_missing_but_not_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "IPV6_V6ONLY", raising=False)
    responder = BindingResponder(port=0)
    responder.start()
    assert [address for address, _ in responder.bound_addresses] == ["0.0.0.0"]
    responder.close()
    with pytest.raises(CannotListen, match="no address to listen on"):
        BindingResponder(port=0, addresses=("::",)).start()


def test_without_shared_ports_one_responder_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_REUSEPORT", raising=False)
    first = BindingResponder(port=0, addresses=("127.0.0.1",))
    first.start()
    second = BindingResponder(port=first.bound_addresses[0][1], addresses=("127.0.0.1",))
    with pytest.raises(CannotListen, match="only one worker process can have it"):
        second.start()
    with client(first) as sock:
        assert ask(sock).reflexive_address == own_address(sock)
    first.close()


def test_a_fault_costs_one_answer_and_not_the_thread(
    start: Callable[..., BindingResponder], caplog: pytest.LogCaptureFixture
) -> None:
    faults = 3

    def clock() -> float:
        nonlocal faults
        faults -= 1
        if faults >= 0:
            raise ZeroDivisionError("a clock that fails")
        return 0.0

    responder = start(clock=clock)
    with client(responder) as sock:
        for _ in range(3):
            sock.send(REQUEST)
        assert ask(sock).is_response_to(ID)
    wait_for(lambda: responder.stats() == BindingStats(requests=1, answers=1, errors=3))
    told = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert told == ["! cannot answer a STUN packet: a clock that fails"]


def test_making_one_opens_nothing() -> None:
    """So that it can be made before the fork, and started behind it."""
    before = threading.active_count()
    responder = BindingResponder(port=1, addresses=("no address",))
    assert threading.active_count() == before
    responder.close()


# Clients of others


@pytest.mark.parametrize("hostname", LOOPBACKS)
def test_coturns_client_learns_its_address(
    start: Callable[..., BindingResponder], hostname: str
) -> None:
    if STUNCLIENT is None:
        pytest.skip("turnutils_stunclient is not installed (the package coturn)")
    responder = start(addresses=(hostname,))
    port = responder.bound_addresses[0][1]
    command = [STUNCLIENT, "-L", hostname, "-p", str(port), hostname]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    output = done.stdout + done.stderr
    assert "UDP reflexive addr: " in output, output
    told = output.split("UDP reflexive addr: ")[1].split()[0]
    assert told.rpartition(":")[0].strip("[]") == hostname
    assert responder.stats().requests >= 1
    assert responder.stats().malformed == 0


@pytest.mark.parametrize("hostname", LOOPBACKS)
def test_aioice_learns_its_address(start: Callable[..., BindingResponder], hostname: str) -> None:
    if importlib.util.find_spec("aioice") is None:
        pytest.skip("aioice is not installed (the extra `test`)")
    responder = start(addresses=(hostname,))
    found, own = asyncio.run(_ask_by_aioice(responder.bound_addresses[0], add_unknown=False))
    assert found == own
    refused, _ = asyncio.run(_ask_by_aioice(responder.bound_addresses[0], add_unknown=True))
    assert refused == (UNKNOWN_ATTRIBUTE, "Unknown Attribute")


async def _ask_by_aioice(server: Address, *, add_unknown: bool) -> tuple[object, Address]:
    """Its XOR-MAPPED-ADDRESS or ERROR-CODE, and the address of its socket."""
    from aioice import Connection, stun
    from aioice.ice import StunProtocol

    connection = Connection(ice_controlling=True)
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: StunProtocol(connection), local_addr=(server[0], 0)
    )
    request = stun.Message(message_method=stun.Method.BINDING, message_class=stun.Class.REQUEST)
    if add_unknown:
        request.attributes["PRIORITY"] = 1
    request.add_fingerprint()
    try:
        response, _ = await protocol.request(request, server)
        found: object = response.attributes["XOR-MAPPED-ADDRESS"]
    except stun.TransactionFailed as error:
        found = error.response.attributes["ERROR-CODE"]
    hostname, port = transport.get_extra_info("sockname")[:2]
    await protocol.close()
    return found, (hostname, port)
