"""Finding the peers of this machine: the listener, who connects to it, and the proof.

What comes from the listener's socket is not trusted: it may be anybody, and say anything or
nothing. A proof may come before this side has the UDP connection that it is about, so it is kept
for a while and looked at again then. Control thread only; used by `carrier.py`, which does the
waiting.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from comfy_cluster.protocol import PeerProof
from comfy_cluster.transport.shared_memory import forks
from comfy_cluster.transport.shared_memory import proof as proofs
from comfy_cluster.transport.shared_memory.link import (
    Link,
    LinkLost,
    RuleBroken,
    close_fd,
)
from comfy_cluster.transport.shared_memory.proof import Tags
from comfy_cluster.transport.shared_memory.records import Accept, Connect, Record
from comfy_cluster.transport.shared_memory.stats import SharedMemoryStats

logger = logging.getLogger("comfy_cluster.transport")

LARGEST_UNPROVEN = 64  # connections that have proved nothing yet
PROOF_TIMEOUT = 5.0  # seconds; the UDP handshake ends within two round trips of its first answer
BACKLOG = 128  # connections that wait for the control thread; more are refused by the kernel
CONNECT_RETRY_DELAY = 0.1  # seconds after which a listener with a full backlog is tried again


@dataclass(slots=True)
class _Caller:
    """Somebody who connected to the listener."""

    link: Link
    give_up_at: float
    connect: Connect | None = None


@dataclass(slots=True)
class _Call:
    """Our own attempt to reach a peer with a lower index."""

    peer: int
    proof: PeerProof
    give_up_at: float
    retry_at: float
    link: Link | None = None


class Rendezvous:
    """`on_link(peer, link)`: both sides have proved themselves."""

    def __init__(
        self,
        instance_index: int,
        boot_id: int,
        *,
        stats: SharedMemoryStats,
        on_link: Callable[[int, Link], object],
    ) -> None:
        """Opens the listener. OSError: it cannot be."""
        self._index = instance_index
        self._boot_id = boot_id
        self._stats = stats
        self._on_link = on_link
        self._proofs: dict[int, PeerProof] = {}
        self._callers: dict[int, _Caller] = {}  # by descriptor
        self._calls: dict[int, _Call] = {}  # by peer
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.setblocking(False)
            self._listener.bind(proofs.name_of(boot_id))
            self._listener.listen(BACKLOG)
            forks.close_in_child(self._listener)
        except OSError:
            self._listener.close()
            raise

    # What to wait for

    def fileno(self) -> int:
        """Of the listener."""
        return self._listener.fileno()

    def links(self) -> Iterator[Link]:
        """Those that are not proven yet."""
        yield from (caller.link for caller in self._callers.values())
        yield from (call.link for call in self._calls.values() if call.link is not None)

    def next_timer(self) -> float | None:
        times = [caller.give_up_at for caller in self._callers.values()]
        for call in self._calls.values():
            times.append(call.give_up_at if call.link is not None else call.retry_at)
        return min(times, default=None)

    # Peers

    def connect_peer(self, peer: int, proof: PeerProof, now: float) -> None:
        """A UDP connection was made; the side with the higher index connects here too."""
        self._proofs[peer] = proof
        if peer < self._index:
            call = self._calls[peer] = _Call(peer, proof, now + PROOF_TIMEOUT, now)
            self._try_call(call, now)
        for caller in list(self._callers.values()):
            if caller.connect is not None:
                self._judge(caller, caller.connect)

    def disconnect_peer(self, peer: int) -> None:
        self._proofs.pop(peer, None)
        call = self._calls.pop(peer, None)
        if call is not None and call.link is not None:
            call.link.close()

    # Events

    def accept(self, now: float) -> None:
        """The listener is readable."""
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # none left; or no descriptor to be had, and the caller goes over UDP
                return
            link = Link(sock)
            if not link.is_of_same_user():
                self._stats.refused_user += 1
                link.close()
            elif len(self._callers) >= LARGEST_UNPROVEN:
                self._stats.refused_crowd += 1
                link.close()
            else:
                self._callers[link.fileno()] = _Caller(link, now + PROOF_TIMEOUT)

    def handle(self, link: Link) -> None:
        """Something came over a link that is not proven."""
        received, lost = link.receive(1)
        caller = self._callers.get(link.fileno())
        call = next((each for each in self._calls.values() if each.link is link), None)
        first = [record for record, _ in received]
        for _, fd in received:
            close_fd(fd)
        if caller is not None and caller.link is link:
            self._on_caller(caller, first, lost)
        elif call is not None:
            self._on_answer(call, first, lost)

    def _on_caller(self, caller: _Caller, first: list[Record], lost: LinkLost | None) -> None:
        if isinstance(lost, RuleBroken):
            self._refuse(caller, "refused_record")
        elif lost is not None:
            self._refuse(caller, "refused_silent" if caller.connect is None else "refused_proof")
        elif first and isinstance(first[0], Connect) and caller.connect is None:
            caller.connect = first[0]
            self._judge(caller, first[0])
        elif first:
            self._refuse(caller, "refused_record")

    def _judge(self, caller: _Caller, connect: Connect) -> None:
        """Whether the caller is a peer of ours; its UDP connection may still be on its way."""
        peer = connect.instance_index
        proof = self._proofs.get(peer)
        if proof is None or proof.boot_id != connect.boot_id:
            return  # not yet
        tags = Tags.for_listener(proof, own_boot_id=self._boot_id)
        if peer <= self._index or not proofs.are_equal(connect.tag, tags.connector):
            self._refuse(caller, "refused_proof")
            return
        del self._callers[caller.link.fileno()], self._proofs[peer]
        with contextlib.suppress(LinkLost):  # the next read tells
            caller.link.send(Accept(tags.listener))
        self._on_link(peer, caller.link)

    def _refuse(self, caller: _Caller, counter: str) -> None:
        del self._callers[caller.link.fileno()]
        caller.link.close()
        if counter:
            setattr(self._stats, counter, getattr(self._stats, counter) + 1)

    def _try_call(self, call: _Call, now: float) -> None:
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:  # no descriptor to be had
            self._give_up(call, str(error))
            return
        link = Link(sock)
        tags = Tags.for_connector(call.proof, own_boot_id=self._boot_id)
        try:
            sock.connect(proofs.name_of(call.proof.boot_id))
            if not link.is_of_same_user():
                raise LinkLost("it is another user's")
            link.send(Connect(self._index, self._boot_id, tags.connector))
        except BlockingIOError:  # its backlog is full
            link.close()
            call.retry_at = now + CONNECT_RETRY_DELAY
        except (OSError, LinkLost) as error:
            link.close()
            self._give_up(call, str(error))
        else:
            call.link = link

    def _on_answer(self, call: _Call, first: list[Record], lost: LinkLost | None) -> None:
        if not first and lost is None:
            return
        tags = Tags.for_connector(call.proof, own_boot_id=self._boot_id)
        answer = first[0] if first else None
        link = call.link
        if link is None or not isinstance(answer, Accept):
            self._give_up(call, str(lost or "it answers with something else than a proof"))
        elif not proofs.are_equal(answer.tag, tags.listener):
            self._stats.refused_proof += 1
            self._give_up(call, "its proof is wrong")
        else:
            del self._calls[call.peer]
            self._on_link(call.peer, link)

    def _give_up(self, call: _Call, reason: str) -> None:
        """The usual case of a peer on another machine."""
        logger.debug("= %d shares no memory with this instance: %s", call.peer, reason)
        del self._calls[call.peer]
        if call.link is not None:
            call.link.close()

    def handle_timers(self, now: float) -> None:
        for caller in [each for each in self._callers.values() if each.give_up_at <= now]:
            self._refuse(caller, "refused_silent" if caller.connect is None else "refused_proof")
        for call in list(self._calls.values()):
            if call.give_up_at <= now:
                self._give_up(call, "it does not answer")
            elif call.link is None and call.retry_at <= now:
                self._try_call(call, now)

    def close(self) -> None:
        """Twice is fine."""
        for link in list(self.links()):
            link.close()
        self._callers.clear()
        self._calls.clear()
        self._listener.close()
