"""Discovery in a LAN: each instance broadcasts who and where it is, until it knows the others.

What is sent and what it means is decided in `beacons.py`. This is the socket, the thread and the
interfaces around it. Broadcasts go to the directed address of every interface's network, because
255.255.255.255 fails without a default route; with SINGLE_HOST to loopback alone, so that nobody
outside of this machine hears of its instances. All instances of a machine share the port: each gets
every broadcast.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

from comfy_cluster import identity
from comfy_cluster.config import ClusterConfig
from comfy_cluster.discovery.base import Address, FailureListener, MemberListener, address_text
from comfy_cluster.discovery.beacons import Beacons, Conflict, Found, Identity
from comfy_cluster.discovery.interfaces import (
    Interface,
    broadcast_interfaces,
    is_bsd,
    loopback_interface,
)
from comfy_cluster.discovery.static import resolve_ipv4
from comfy_cluster.errors import ConfigError, DiscoveryError
from comfy_cluster.wire import LARGEST_BEACON

logger = logging.getLogger("comfy_cluster.discovery")

INTERFACE_INTERVAL = 1.0  # seconds between two looks at the interfaces while somebody is missing
SILENCE = 10.0  # seconds after which it is worth a word that an instance was never heard
CLOSE_TIMEOUT = 0.5  # seconds; the thread ends within a turn
_LARGEST_BURST = 64  # datagrams taken at a time


class BroadcastDiscovery:
    """Thread-safe."""

    def __init__(
        self,
        config: ClusterConfig,
        *,
        read_interfaces: Callable[[], Sequence[Interface]] = broadcast_interfaces,
        loopback: Interface | None = None,
        is_observer: bool = False,
    ) -> None:
        self._config = config
        self._read_interfaces = read_interfaces
        self._loopback = (loopback or loopback_interface()) if config.single_host else None
        self._beacons = Beacons(_identity_of(config, is_observer), time.monotonic())
        self._interfaces: list[Interface] = []
        self._refreshed_at = 0.0
        self._lock = threading.RLock()  # guards the beacons
        self._started_at = time.monotonic()
        self._rivals: set[Address] = set()
        self._on_member: MemberListener | None = None  # before `start`
        self._on_failure: FailureListener | None = None
        self._is_closed = False
        self._is_unresolved = False
        self._socket: socket.socket | None = None
        self._wakers: tuple[socket.socket, socket.socket] | None = None
        self._thread: threading.Thread | None = None

    def start(self, on_member: MemberListener, on_failure: FailureListener) -> None:
        """ConfigError: the broadcast port cannot be bound."""
        self._on_member, self._on_failure = on_member, on_failure
        self._socket = open_broadcast_socket(self._config.broadcast_port, self._loopback)
        self._wakers = socket.socketpair()
        self._refresh_interfaces()
        if not self._interfaces:
            logger.warning(
                "! no network interface can broadcast; instances of this machine alone need "
                "COMFY_CLUSTER_SINGLE_HOST=true"
            )
        thread = threading.Thread(target=self._run, name="comfy-cluster-discovery", daemon=True)
        thread.start()
        self._thread = thread  # once it is there to be waited for

    def on_heard(self, peer: int, address: Address, *, is_observer: bool = False) -> None:
        if self._on_member is not None and self._is_usable(address[0]):
            with self._lock:
                now = time.monotonic()
                found = self._beacons.on_heard(peer, address, now, is_observer=is_observer)
                if found is not None:
                    self._report(found)

    def on_peer_connected(self, peer: int) -> None:
        with self._lock:
            self._beacons.on_connected(peer)

    def on_peer_lost(self, peer: int) -> None:
        with self._lock:
            self._beacons.on_lost(peer, time.monotonic())
        self._wake()

    def troubles(self) -> dict[int, str]:
        with self._lock:
            heard, troubles = self._beacons.heard, self._beacons.troubles()
        if time.monotonic() < self._started_at + SILENCE:
            return troubles
        where = ", ".join(map(str, self._interfaces)) or "no network interface"
        text = (
            f"nothing was heard of it on {where}, UDP port {self._config.broadcast_port}: is it in "
            "the same network, and does a firewall let that port through? Clouds carry no "
            "broadcasts: there use COMFY_CLUSTER_REGISTRATION_MODE=static or stun"
        )
        count, own = self._config.instance_count, self._config.instance_index
        silent = set(range(count)) - heard - {own}
        return {peer: text for peer in silent} | troubles

    def stop_soon(self) -> None:
        self._is_closed = True
        self._wake()

    def close(self) -> None:
        self.stop_soon()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_TIMEOUT)

    def _wake(self) -> None:
        if self._wakers is not None:
            with contextlib.suppress(OSError):  # it has ended
                self._wakers[1].send(b"\0")

    # On the thread.

    def _run(self) -> None:
        assert self._socket is not None and self._wakers is not None
        try:
            while not self._is_closed:
                try:
                    self._turn(self._socket, self._wakers[0])
                except Exception:  # of the system's list of interfaces, say; this thread must live
                    logger.exception("! discovery goes on")
                    select.select([self._wakers[0]], [], [], INTERFACE_INTERVAL)
        finally:
            for each in (self._socket, *self._wakers):
                each.close()

    def _find_own_hostname(self) -> None:
        """Of INSTANCE_ADDRESS; without it the others use where the beacons come from."""
        name = self._config.instance_address
        if name is None:
            return
        try:
            hostname, _ = resolve_ipv4(name, self._config.direct_listen_port)
        except (OSError, UnicodeError) as error:
            level = logging.DEBUG if self._is_unresolved else logging.WARNING
            logger.log(level, "! COMFY_CLUSTER_INSTANCE_ADDRESS=%s: %s; trying again", name, error)
            self._is_unresolved = True
            return
        self._is_unresolved = False
        with self._lock:
            self._beacons.set_hostname(hostname)

    def _turn(self, sock: socket.socket, waker: socket.socket) -> None:
        now = time.monotonic()
        with self._lock:
            is_due = now >= self._beacons.send_at
            is_complete = self._beacons.is_complete
        if is_due:
            self._announce(sock)
        elif not is_complete and now >= self._refreshed_at + INTERFACE_INTERVAL:
            self._refresh_interfaces()
        with self._lock:
            wait = self._beacons.send_at - time.monotonic()
        if not is_complete:
            wait = min(wait, INTERFACE_INTERVAL)
        readable, _, _ = select.select([sock, waker], [], [], max(0.0, wait))
        if waker in readable:
            waker.recv(64)
        if sock in readable:
            self._receive(sock)

    def _announce(self, sock: socket.socket) -> None:
        self._refresh_interfaces()
        self._find_own_hostname()
        with self._lock:
            datagram = self._beacons.next_beacon(time.monotonic())
        if not self._config.udp_broadcast:
            return
        for interface in self._interfaces:
            try:
                sock.sendto(datagram, (interface.broadcast, self._config.broadcast_port))
            except OSError as error:  # it went down this moment, or a firewall refuses
                logger.debug("! no broadcast on %s: %s", interface, error)

    def _refresh_interfaces(self) -> None:
        self._refreshed_at = time.monotonic()
        if self._loopback is not None:
            found = [self._loopback]
        else:
            found = [each for each in self._read_interfaces() if self._listens_on(each)]
        is_new = not set(found) <= set(self._interfaces)
        self._interfaces = found
        if is_new:
            logger.debug("= broadcasts go to %s", ", ".join(map(str, found)))
            with self._lock:
                self._beacons.announce_now(time.monotonic())

    def _listens_on(self, interface: Interface) -> bool:
        listen_address = self._config.listen_address
        return listen_address in ("0.0.0.0", "::", interface.address)

    def _receive(self, sock: socket.socket) -> None:
        for _ in range(_LARGEST_BURST):
            try:
                datagram, sender = sock.recvfrom(LARGEST_BEACON + 1)
            except OSError:  # that was all; or an ICMP error of an earlier broadcast
                return
            if not self._is_usable(sender[0]):
                continue
            with self._lock:
                meaning = self._beacons.on_datagram(datagram, sender, time.monotonic())
                if isinstance(meaning, Found):
                    self._report(meaning)
            if isinstance(meaning, Conflict):
                self._on_conflict(meaning)

    def _is_usable(self, hostname: str) -> bool:
        """With SINGLE_HOST, who is elsewhere belongs to another cluster."""
        return not self._config.single_host or hostname.startswith("127.")

    def _report(self, found: Found) -> None:
        """Under the lock, which keeps two reports in their order."""
        assert self._on_member is not None
        logger.debug("= instance %d is at %s", found.peer, address_text(found.address))
        try:
            self._on_member(found.peer, found.address)
        except ConfigError as error:
            logger.warning("! instance %d cannot be reached: %s", found.peer, error)

    def _on_conflict(self, conflict: Conflict) -> None:
        assert self._on_failure is not None
        index, where = self._config.instance_index, address_text(conflict.address)
        if conflict.is_older:
            self._is_closed = True
            self._on_failure(
                DiscoveryError(
                    f"COMFY_CLUSTER_INSTANCE_INDEX={index} belongs to the instance at {where}, "
                    f"which has been running for {conflict.seconds:.0f} s: this one stops. Give it "
                    "an index of its own, or end the other one, and start it again"
                )
            )
        elif conflict.address not in self._rivals:
            self._rivals.add(conflict.address)
            logger.error(
                "! the instance at %s has COMFY_CLUSTER_INSTANCE_INDEX=%d too. It came later and "
                "has to stop: give it an index of its own",
                where,
                index,
            )


def _identity_of(config: ClusterConfig, is_observer: bool) -> Identity:
    return Identity(
        cluster_id=config.cluster_id,
        instance_index=config.instance_index,
        instance_count=config.instance_count,
        boot_id=identity.new_boot_id(),
        port=config.direct_listen_port,
        key=config.key,
        software_version=identity.software_version(),
        is_observer=is_observer,
    )


def open_broadcast_socket(port: int, loopback: Interface | None = None) -> socket.socket:
    """A socket that shares `port` with the other instances of this machine.

    `loopback`: it is for those alone, and hears them there. ConfigError: another program has the
    port, or the group of that interface cannot be joined.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_bsd(sys.platform):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setblocking(False)
        sock.bind(("", port))
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"Failed to bind UDP socket on port {port}, where instances announce themselves: "
            f"{error.strerror or error}; set another COMFY_CLUSTER_BROADCAST_PORT on all of them",
            variable="COMFY_CLUSTER_BROADCAST_PORT",
            value=str(port),
        ) from error
    if loopback is not None and loopback.is_multicast:
        join_group(sock, loopback)
    return sock


def join_group(sock: socket.socket, interface: Interface) -> None:
    """Hears and sends to the group of `interface`, there and nowhere else."""
    own = socket.inet_aton(interface.address)
    try:
        group = socket.inet_aton(interface.broadcast)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + own)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)
        # One byte each: OpenBSD takes no other size. RFC 1112 section 6.1.
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, bytes([0]))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, bytes([1]))
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"COMFY_CLUSTER_SINGLE_HOST=true: the multicast group {interface.broadcast}, by which "
            f"instances of this machine find each other, cannot be joined on {interface}: "
            f"{error.strerror or error}; use COMFY_CLUSTER_REGISTRATION_MODE=static",
            variable="COMFY_CLUSTER_SINGLE_HOST",
            value="true",
        ) from error
