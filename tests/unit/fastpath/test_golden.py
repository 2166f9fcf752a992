"""The byte vectors of tests/golden, which docs/protocol.md prints, against both engines.

The vectors were written by tests/packets.py; each test says so again, so that neither can drift.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import packets

GOLDEN = Path(__file__).parents[2] / "golden"
SESSION = 0x11223344
PEER_SESSION = 0x55667788
PEER, STRANGER = ("10.0.0.2", 9998), ("10.9.9.9", 9998)
BUFFER_ID = 0x0001000000000007


def vectors(folder: str) -> list[Any]:
    names = sorted(path.stem for path in (GOLDEN / folder).glob("*.json"))
    return [pytest.param(folder, name, id=name) for name in names]


def load(folder: str, name: str) -> tuple[bytes, dict[str, Any]]:
    data = bytes.fromhex((GOLDEN / folder / f"{name}.hex").read_text())
    return data, json.loads((GOLDEN / folder / f"{name}.json").read_text())


def connected_engine(engine: ModuleType) -> tuple[Any, bytearray]:
    """An engine that expects one buffer of 100 bytes and has sent three chunks of another."""
    core = engine.PacketEngine()
    core.allow_address(PEER)
    core.connect_peer(
        1, PEER, local_session=SESSION, remote_session=PEER_SESSION, packet_size=1200, now=0.0
    )
    memory = bytearray(100)
    core.open_incoming(1, BUFFER_ID, memory, size=100, chunk_size=40)
    core.open_outgoing(1, 9, b"", bytes(range(100)), chunk_size=40)
    assert len(core.packets_to_send(0.0)) == 3
    return core, memory


@pytest.mark.parametrize(("folder", "name"), vectors("valid"))
def test_vector_is_what_the_tests_encoder_writes(folder: str, name: str) -> None:
    data, info = load(folder, name)
    kinds = {"HELLO": 0xC0, "MESSAGE": 0xC1, "CHUNK": 0xC2, "SACK": 0xC3}
    payload = bytes.fromhex(info.get("payload_hex", ""))
    if info["kind"] == "CHUNK":
        fields = [info[key] for key in ("buffer_id", "chunk_index", "total_chunks", "chunk_size")]
        payload = packets.chunk_header(*fields) + payload
    if info["kind"] == "SACK":
        options = {key: info[key] for key in ("ack_delay_us", "receive_window", "word_count")}
        payload = packets.sack_payload(set(info["received"]), **options)
    assert data == packets.packet(kinds[info["kind"]], info["session"], info["counter"], payload)


@pytest.mark.parametrize(("folder", "name"), vectors("valid"))
def test_header_is_packed_and_parsed(engine: ModuleType, folder: str, name: str) -> None:
    data, info = load(folder, name)
    kind = getattr(engine, f"KIND_{info['kind']}")
    assert engine.pack_header(kind, info["session"], info["counter"]) == data[:16]
    assert engine.parse_header(data) == (kind, info["session"], info["counter"])


@pytest.mark.parametrize(("folder", "name"), vectors("valid"))
def test_payload_is_packed_and_parsed(engine: ModuleType, folder: str, name: str) -> None:
    data, info = load(folder, name)
    payload = data[16:]
    if info["kind"] == "CHUNK":
        fields = tuple(
            info[key] for key in ("buffer_id", "chunk_index", "total_chunks", "chunk_size")
        )
        assert engine.pack_chunk_header(*fields) == payload[:20]
        assert engine.parse_chunk_header(payload) == fields
        assert payload[20:].hex() == info["payload_hex"]
    elif info["kind"] == "SACK":
        parsed = engine.parse_sack(payload)
        largest, ack_delay_us, receive_window, words = parsed
        assert engine.pack_sack(*parsed) == payload
        assert largest == max(info["received"])
        assert (ack_delay_us, receive_window) == (info["ack_delay_us"], info["receive_window"])
        assert len(words) == info["word_count"]
        assert packets.acked_counters(data) == set(info["received"])
    else:
        assert payload.hex() == info["payload_hex"]


@pytest.mark.parametrize(("folder", "name"), vectors("valid"))
def test_valid_vector_is_accepted(engine: ModuleType, folder: str, name: str) -> None:
    """A SACK must also speak of packets that were sent, so those go through `parse_sack` only."""
    data, info = load(folder, name)
    core, memory = connected_engine(engine)
    core.receive_packet(data, PEER, 0.5)
    is_foreign_sack = info["kind"] == "SACK" and max(info["received"]) >= 3
    assert core.stats() == dict.fromkeys(core.stats(), 0) | {"bad_sack": int(is_foreign_sack)}
    payload = bytes.fromhex(info.get("payload_hex", ""))
    if info["kind"] == "HELLO":
        assert core.take_events() == [(engine.EVENT_HELLO, PEER, payload)]
    if info["kind"] == "MESSAGE":
        assert core.take_events() == [(engine.EVENT_MESSAGE, 1, payload)]
    if info["kind"] == "CHUNK":
        start = 40 * info["chunk_index"]
        assert memory[start : start + len(payload)] == payload
        assert core.peer_stats(1)["chunks_received"] == 1


@pytest.mark.parametrize(("folder", "name"), vectors("invalid"))
def test_invalid_vector_is_counted_and_dropped(engine: ModuleType, folder: str, name: str) -> None:
    data, info = load(folder, name)
    core, memory = connected_engine(engine)
    if "before_hex" in info:
        core.receive_packet(bytes.fromhex(info["before_hex"]), PEER, 0.4)
    core.take_events()
    before = core.peer_stats(1)
    core.receive_packet(data, STRANGER if info.get("source") == "stranger" else PEER, 0.5)
    assert core.stats() == dict.fromkeys(core.stats(), 0) | {info["counter"]: 1}
    assert core.take_events() == []
    assert core.peer_stats(1) == before
    assert memory == bytes(100)


def test_worked_exchange_is_what_the_engines_send(engine: ModuleType) -> None:
    exchange = json.loads((GOLDEN / "exchange.json").read_text())
    sessions = {"A": exchange["session_of_a"], "B": exchange["session_of_b"]}
    addresses = {"A": ("10.0.0.1", 9998), "B": ("10.0.0.2", 9998)}
    cores = {name: engine.PacketEngine() for name in "AB"}
    payload = bytes.fromhex(exchange["payload_hex"])
    memory = bytearray(len(payload))
    for step in exchange["steps"]:
        sender = step["sender"]
        target = "BA"["AB".index(sender)]
        peer = "BA".index(target)
        if step["kind"] == "HELLO":
            cores[target].allow_address(addresses[sender])
            cores[sender].send_hello(addresses[target], bytes.fromhex(step["hex"])[16:])
            cores[sender].connect_peer(
                peer,
                addresses[target],
                local_session=sessions[sender],
                remote_session=sessions[target],
                packet_size=1200,
                now=step["at"],
            )
        if step["kind"] == "MESSAGE":
            cores[sender].send_message(peer, bytes.fromhex(step["hex"])[16:])
        if step["kind"] == "CHUNK":
            options = {"chunk_size": engine.chunk_size_for(1200)}
            buffer_id, split = exchange["buffer_id"], exchange["prefix_size"]
            cores["B"].open_incoming(1, buffer_id, memory, size=len(payload), **options)
            cores["A"].open_outgoing(0, buffer_id, payload[:split], payload[split:], **options)
        sent = cores[sender].packets_to_send(step["at"])
        assert [(address, data.hex()) for address, data in sent] == [
            (addresses[target], step["hex"])
        ], step["what"]
        cores[target].receive_packet(sent[0][1], addresses[sender], step["at"] + 0.01)
    assert memory == payload
    # The SACK is sent when the chunk arrives, so no delay is reported; A learns that all is there.
    assert cores["A"].take_events()[-1] == (engine.EVENT_OUTGOING_ACKED, 0, exchange["buffer_id"])
