"""Members of a transport over real sockets: told, shown, at new addresses, and removed."""

from __future__ import annotations

import threading

import pytest

from comfy_cluster.errors import PeerLost
from comfy_cluster.transport.peer_info import PeerInfo
from comfy_cluster.transport.transport import Transport
from comfy_cluster.wire import MessageType
from tests.integration.clusters import configs
from tests.integration.transports import WAIT, Instance, Instances, key_of, wait_until

pytestmark = pytest.mark.integration

RESULT = MessageType.EXECUTION_RESULT


def test_peers_are_shown() -> None:
    with Instances(3) as instances:
        instances[0].transport.send_message(1, RESULT, b"x").result(WAIT)
        shown = instances[0].transport.peers()
        assert [peer.index for peer in shown] == [1, 2]
        assert [peer.address for peer in shown] == [
            tuple(address) for address in instances[0].config.udp_hostnames[1:]
        ]
        assert all(peer.is_connected and peer.boot_id for peer in shown)
        assert shown[0].bytes_sent > 0 and shown[0].bytes_received > 0
        assert shown[0].rtt is not None and 0 < shown[0].rtt < WAIT
        assert instances[0].transport.stats()["messages_sent"] == 1


def test_peers_may_be_asked_for_by_a_listener() -> None:
    config, _ = configs(2)
    instance = Instance(config)
    answers: list[object] = []
    instance.transport.add_message_listener(RESULT, lambda *_: None)
    instance.start()
    parts = instance.transport._parts
    assert parts is not None
    parts.control.post(lambda _: answers.append(instance.transport.peers()))
    wait_until(lambda: bool(answers), "an answer on the control thread")
    instance.transport.close()


def test_peers_may_be_asked_for_before_the_control_thread_knows_a_new_member() -> None:
    config, _ = configs(2)
    transport = Transport(config)
    transport.start()
    parts = transport._parts
    assert parts is not None
    is_busy, may_go_on = threading.Event(), threading.Event()

    def be_busy(_: float) -> None:
        is_busy.set()
        may_go_on.wait(WAIT)

    parts.control.post(be_busy)
    assert is_busy.wait(WAIT)
    answers: list[list[PeerInfo]] = []
    asker = threading.Thread(target=lambda: answers.append(transport.peers()))
    asker.start()
    wait_until(lambda: len(parts.control._commands) == 1, "the question")
    transport.add_member(1, ("127.0.0.1", config.direct_listen_port))
    may_go_on.set()
    asker.join(WAIT)
    assert [peer.address for peer in answers[0]] == [None]
    assert transport.peers()[0].address == ("127.0.0.1", config.direct_listen_port)
    assert transport.failure is None
    transport.close()


def test_question_that_fails_is_the_asker_s_and_ends_no_thread() -> None:
    with Instances(2) as (first, _):

        def fail() -> None:
            raise RuntimeError("a look that fails")

        with pytest.raises(RuntimeError, match="a look that fails"):
            first.transport._ask(fail)
        first.transport.send_message(1, RESULT, b"x").result(WAIT)
        assert first.transport.failure is None


def test_members_that_swap_addresses_do_not_end_the_control_thread() -> None:
    """What discovery reports while two containers come back at each other's addresses."""
    with Instances(3) as instances:
        first = instances[0]
        addresses = [(each.hostname, each.port) for each in first.config.udp_hostnames]
        for each in instances[1:]:
            each.transport.close()
        first.wait_for(lambda: not first.connected, "the loss of both")
        for _ in range(3):
            first.transport.add_member(1, addresses[2])
            first.transport.add_member(2, addresses[1])
            assert [each.address for each in first.transport.peers()] == [*addresses[:0:-1]]
            first.transport.add_member(2, addresses[2])
            first.transport.add_member(1, addresses[1])
        assert [each.address for each in first.transport.peers()] == addresses[1:]
        assert first.transport.failure is None


def test_removed_member_is_lost() -> None:
    with Instances(2) as (first, _):
        waiting = first.transport.receive_buffer(key_of(1), peer=1)
        first.transport.remove_member(1)
        with pytest.raises(PeerLost):
            waiting.result(WAIT)
        assert first.transport.peers()[0].address is None
