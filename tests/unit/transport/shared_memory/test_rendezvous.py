"""Who shares memory with whom: the proof over real Unix sockets, and who must not pass it."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable, Iterator

import pytest

from comfy_cluster.protocol import PeerProof
from comfy_cluster.transport.shared_memory import records, rendezvous
from comfy_cluster.transport.shared_memory.link import Link
from comfy_cluster.transport.shared_memory.proof import Tags, name_of
from comfy_cluster.transport.shared_memory.records import Accept, Connect, Dropped
from comfy_cluster.transport.shared_memory.rendezvous import PROOF_TIMEOUT, Rendezvous
from comfy_cluster.transport.shared_memory.stats import SharedMemoryStats

LATE = PROOF_TIMEOUT + 1.0


class Side:
    """One instance's rendezvous."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.boot_id = int.from_bytes(os.urandom(8), "big") | 1
        self.links: dict[int, Link] = {}
        self.stats = SharedMemoryStats()
        self.rendezvous = Rendezvous(
            index, self.boot_id, stats=self.stats, on_link=self.links.__setitem__
        )

    def turn(self, now: float = 0.0) -> None:
        """One round of the control thread, of all that can be read at this moment."""
        self.rendezvous.accept(now)
        for link in list(self.rendezvous.links()):
            if select.select([link], [], [], 0)[0]:
                self.rendezvous.handle(link)
        self.rendezvous.handle_timers(now)

    def connect(self, other: Side, sessions: tuple[int, int] = (1, 2), now: float = 0.0) -> None:
        """The UDP connection to the other side is there: `sessions` are its and the other's."""
        mine, others = sessions if self.index < other.index else sessions[::-1]
        proof = PeerProof(other.boot_id, local_session=mine, remote_session=others)
        self.rendezvous.connect_peer(other.index, proof, now)

    def call(self) -> Link:
        """A stranger's connection."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(name_of(self.boot_id))
        return Link(sock)

    def close(self) -> None:
        for link in self.links.values():
            link.close()
        self.rendezvous.close()


@pytest.fixture
def leader() -> Iterator[Side]:
    side = Side(0)
    yield side
    side.close()


@pytest.fixture
def follower() -> Iterator[Side]:
    side = Side(1)
    yield side
    side.close()


def turns(*sides: Side, now: float = 0.0) -> None:
    for _ in range(4):
        for side in sides:
            side.turn(now)


def refusals(side: Side) -> dict[str, int]:
    counted = {name: getattr(side.stats, name) for name in side.stats.__slots__}
    return {name: n for name, n in counted.items() if name.startswith("refused") and n}


def become_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)


def is_closed(link: Link) -> bool:
    try:
        return link.receive()[1] is not None
    finally:
        link.close()


@pytest.mark.parametrize("is_leader_first", [True, False])
def test_two_peers_find_each_other(leader: Side, follower: Side, is_leader_first: bool) -> None:
    """The follower may prove itself before the leader has the UDP connection."""
    if is_leader_first:
        leader.connect(follower)
    follower.connect(leader)
    turns(leader, follower)
    if not is_leader_first:
        assert leader.links == {} == follower.links
        leader.connect(follower)
        turns(leader, follower)
    leader.links[1].send(Dropped(1))
    follower.links[0].send(Dropped(2))
    assert follower.links[0].receive()[0] == [(Dropped(1), None)]
    assert leader.links[1].receive()[0] == [(Dropped(2), None)]
    assert refusals(leader) == refusals(follower) == {}
    assert leader.rendezvous.next_timer() is follower.rendezvous.next_timer() is None


def test_records_right_behind_the_answer_are_not_lost(leader: Side, follower: Side) -> None:
    leader.connect(follower)
    follower.connect(leader)
    leader.turn()
    leader.turn()
    leader.links[1].send(Dropped(7))  # with the ACCEPT in one go
    follower.turn()
    assert follower.links[0].receive()[0] == [(Dropped(7), None)]


def test_a_peer_that_is_not_there_is_given_up_at_once(follower: Side) -> None:
    proof = PeerProof(boot_id=12345, local_session=1, remote_session=2)
    follower.rendezvous.connect_peer(0, proof, 0.0)
    assert list(follower.rendezvous.links()) == []
    assert follower.rendezvous.next_timer() is None


def test_another_session_is_refused(leader: Side, follower: Side) -> None:
    leader.connect(follower, (1, 2))
    follower.connect(leader, (1, 3))
    turns(leader, follower)
    assert leader.links == {} == follower.links
    assert refusals(leader) == {"refused_proof": 1}


def test_a_stranger_of_the_same_user_proves_nothing(leader: Side, follower: Side) -> None:
    leader.connect(follower)
    link = leader.call()
    link.send(Connect(1, follower.boot_id, bytes(16)))
    turns(leader)
    assert refusals(leader) == {"refused_proof": 1}
    assert leader.links == {}
    assert is_closed(link)
    follower.connect(leader)  # the real one still gets through
    turns(leader, follower)
    assert set(leader.links) == {1}


def test_a_proof_is_good_for_one_link(leader: Side, follower: Side) -> None:
    leader.connect(follower)
    follower.connect(leader)
    turns(leader, follower)
    proof = PeerProof(leader.boot_id, local_session=2, remote_session=1)
    tags = Tags.for_connector(proof, own_boot_id=follower.boot_id)
    again = leader.call()
    again.send(Connect(1, follower.boot_id, tags.connector))
    turns(leader)
    turns(leader, now=LATE)
    assert refusals(leader) == {"refused_proof": 1}
    assert is_closed(again)
    assert not leader.links[1].is_closed


@pytest.mark.parametrize(
    "data", [b"x", b"\1" * 500, records.pack(Dropped(1)), records.pack(Accept(bytes(16)))]
)
def test_garbage_is_refused(leader: Side, data: bytes) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(name_of(leader.boot_id))
    sock.send(data)
    turns(leader)
    assert refusals(leader) == {"refused_record": 1}
    assert sock.recv(100) == b""
    sock.close()


def test_a_second_record_before_the_answer_is_refused(leader: Side) -> None:
    link = leader.call()
    link.send(Connect(1, 5, bytes(16)))
    link.send(Connect(1, 5, bytes(16)))
    turns(leader)
    assert refusals(leader) == {"refused_record": 1}
    assert is_closed(link)


def test_descriptors_of_strangers_are_closed(leader: Side) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(name_of(leader.boot_id))
    with open(os.devnull) as file:
        filled = records.pack(records.Filled(1, 2, 3, 4))
        socket.send_fds(sock, [filled], [file.fileno()])
    before = len(os.listdir("/proc/self/fd"))
    turns(leader)
    assert refusals(leader) == {"refused_record": 1}
    assert len(os.listdir("/proc/self/fd")) == before
    sock.close()


@pytest.mark.parametrize("says", [None, Connect(1, 5, bytes(16))])
def test_who_never_proves_anything_is_dropped_in_time(leader: Side, says: Connect | None) -> None:
    link = leader.call()
    if says is not None:
        link.send(says)
    turns(leader)
    assert leader.rendezvous.next_timer() == PROOF_TIMEOUT
    assert refusals(leader) == {}
    turns(leader, now=LATE)
    assert refusals(leader) == {"refused_silent" if says is None else "refused_proof": 1}
    assert is_closed(link)


def test_who_leaves_without_a_word_is_forgotten(leader: Side) -> None:
    leader.call().close()
    turns(leader)
    assert refusals(leader) == {"refused_silent": 1}
    assert list(leader.rendezvous.links()) == []


def test_a_crowd_keeps_to_its_bound(leader: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "LARGEST_UNPROVEN", 5)
    crowd = [leader.call() for _ in range(8)]
    turns(leader)
    assert refusals(leader) == {"refused_crowd": 3}
    assert len(list(leader.rendezvous.links())) == 5
    assert [is_closed(each) for each in crowd] == [False] * 5 + [True] * 3


def test_another_user_is_refused(leader: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    become_another_user(monkeypatch)
    link = leader.call()
    turns(leader)
    assert refusals(leader) == {"refused_user": 1}
    assert is_closed(link)


def test_a_listener_of_another_user_gets_no_proof(
    leader: Side, follower: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    become_another_user(monkeypatch)
    follower.connect(leader)
    assert list(follower.rendezvous.links()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_real_process_of_another_user_is_refused(leader: Side) -> None:
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setuid(65_534)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.connect(name_of(leader.boot_id))
            status = 0 if sock.recv(1) == b"" else 2
        finally:
            os._exit(status)
    select.select([leader.rendezvous], [], [], 10.0)
    turns(leader)
    assert os.waitpid(child, 0)[1] == 0
    assert refusals(leader) == {"refused_user": 1}


@pytest.mark.parametrize(
    "answer",
    [
        lambda sock: sock.send(records.pack(Accept(bytes(16)))),
        lambda sock: sock.send(b"garbage"),
        lambda sock: sock.close(),
        lambda sock: sock.send(records.pack(Dropped(3))),
    ],
    ids=["wrong proof", "garbage", "nothing", "another record"],
)
def test_a_wrong_listener_is_given_up(
    follower: Side, answer: Callable[[socket.socket], object]
) -> None:
    """Whoever of the same user took the name."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(name_of(77))
    listener.listen()
    follower.rendezvous.connect_peer(0, PeerProof(77, local_session=1, remote_session=2), 0.0)
    sock, _ = listener.accept()
    answer(sock)
    follower.turn()
    assert follower.links == {}
    assert list(follower.rendezvous.links()) == []
    sock.close()
    listener.close()


def test_a_listener_that_says_nothing_is_given_up_in_time(follower: Side) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(name_of(78))
    listener.listen()
    follower.rendezvous.connect_peer(0, PeerProof(78, local_session=1, remote_session=2), 0.0)
    assert follower.rendezvous.next_timer() == PROOF_TIMEOUT
    follower.turn(now=LATE)
    assert list(follower.rendezvous.links()) == []
    listener.close()


def test_a_full_backlog_is_tried_again(leader: Side, follower: Side) -> None:
    crowd: list[socket.socket] = []
    with pytest.raises(BlockingIOError):
        while True:
            crowd.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            crowd[-1].setblocking(False)
            crowd[-1].connect(name_of(leader.boot_id))
    leader.connect(follower)
    follower.connect(leader)
    assert list(follower.rendezvous.links()) == []
    for each in crowd:
        each.close()
    turns(leader)
    turns(leader, follower, now=rendezvous.CONNECT_RETRY_DELAY)
    assert set(leader.links) == {1} and set(follower.links) == {0}


def test_a_lost_connection_takes_its_call_along(leader: Side, follower: Side) -> None:
    follower.connect(leader)
    follower.rendezvous.disconnect_peer(0)
    turns(leader, follower)
    assert list(follower.rendezvous.links()) == []
    leader.connect(follower)
    turns(leader, follower)
    assert leader.links == {}


def test_without_a_descriptor_the_peer_is_reached_over_udp_only(
    leader: Side, follower: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", refuse)
    follower.connect(leader)
    assert (follower.links, follower.rendezvous.next_timer()) == ({}, None)
