"""What an instance does with beacons: when it sends them, and what those of others mean.

No socket, no thread, no clock: `BroadcastDiscovery` tells the time and moves the datagrams.

How it works: a new instance broadcasts at short and growing intervals, so that one lost datagram
costs little; then once a second until all are connected, and from then on rarely. Who hears it says
HELLO to its direct port, which is how the newcomer finds the others: one broadcast is enough for
both sides.

Of two instances with one index the younger one stops, unless it has peers: then it is part of the
cluster, and one datagram is no proof of anything. Ages are compared by one of the two only, the one
with the smaller boot id: measured on both sides, with a datagram's delay in between, they could
come to different ends. It says who stops in its own beacons. A rival counts from its second beacon
on, in which its age has grown: a recording of an earlier life is none.

An observer (`comfy-cluster doctor`) announces itself like the instance that it looks for, and takes
nobody's place: it stops when it hears that instance, which says nothing of it, and an address that
an observer told gives way to the instance's own.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

from comfy_cluster.discovery.base import Address, address_text
from comfy_cluster.errors import RemoteProtocolError
from comfy_cluster.protocol.handshake import count_refusal, version_refusal
from comfy_cluster.wire import Beacon, is_tagged_with

logger = logging.getLogger("comfy_cluster.discovery")

FIRST_DELAYS = (0.05, 0.15, 0.3, 0.5)  # seconds between the first beacons
RIVAL_DELAY = 0.2  # seconds between two answers to others that claim this instance's index
FORMING_DELAY = 1.0  # seconds, until all instances are connected
COMPLETE_DELAY = 10.0  # seconds, from then on
MOVING_DELAY = 1.0  # seconds until an instance that is heard at several is tried elsewhere
LARGEST_TROUBLES = 64  # reasons kept; more would be somebody making them up


@dataclass(frozen=True, slots=True)
class Identity:
    """This instance, as it tells the others."""

    cluster_id: str
    instance_index: int
    instance_count: int
    boot_id: int
    port: int
    hostname: str = ""
    """IP literal that the others are to use; empty: where its beacons come from."""
    key: str | None = field(default=None, repr=False)
    software_version: str = ""
    is_observer: bool = False
    """It only looks, and is no member."""


@dataclass(frozen=True, slots=True)
class Found:
    """An instance is there; perhaps it was known."""

    peer: int
    address: Address


@dataclass(frozen=True, slots=True)
class Conflict:
    """Another instance claims the index of this one."""

    address: Address
    is_older: bool
    """It was there first: this one stops."""
    seconds: float
    """How long it has been running."""


class Beacons:
    """Sends nothing itself; not thread-safe."""

    def __init__(self, identity: Identity, now: float) -> None:
        self._identity = identity
        self._started_at = now
        self._send_at = now
        self._sent_count = 0
        self._connected: set[int] = set()
        self._heard: set[int] = set()
        self._reported: dict[int, tuple[Address, float]] = {}  # and when
        self._observed: set[int] = set()  # of these, those that an observer told
        self._stops = 0  # boot id of a younger instance with this one's index
        self._rivals: dict[int, int] = {}  # age, by boot id, of others with this one's index
        self._answered_at = now - RIVAL_DELAY
        self._troubles: dict[int, str] = {}  # by the index that was claimed
        self._told: set[str] = set()  # troubles that the log has

    @property
    def send_at(self) -> float:
        """When the next beacon is due."""
        return self._send_at

    @property
    def is_complete(self) -> bool:
        return len(self._connected) == self._identity.instance_count - 1

    @property
    def heard(self) -> set[int]:
        """Who was ever heard of."""
        return self._heard | self._connected

    def next_beacon(self, now: float) -> bytes:
        """The datagram that is due now; the next one is due later."""
        delays = FIRST_DELAYS[self._sent_count : self._sent_count + 1]
        later = COMPLETE_DELAY if self.is_complete else FORMING_DELAY
        self._sent_count += 1
        self._send_at = now + (delays[0] if delays else later)
        own = self._identity
        return Beacon(
            cluster_id=own.cluster_id,
            instance_index=own.instance_index,
            instance_count=own.instance_count,
            boot_id=own.boot_id,
            port=own.port,
            hostname=own.hostname,
            age=self._age(now),
            software_version=own.software_version,
            stops=self._stops,
            is_observer=own.is_observer,
        ).pack(own.key)

    def set_hostname(self, hostname: str) -> None:
        """The IP literal that the others are to use, from now on."""
        self._identity = replace(self._identity, hostname=hostname)

    def on_connected(self, peer: int) -> None:
        self._connected.add(peer)
        self._observed.discard(peer)

    def on_lost(self, peer: int, now: float) -> None:
        """It may come back under another address, and this one may be what moved."""
        self._connected.discard(peer)
        self._forget(peer)
        self.announce_soon(now)

    def announce_soon(self, now: float) -> None:
        """The next beacon is due within `FORMING_DELAY`, and the ones after it come often."""
        self._send_at = min(self._send_at, now + FORMING_DELAY)

    def announce_now(self, now: float) -> None:
        """As after the start: a network interface came up, say."""
        self._sent_count = 0
        self._send_at = now

    def on_datagram(self, datagram: bytes, sender: Address, now: float) -> Found | Conflict | None:
        """What a datagram to the broadcast port means; None: nothing new."""
        try:
            beacon = Beacon.parse(datagram)
        except RemoteProtocolError as error:
            logger.debug("< %s dropped: %s", sender[0], error)
            return None
        own = self._identity
        if beacon.cluster_id != own.cluster_id or beacon.boot_id == own.boot_id:
            return None
        address = (beacon.hostname or sender[0], beacon.port)
        refusal = self._refusal_of(beacon, datagram)
        if refusal:
            self._note_trouble(address, beacon, refusal)
            return None
        self._troubles.pop(beacon.instance_index, None)
        if beacon.instance_index == own.instance_index:
            return self._conflict_with(beacon, address, now)
        return self.on_heard(beacon.instance_index, address, now, is_observer=beacon.is_observer)

    def _forget(self, peer: int) -> None:
        self._reported.pop(peer, None)
        self._observed.discard(peer)

    def on_heard(
        self, peer: int, address: Address, now: float, *, is_observer: bool = False
    ) -> Found | None:
        """`peer` says that it is there: by a beacon, or by a HELLO to the direct port.

        One that is connected stays where it is. One on several networks is heard at several
        addresses: the first is tried for a while, then the next. An observer moves no member.
        """
        if peer in self._connected:
            return None
        if not is_observer and peer in self._observed:
            self._forget(peer)
        elif is_observer and self._is_of_member(peer, address):
            return None
        known = self._reported.get(peer)
        if known is not None and known[0] != address and now < known[1] + MOVING_DELAY:
            return None
        if known is not None and known[0] == address:
            return None
        self._heard.add(peer)
        # Whoever was reported there before has it no more, and is reported again when it is heard.
        for other in [each for each, (where, _) in self._reported.items() if where == address]:
            self._forget(other)
        self._reported[peer] = (address, now)
        if is_observer:
            self._observed.add(peer)
        self.announce_soon(now)
        return Found(peer, address)

    def _is_of_member(self, peer: int, address: Address) -> bool:
        """Whether the place of `peer`, or that address, is that of somebody who does not look."""
        return any(
            each not in self._observed and (each == peer or where == address)
            for each, (where, _) in self._reported.items()
        )

    def troubles(self) -> dict[int, str]:
        """By peer: why the one that was heard cannot be part of this cluster, for people."""
        return dict(self._troubles)

    def _age(self, now: float) -> int:
        return max(0, round((now - self._started_at) * 1000))

    def _refusal_of(self, beacon: Beacon, datagram: bytes) -> str:
        own, who = self._identity, "it"
        refusal = version_refusal(beacon, who)
        if not refusal and not is_tagged_with(datagram, own.key):
            refusal = "its COMFY_CLUSTER_KEY is another one (or only one side has a key)"
        return refusal or count_refusal(beacon, who, own.instance_count)

    def _note_trouble(self, address: Address, beacon: Beacon, reason: str) -> None:
        peer = beacon.instance_index
        is_new = peer not in self._troubles
        if peer in self._connected or (is_new and len(self._troubles) >= LARGEST_TROUBLES):
            return
        text = f"instance {peer} at {address_text(address)} is not taken in: {reason}"
        self._troubles[peer] = text
        if f"{peer} {reason}" not in self._told and len(self._told) < LARGEST_TROUBLES:
            self._told.add(f"{peer} {reason}")
            logger.warning("! %s", text)

    def _conflict_with(self, beacon: Beacon, address: Address, now: float) -> Conflict | None:
        own = self._identity
        if beacon.is_observer and not own.is_observer:
            self._answer_soon(now)
            return None
        gives_way = own.is_observer and not beacon.is_observer
        known = self._rivals.get(beacon.boot_id)
        if known is None and len(self._rivals) >= LARGEST_TROUBLES:
            return None
        self._rivals[beacon.boot_id] = max(beacon.age, known or 0)
        is_older = gives_way or beacon.age > self._age(now)
        if known is None or beacon.age <= known:
            self._answer_soon(now)
            return None
        is_judge = own.boot_id < beacon.boot_id
        stops = beacon.stops == own.boot_id or (is_judge and is_older)
        if gives_way or (stops and not self._connected):
            return Conflict(address, is_older=True, seconds=beacon.age / 1000)
        if is_judge and not is_older:
            self._stops = beacon.boot_id
        self._answer_soon(now)
        return None if is_older else Conflict(address, is_older=False, seconds=beacon.age / 1000)

    def _answer_soon(self, now: float) -> None:
        """So that the other one hears of this one: two that answer each other at once never end."""
        self._answered_at = max(now, self._answered_at + RIVAL_DELAY)
        self._send_at = min(self._send_at, self._answered_at)
