"""One Unix socket: records, descriptors, a peer that does not read, and one that breaks rules."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator

import pytest

from comfy_cluster.transport.shared_memory import link as links
from comfy_cluster.transport.shared_memory import records
from comfy_cluster.transport.shared_memory.link import Link, LinkLost, RuleBroken, close_fd
from comfy_cluster.transport.shared_memory.records import Dropped, Filled

FILLED = Filled(1, 2, 3, 4)


@pytest.fixture
def pair() -> Iterator[tuple[Link, socket.socket]]:
    """A link, and the other end as whoever may be there has it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = Link(ours)
    yield link, theirs
    link.close()
    theirs.close()


def test_records_and_descriptors_arrive_in_order(pair: tuple[Link, socket.socket]) -> None:
    link, theirs = pair
    other = Link(theirs)
    with open(os.devnull) as file:
        link.send(FILLED, file.fileno())
    link.send(Dropped(5))
    received, lost = other.receive()
    assert [record for record, _ in received] == [FILLED, Dropped(5)]
    assert lost is None
    fd = received[0][1]
    assert fd is not None and not os.get_inheritable(fd)
    assert received[1][1] is None
    close_fd(fd)


def test_a_limit_leaves_the_rest_for_the_next_look(pair: tuple[Link, socket.socket]) -> None:
    link, theirs = pair
    for number in range(3):
        theirs.send(records.pack(Dropped(number)))
    assert [record for record, _ in link.receive(1)[0]] == [Dropped(0)]
    assert [record for record, _ in link.receive()[0]] == [Dropped(1), Dropped(2)]


def test_an_end_is_told_after_what_came_before_it(pair: tuple[Link, socket.socket]) -> None:
    link, theirs = pair
    theirs.send(records.pack(Dropped(1)))
    theirs.close()
    received, lost = link.receive()
    assert ([record for record, _ in received], lost) == ([Dropped(1)], None)
    received, lost = link.receive()
    assert received == []
    assert isinstance(lost, LinkLost) and not isinstance(lost, RuleBroken)
    with pytest.raises(LinkLost):
        link.send(FILLED)


@pytest.mark.parametrize("data", [b"x", b"\x03" * 64, bytes(500), b"\x09" + bytes(16)])
def test_what_is_no_record_ends_the_link(pair: tuple[Link, socket.socket], data: bytes) -> None:
    link, theirs = pair
    theirs.send(data)
    assert isinstance(link.receive()[1], RuleBroken)


@pytest.mark.parametrize(
    ("record", "count"), [(Dropped(1), 1), (FILLED, 2), (FILLED, 4), (FILLED, 60)]
)
def test_descriptors_that_do_not_belong_are_closed(
    pair: tuple[Link, socket.socket], record: records.Record, count: int
) -> None:
    link, theirs = pair
    before = len(os.listdir("/proc/self/fd"))
    with open(os.devnull) as file:
        fds = array.array("i", [file.fileno()] * count)
        theirs.sendmsg([records.pack(record)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    assert isinstance(link.receive()[1], RuleBroken)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_peer_that_does_not_read_blocks_nobody(pair: tuple[Link, socket.socket]) -> None:
    link, theirs = pair
    with open(os.devnull) as file:
        link.send(FILLED, file.fileno())
        number = 0
        while not link.is_waiting:
            link.send(Dropped(number))
            number += 1
        link.send(FILLED, file.fileno())  # it waits, with a descriptor of its own
    other = Link(theirs)
    seen: list[records.Record] = []
    while len(seen) < number + 2:
        received, lost = other.receive()
        assert lost is None
        for record, fd in received:
            seen.append(record)
            close_fd(fd)
        link.flush()
    assert seen == [FILLED, *map(Dropped, range(number)), FILLED]
    assert not link.is_waiting


def test_a_peer_that_never_reads_is_given_up(
    pair: tuple[Link, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "LARGEST_WAITING", 10)
    link, _ = pair
    with open(os.devnull) as file, pytest.raises(LinkLost, match="does not read"):
        while True:
            link.send(FILLED, file.fileno())


def test_close_is_told_once_and_to_the_other_end(pair: tuple[Link, socket.socket]) -> None:
    link, theirs = pair
    copy = os.dup(link.fileno())  # as the child of a fork has one
    told: list[bool] = []
    link.on_close = lambda: told.append(link.fileno() >= 0)
    link.close()
    link.close()
    assert told == [True]
    assert theirs.recv(10) == b""
    os.close(copy)


def test_the_same_user_is_known(pair: tuple[Link, socket.socket]) -> None:
    assert pair[0].is_of_same_user()
