"""One payload to several peers, of which each sends it on to the next: the origin's side.

How it works: the payload is announced to the first peer of a route, with the names of the others;
`relays.py` is what each of them does. Every peer reports to the origin when it has the payload. A
peer that is lost, refuses, or receives damaged bytes breaks the route at its place: those behind it
that have not reported are sent the payload by a new route, all that broke at one moment by one. So
nobody fails but who is lost or refuses. The first of a route is sent to by this instance itself,
and ends one way or another: n peers need at most 2 n routes. Each peer of a payload has a transfer
id of its own, and ends in exactly one call of the listener.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from comfy_cluster.errors import (
    ClusterError,
    CorruptPayload,
    TransferCancelled,
    TransferError,
)
from comfy_cluster.protocol.courier import Courier
from comfy_cluster.protocol.outgoing_buffer import OutgoingPayload, TransferListener
from comfy_cluster.protocol.outgoing_buffers import OutgoingBuffers
from comfy_cluster.protocol.stats import ProtocolStats
from comfy_cluster.protocol.timers import TimerKind, Timers
from comfy_cluster.wire import (
    LARGEST_ATTEMPT,
    LARGEST_RELAY,
    BufferCancel,
    BufferDone,
    BufferFailed,
    FailureCode,
    MessageType,
    Route,
    TransferKey,
)

logger = logging.getLogger("comfy_cluster.protocol")


@dataclass(slots=True)
class _Receiver:
    """A peer that has not reported yet."""

    transfer_id: int
    route: int = 0
    """Number of the one that it is on; 0: it waits for another one."""
    attempt: int = 1


@dataclass(slots=True, eq=False)
class _Chain:
    payload_id: int
    key: TransferKey
    payload: OutgoingPayload
    message_type: MessageType
    order: tuple[int, ...]
    receivers: dict[int, _Receiver]
    routes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """By their numbers."""
    hops: dict[int, int] = field(default_factory=dict)
    """Number of a route and the transfer to its first peer, while that is under way."""

    has_it: set[int] = field(default_factory=set)

    def behind(self, peer: int, number: int) -> list[int]:
        """Who on this route depends on `peer`: those after it, up to one that has everything."""
        peers = self.routes.get(number, ())
        place = peers.index(peer) + 1 if peer in peers else len(peers)
        depending = itertools.takewhile(lambda each: each not in self.has_it, peers[place:])
        return [
            each
            for each in depending
            if each in self.receivers and self.receivers[each].route == number
        ]


class Chains:
    def __init__(
        self,
        *,
        outgoing: OutgoingBuffers,
        courier: Courier,
        timers: Timers,
        stats: ProtocolStats,
        is_connected: Callable[[int], bool],
        listener: TransferListener,
    ) -> None:
        self._outgoing = outgoing
        self._courier = courier
        self._timers = timers
        self._stats = stats
        self._is_connected = is_connected
        self._listener = listener
        self._chains: dict[int, _Chain] = {}
        self._transfers: dict[int, tuple[_Chain, int]] = {}
        self._hops: dict[int, tuple[_Chain, int]] = {}  # its number

    def __len__(self) -> int:
        return len(self._chains) + len(self._transfers) + len(self._hops)

    def __contains__(self, payload_id: int) -> bool:
        return payload_id in self._chains

    def send(
        self,
        peers: Sequence[int],
        key: TransferKey,
        payload: OutgoingPayload,
        *,
        message_type: MessageType,
        now: float,
    ) -> dict[int, int]:
        """Begin to send along `peers`; return the transfer id of each. Without peers: nothing."""
        if not peers:
            return {}
        payload_id = self._outgoing.new_buffer_id()
        receivers = {peer: _Receiver(self._outgoing.new_buffer_id()) for peer in peers}
        chain = _Chain(payload_id, key, payload, message_type, tuple(peers), receivers)
        self._chains[payload_id] = chain
        for peer, receiver in receivers.items():
            self._transfers[receiver.transfer_id] = (chain, peer)
        self._begin_routes(chain, now)
        return {peer: receiver.transfer_id for peer, receiver in receivers.items()}

    def cancel(self, transfer_id: int, reason: str, now: float) -> bool:
        """Give up sending to one peer, which is told; the others still get it. False: it ended."""
        chain, peer = self._transfers.get(transfer_id, (None, 0))
        if chain is None:
            return False
        cancel = BufferCancel(chain.payload_id, reason, chain.key).pack()
        self._courier.post_control(peer, MessageType.BUFFER_CANCEL, cancel, now)
        text = f"sending {chain.key} to instance {peer} was given up: {reason}"
        self._fail(chain, peer, TransferCancelled(text, peer=peer), now)
        return True

    def end_job(self, job_id: str, now: float) -> None:
        for transfer_id, (chain, _) in list(self._transfers.items()):
            if chain.key.job_id == job_id:
                self.cancel(transfer_id, f"job {job_id} has ended", now)

    def close(self, error: ClusterError, now: float) -> None:
        for chain, peer in list(self._transfers.values()):
            self._fail(chain, peer, error, now)

    # What peers report

    def on_done(self, peer: int, done: BufferDone, now: float) -> None:
        chain = self._chains[done.buffer_id]
        if peer in chain.receivers:
            self._end(chain, peer, now)

    def on_failed(self, peer: int, failed: BufferFailed, now: float) -> None:
        chain = self._chains[failed.buffer_id]
        receiver = chain.receivers.get(peer)
        is_on_route = receiver is not None and receiver.route == failed.route
        if failed.code is FailureCode.NOT_RELAYED:
            self._break(chain, chain.behind(peer, failed.route), now)
        elif failed.code is FailureCode.ROUTE_LOST and is_on_route:
            self._break(chain, [peer, *chain.behind(peer, failed.route)], now)
        elif failed.code is FailureCode.CORRUPT and is_on_route:
            self._on_corrupt(chain, peer, failed.reason, now)
        elif failed.code in (FailureCode.TOO_MANY, FailureCode.NO_MEMORY) and receiver is not None:
            text = f"instance {peer} could not take {chain.key}: {failed.reason}"
            self._fail(chain, peer, TransferError(text, peer=peer), now)

    def on_cancel(self, peer: int, cancel: BufferCancel, now: float) -> None:
        chain = self._chains[cancel.buffer_id]
        if peer in chain.receivers:
            reason = cancel.reason or "no reason given"
            text = f"instance {peer} gave up {chain.key}: {reason}"
            self._fail(chain, peer, TransferCancelled(text, peer=peer), now)

    def on_lost(self, peer: int, error: ClusterError, now: float) -> None:
        """Whoever is behind the lost one, reported or not, gets the payload from others."""
        for chain in list(self._chains.values()):
            for number in list(chain.routes):
                self._break(chain, chain.behind(peer, number), now)
            if peer in chain.receivers:
                self._fail(chain, peer, error, now)

    def _on_corrupt(self, chain: _Chain, peer: int, reason: str, now: float) -> None:
        receiver = chain.receivers[peer]
        if receiver.attempt >= LARGEST_ATTEMPT:
            text = f"instance {peer} could not take {chain.key}: {reason}"
            error = CorruptPayload(f"{text} ({receiver.attempt} times)")
            self._fail(chain, peer, error, now)
            return
        self._stats.buffers_resent += 1
        again = [peer, *chain.behind(peer, receiver.route)]  # what they got came through it
        receiver.attempt += 1
        self._break(chain, again, now)

    # What the transfer to the first of a route reports

    def on_transfer_done(self, transfer_id: int, now: float) -> None:
        chain, number = self._hops.pop(transfer_id)
        del chain.hops[number]
        peer = chain.routes[number][0]
        if peer in chain.receivers:
            self._end(chain, peer, now)

    def on_transfer_failed(self, transfer_id: int, error: ClusterError, now: float) -> None:
        chain, number = self._hops.pop(transfer_id, (None, 0))
        if chain is None:
            return  # ended here
        del chain.hops[number]
        peer = chain.routes[number][0]
        receiver = chain.receivers.get(peer)
        if receiver is None or receiver.route != number:
            return
        if isinstance(error, CorruptPayload):
            self._on_corrupt(chain, peer, str(error), now)
        else:
            self._fail(chain, peer, error, now)

    # Routes

    def on_reroute_timer(self, payload_id: int, now: float) -> None:
        self._begin_routes(self._chains[payload_id], now)

    def _begin_routes(self, chain: _Chain, now: float) -> None:
        """Send to all that are on no route: the connected ones along one, others by themselves."""
        for attempt in range(1, LARGEST_ATTEMPT + 1):
            waiting = [
                peer
                for peer in chain.order
                if peer in chain.receivers
                and chain.receivers[peer].route == 0
                and chain.receivers[peer].attempt == attempt
            ]
            connected = [peer for peer in waiting if self._is_connected(peer)]
            for start in range(0, len(connected), 1 + LARGEST_RELAY):
                self._begin(chain, connected[start : start + 1 + LARGEST_RELAY], attempt, now)
            for peer in waiting:
                if peer not in connected:
                    self._begin(chain, [peer], attempt, now)

    def _begin(self, chain: _Chain, peers: list[int], attempt: int, now: float) -> None:
        number = len(chain.routes) + 1
        chain.routes[number] = tuple(peers)
        for peer in peers:
            chain.receivers[peer].route = number
        logger.debug("> %s on route %d over %s", chain.key, number, peers)
        hop = self._outgoing.send(
            peers[0],
            chain.key,
            chain.payload,
            message_type=chain.message_type,
            listener=self,
            now=now,
            route=Route(chain.payload_id, number, tuple(peers[1:])),
            attempt=attempt,
        )
        self._hops[hop] = (chain, number)
        chain.hops[number] = hop

    def _break(self, chain: _Chain, peers: list[int], now: float) -> None:
        """These get the payload by another route, which begins when all that broke now is known."""
        if peers:
            self._stats.routes_broken += 1
            self._timers.set(TimerKind.REROUTE, chain.payload_id, now)
        for peer in peers:
            self._leave_route(chain, peer, "it goes another way", now)

    def _leave_route(self, chain: _Chain, peer: int, reason: str, now: float) -> None:
        """End the transfer to a peer, if it is the first of its route."""
        receiver = chain.receivers[peer]
        number, receiver.route = receiver.route, 0
        if number in chain.hops and chain.routes[number][0] == peer:
            hop = chain.hops.pop(number)
            del self._hops[hop]
            self._outgoing.cancel(hop, reason, now)

    # Ends

    def _fail(self, chain: _Chain, peer: int, error: ClusterError, now: float) -> None:
        receiver = chain.receivers[peer]
        self._break(chain, chain.behind(peer, receiver.route), now)
        self._forget(chain, peer, str(error), now)
        self._listener.on_transfer_failed(receiver.transfer_id, error, now)

    def _end(self, chain: _Chain, peer: int, now: float) -> None:
        receiver = chain.receivers[peer]
        chain.has_it.add(peer)
        self._forget(chain, peer, "it arrived by another route", now)
        self._listener.on_transfer_done(receiver.transfer_id, now)

    def _forget(self, chain: _Chain, peer: int, reason: str, now: float) -> None:
        self._leave_route(chain, peer, reason, now)
        del self._transfers[chain.receivers.pop(peer).transfer_id]
        if not chain.receivers:
            self._timers.cancel(TimerKind.REROUTE, chain.payload_id)
            del self._chains[chain.payload_id]
