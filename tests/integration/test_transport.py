"""Transports in one process over real sockets: payloads, messages, failures, and a clean end."""

from __future__ import annotations

import dataclasses
import gc
import os
import random
import signal
import socket
import time
from types import ModuleType
from typing import Any

import pytest

from comfy_cluster.codec.payload import EncodedPayload
from comfy_cluster.config import SharedMemory
from comfy_cluster.errors import (
    ConfigError,
    CorruptPayload,
    LocalProtocolError,
    PeerLost,
    TransferCancelled,
    TransferTimeout,
)
from comfy_cluster.transport.handle import Handle
from comfy_cluster.transport.memory import ReceivedBuffer
from comfy_cluster.transport.transport import Transport
from comfy_cluster.wire import MessageType
from tests.integration.clusters import configs
from tests.integration.transports import (
    FANIN,
    WAIT,
    Instance,
    Instances,
    bytes_of,
    key_of,
    our_threads,
    payload_of,
    wait_until,
)

pytestmark = pytest.mark.integration

RESULT = MessageType.EXECUTION_RESULT
SIZES = [0, 1, 63, 64, 900, 1000, 10_000, 1_000_003, 9_000_001]


def send(
    sender: Instance, receiver: Instance, payload: EncodedPayload, number: int = 0
) -> tuple[Handle[None], Handle[ReceivedBuffer]]:
    key = key_of(sender.index, number)
    received = receiver.transport.receive_buffer(key, peer=sender.index)
    sent = sender.transport.send_buffer(receiver.index, key, payload, message_type=FANIN)
    return sent, received


# Payloads


def test_payloads_of_all_sizes_arrive_bit_for_bit(
    engine: ModuleType, carrier: dict[str, Any], rng: random.Random
) -> None:
    payloads = [payload_of(rng, size) for size in SIZES]
    with Instances(2, engine, **carrier) as (first, second):
        handles = [send(first, second, payload, n) for n, payload in enumerate(payloads)]
        for payload, (sent, received) in zip(payloads, handles, strict=True):
            buffer = received.result(WAIT)
            assert buffer.data == bytes_of(payload)
            assert not buffer.data.readonly
            sent.result(WAIT)


def test_everybody_sends_to_everybody_at_once(
    engine: ModuleType, carrier: dict[str, Any], rng: random.Random
) -> None:
    with Instances(4, engine, **carrier) as instances:
        payloads = {
            (a.index, b.index, n): payload_of(rng, rng.randrange(300_000))
            for a in instances
            for b in instances
            if a is not b
            for n in range(3)
        }
        received = {
            (a, b, n): instances[b].transport.receive_buffer(key_of(a, 10 * n + b), peer=a)
            for a, b, n in payloads
        }
        sent = [
            instances[a].transport.send_buffer(
                b, key_of(a, 10 * n + b), payload, message_type=FANIN
            )
            for (a, b, n), payload in payloads.items()
        ]
        for handle in sent:
            handle.result(WAIT)
        for place, payload in payloads.items():
            assert received[place].result(WAIT).data == bytes_of(payload)


def test_payload_may_come_before_anybody_asks(carrier: dict[str, Any], rng: random.Random) -> None:
    payload = payload_of(rng, 500_000)
    with Instances(2, **carrier) as (first, second):
        key = key_of(0)
        first.transport.send_buffer(1, key, payload, message_type=FANIN).result(WAIT)
        buffer = second.transport.receive_buffer(key, peer=0).result(WAIT)
        assert buffer.data == bytes_of(payload)


def test_more_than_the_budget_goes_through_bit_by_bit(
    carrier: dict[str, Any], rng: random.Random
) -> None:
    """Memory comes back when a received buffer is released, or is garbage."""
    payload = payload_of(rng, 1_000_000)
    with Instances(2, memory_budget=4_000_000, **carrier) as (first, second):
        handles = [send(first, second, payload, n) for n in range(10)]
        while handles:
            sent, received = handles.pop(0)
            buffer = received.result(WAIT)
            assert buffer.data == bytes_of(payload)
            if len(handles) % 2:
                buffer.release()
            sent.result(WAIT)
            del buffer, received


def test_received_buffers_bound_what_arrives(carrier: dict[str, Any], rng: random.Random) -> None:
    payload = payload_of(rng, 1_000_000)
    with Instances(2, memory_budget=4_000_000, **carrier) as (first, second):
        handles = [send(first, second, payload, n) for n in range(3)]
        held = [received.result(WAIT) for _, received in handles[:2]]
        with pytest.raises(TransferTimeout):
            handles[2][1].result(0.2)
        held[0].release()
        assert handles[2][1].result(WAIT).data == bytes_of(payload)


def test_damaged_payload_is_sent_again_and_then_fails(
    monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    payload = payload_of(rng, 200_000)
    with Instances(2, shared_memory=SharedMemory.OFF) as (first, second):
        parts = first.transport._parts
        assert parts is not None
        monkeypatch.setattr(
            parts.digests, "digest", lambda _, on_digest: on_digest(b"not the digest !")
        )
        sent, received = send(first, second, payload)
        with pytest.raises(CorruptPayload):
            received.result(WAIT)
        with pytest.raises(CorruptPayload):
            sent.result(WAIT)
        assert second.transport.stats()["buffers_rejected"] == 2
        monkeypatch.undo()
        sent, received = send(first, second, payload, 1)
        assert received.result(WAIT).data == bytes_of(payload)


# Cancelling and jobs


def test_cancelled_send_fails_the_receiver(carrier: dict[str, Any], rng: random.Random) -> None:
    payload = payload_of(rng, 5_000_000)
    with Instances(2, memory_budget=1_000_000, **carrier) as (first, second):
        blocking, _ = send(first, second, payload, 0)
        held = second.transport.receive_buffer(key_of(0, 1), peer=0)
        waiting = first.transport.send_buffer(1, key_of(0, 1), payload, message_type=FANIN)
        blocking.result(WAIT)  # it is larger than the budget, so that the other one waits
        assert waiting.cancel()
        with pytest.raises(TransferCancelled):
            waiting.result(WAIT)
        with pytest.raises(TransferCancelled):
            held.result(WAIT)


def test_cancelled_receive_can_be_asked_for_again(
    carrier: dict[str, Any], rng: random.Random
) -> None:
    payload = payload_of(rng, 100_000)
    with Instances(2, **carrier) as (first, second):
        assert second.transport.receive_buffer(key_of(0), peer=0).cancel()
        sent, received = send(first, second, payload)
        assert received.result(WAIT).data == bytes_of(payload)
        sent.result(WAIT)


def test_only_one_may_wait_for_a_key() -> None:
    with Instances(2) as (_, second):
        waiting = second.transport.receive_buffer(key_of(0), peer=0)
        with pytest.raises(LocalProtocolError, match="waits for"):
            second.transport.receive_buffer(key_of(0), peer=0).result(WAIT)
        assert not waiting.done()


def test_end_of_a_job_ends_its_transfers_and_no_others(rng: random.Random) -> None:
    with Instances(2) as (first, second):
        ended = second.transport.receive_buffer(key_of(0, job="ended"), peer=0)
        other = second.transport.receive_buffer(key_of(0, job="other"), peer=0)
        second.transport.end_job("ended")
        with pytest.raises(TransferCancelled):
            ended.result(WAIT)
        key = key_of(0, 1, job="ended")
        for _ in range(2):
            late = first.transport.send_buffer(1, key, payload_of(rng, 10), message_type=FANIN)
            with pytest.raises(TransferCancelled):
                late.result(WAIT)
            # Asked for by a thread that learns only now that the job has ended.
            second.transport.receive_buffer(
                key_of(0, 2, job="ended"), peer=0, before_claim=Handle.cancel
            )
        payload = payload_of(rng, 10)
        first.transport.send_buffer(1, key_of(0, job="other"), payload, message_type=FANIN)
        assert other.result(WAIT).data == bytes_of(payload)


# Messages


def test_messages_arrive_once_and_in_any_size(engine: ModuleType, rng: random.Random) -> None:
    texts = [rng.randbytes(size) for size in (0, 1, 1000, 5000, 300_000)] * 3
    with Instances(2, engine) as (first, second):
        handles = [first.transport.send_message(1, RESULT, text) for text in texts]
        for handle in handles:
            handle.result(WAIT)
        second.wait_for(lambda: len(second.messages) == len(texts))
        assert sorted(second.messages) == sorted((0, text) for text in texts)


def test_broadcast_message_reaches_all_peers() -> None:
    with Instances(3) as instances:
        handles = instances[1].transport.broadcast_message(RESULT, b"news")
        assert sorted(handles) == [0, 2]
        for handle in handles.values():
            handle.result(WAIT)
        for peer in (0, 2):
            instances[peer].wait_for(lambda peer=peer: instances[peer].messages == [(1, b"news")])  # type: ignore[misc]


def test_message_without_ack_is_done_at_once() -> None:
    with Instances(2) as (first, second):
        first.transport.send_message(1, RESULT, b"x", require_ack=False).result(WAIT)
        second.wait_for(lambda: second.messages == [(0, b"x")])


def test_message_to_a_peer_that_is_not_there_times_out() -> None:
    config, _ = configs(2, ack_timeout=0.1, max_retries=1)
    instance = Instance(config)
    instance.start()
    try:
        with pytest.raises(TransferTimeout, match=r"^ACK timeout for message .* instance 1"):
            instance.transport.send_message(1, RESULT, b"x").result(WAIT)
        with pytest.raises(PeerLost, match="instance 1"):
            instance.transport.receive_buffer(key_of(1), peer=1).result(WAIT)
    finally:
        instance.transport.close()


def test_wrong_use_is_told_at_once(rng: random.Random) -> None:
    payload = payload_of(rng, 10)
    with Instances(2) as (first, _):
        transport = first.transport
        with pytest.raises(LocalProtocolError, match="itself"):
            transport.send_message(0, RESULT, b"")
        with pytest.raises(LocalProtocolError, match="itself"):
            transport.send_buffer(0, key_of(0), payload, message_type=FANIN)
        with pytest.raises(LocalProtocolError, match="no instance 2"):
            transport.send_message(2, RESULT, b"")
        with pytest.raises(LocalProtocolError, match="cannot come from instance 1"):
            transport.receive_buffer(key_of(0), peer=1)
        with pytest.raises(LocalProtocolError, match="cannot send"):
            transport.send_buffer(1, key_of(1), payload, message_type=FANIN)
        with pytest.raises(LocalProtocolError, match="ACK"):
            transport.send_message(1, MessageType.ACK, b"").result(WAIT)
        with pytest.raises(LocalProtocolError, match="no instance 7"):
            transport.add_member(7, ("127.0.0.1", 1))
        with pytest.raises(ConfigError, match="IPv6"):
            transport.add_member(1, ("::1", 1))


def test_use_before_start_is_told(rng: random.Random) -> None:
    transport = Transport(configs(2)[0])
    assert our_threads() == []
    with pytest.raises(LocalProtocolError, match="start"):
        transport.send_message(1, RESULT, b"")
    assert (transport.stats(), [peer.is_connected for peer in transport.peers()]) == ({}, [False])
    transport.close()


# Peers


def test_handles_are_failed_although_another_thread_empties_the_set_meanwhile() -> None:
    class Emptied(set[Handle[None]]):
        """Was not empty when somebody looked, and is now."""

        def __len__(self) -> int:
            return 1

    transport = Transport(configs(2)[0])
    transport.start()
    transport._handles = Emptied()
    transport.close()
    assert our_threads() == []


def test_silent_peer_is_lost_and_its_transfers_fail(rng: random.Random) -> None:
    with Instances(3, heartbeat_interval=0.05, instance_timeout=0.4) as instances:
        first, second, third = instances
        waiting = first.transport.receive_buffer(key_of(1), peer=1)
        other = first.transport.receive_buffer(key_of(2), peer=2)
        parts = second.transport._parts
        assert parts is not None
        parts.engine_threads.stop()  # what a power cut looks like from outside
        with pytest.raises(PeerLost, match="instance 1"):
            waiting.result(WAIT)
        first.wait_for(lambda: first.connected == {2})
        payload = payload_of(rng, 10_000)
        third.transport.send_buffer(0, key_of(2), payload, message_type=FANIN)
        assert other.result(WAIT).data == bytes_of(payload)


def test_closed_peer_says_goodbye_and_may_come_back(rng: random.Random) -> None:
    with Instances(2, instance_timeout=20.0) as (first, second):
        waiting = first.transport.receive_buffer(key_of(1), peer=1)
        second.transport.close()
        with pytest.raises(PeerLost, match="left"):  # long before the time limit of silence
            waiting.result(WAIT)
        again = Instance(second.config)
        again.start()
        again.wait_until_connected(1)
        first.wait_until_connected(1)
        sent, received = send(again, first, payload_of(rng, 10_000), 1)
        received.result(WAIT)
        sent.result(WAIT)
        again.transport.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 on this machine")
def test_ipv6_and_ipv4_peers_in_one_cluster(rng: random.Random) -> None:
    """One instance listens on `::`; it is known to the others by an IPv4 address."""
    settings = configs(2)
    first = Instance(dataclasses.replace(settings[0], listen_address="::"))
    second = Instance(settings[1])
    for instance in (first, second):
        instance.start()
    for instance in (first, second):
        instance.wait_until_connected(1)
    payload = payload_of(rng, 100_000)
    sent, received = send(first, second, payload)
    assert received.result(WAIT).data == bytes_of(payload)
    sent.result(WAIT)
    for instance in (first, second):
        instance.transport.close()


# Life


def test_port_in_use_is_told_and_leaves_nothing_behind() -> None:
    config, _ = configs(2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", config.direct_listen_port))
        transport = Transport(config)
        with pytest.raises(ConfigError, match=r"^Failed to bind UDP socket on 0\.0\.0\.0:"):
            transport.start()
        transport.close()
    assert our_threads() == []


def test_close_ends_threads_and_descriptors(engine: ModuleType, rng: random.Random) -> None:
    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    with Instances(2, engine):  # once, so that whatever opens files for good has done so
        pass
    before = descriptors()
    for _ in range(3):
        with Instances(2, engine) as (first, second):
            send(first, second, payload_of(rng, 300_000))[1].result(WAIT)
        del first, second  # the compiled engine closes its wake-ups when it goes
        assert our_threads() == []
    assert descriptors() == before


def test_close_with_transfers_in_flight_is_quick_and_fails_them(
    engine: ModuleType, rng: random.Random
) -> None:
    payload = payload_of(rng, 30_000_000)
    with Instances(2, engine) as (first, second):
        pairs = [send(first, second, payload, n) for n in range(4)]
        message = first.transport.send_message(1, RESULT, bytes(2_000_000))
        never = first.transport.receive_buffer(key_of(1, 99), peer=1)
        started = time.monotonic()
        first.transport.close()
        first.transport.close()
        assert time.monotonic() - started < 2.0  # the promise of `close`, not a measurement
        assert never.done() and message.done()
        for sent, _ in pairs:
            assert sent.done()
        assert isinstance(never.exception(), TransferCancelled)
        for _, received in pairs:
            error = received.exception(WAIT)
            assert error is None or isinstance(error, (PeerLost, TransferCancelled))
        with pytest.raises(TransferCancelled):
            first.transport.send_message(1, RESULT, b"").result(WAIT)


def test_listener_may_close(rng: random.Random) -> None:
    with Instances(2) as (first, second):
        second.transport.add_message_listener(RESULT, lambda *_: second.transport.close())
        first.transport.send_message(1, RESULT, b"close", require_ack=False)
        first.wait_for(lambda: first.connected == set())
    wait_until(lambda: our_threads() == [], "the end of all threads")


@pytest.mark.parametrize("thread", ["control", "receive"])
def test_thread_that_dies_fails_every_handle_and_the_peers_notice(
    thread: str, caplog: pytest.LogCaptureFixture
) -> None:
    from comfy_cluster import _fastpath_py

    times = {"heartbeat_interval": 0.05, "instance_timeout": 0.4}
    with Instances(2, _fastpath_py, **times) as (first, second):
        waiting = first.transport.receive_buffer(key_of(1), peer=1)
        bug = RuntimeError("a bug")

        def fail(*_: object) -> None:
            raise bug

        parts = first.transport._parts
        assert parts is not None
        if thread == "control":
            parts.control.post(fail)
        else:
            parts.engine.receive_packet = fail
        assert waiting.exception(WAIT) is bug
        assert first.transport.failure is bug
        assert first.transport.ended.exception(0) is bug
        assert not second.transport.ended.done()
        assert first.transport.send_message(1, RESULT, b"").exception(WAIT) is bug
        assert first.transport.peers()[0].index == 1
        second.wait_for(lambda: second.connected == set(), "the loss of a peer that is broken")
    assert isinstance(second.transport.ended.exception(WAIT), TransferCancelled)
    assert f"comfy-cluster-{thread}" in caplog.text
    assert our_threads() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_of_a_fork_leaves_the_parent_alone(rng: random.Random) -> None:
    with Instances(2) as (first, second):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                first.transport.close()
                first.transport.send_message(1, RESULT, b"from the child")
            except LocalProtocolError:
                status = 0
            finally:
                os._exit(status)
        deadline = time.monotonic() + WAIT
        while (result := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.01)
        assert result[1] == 0
        payload = payload_of(rng, 300_000)
        sent, received = send(first, second, payload)
        assert received.result(WAIT).data == bytes_of(payload)
        sent.result(WAIT)
        assert second.messages == []
