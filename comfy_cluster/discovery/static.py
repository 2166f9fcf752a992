"""Static membership: the addresses are those of COMFY_CLUSTER_UDP_HOSTNAMES, in index order.

How it works: entries that are IP literals are reported by `start` itself. Names are looked up on a
thread of their own, because a name server that is silent blocks for seconds; a container's name
may not exist yet when its neighbour starts, and may stand for another address after a restart. So a
name is looked up again, at growing intervals, for as long as its instance is not connected. With
all of them connected the thread sleeps.

Two names may stand for one address for a while, when containers come back at each other's. The
transport gives an address to the instance it was reported for last. So when that one turns out to
be elsewhere, the address is reported again for the one that had it before.

It sends nothing to anybody: whether an instance answers is found out by the transport.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from comfy_cluster.discovery.base import Address, FailureListener, MemberListener, address_text
from comfy_cluster.discovery.interfaces import own_addresses
from comfy_cluster.errors import ConfigError

logger = logging.getLogger("comfy_cluster.discovery")

FIRST_RETRY_DELAY = 0.5  # seconds until a name is looked up for the second time; then it doubles
LARGEST_RETRY_DELAY = 30.0  # seconds; name servers cache failures for about as long
CLOSE_TIMEOUT = 0.2  # seconds; a lookup under way cannot be interrupted, and its thread is a daemon

Resolver = Callable[[str, int], Address]


@dataclass(slots=True)
class _Search:
    """A name whose instance is not connected."""

    look_up_at: float
    delay: float


class StaticDiscovery:
    """Looks up the entries of a fixed list. Thread-safe."""

    def __init__(
        self,
        entries: Sequence[tuple[str, int]],
        instance_index: int,
        *,
        resolve: Resolver | None = None,
        retry_delay: float = FIRST_RETRY_DELAY,
        own_addresses: Callable[[], Collection[str]] = own_addresses,
    ) -> None:
        """`entries`: (host name or IP literal, port) of every instance, this one included."""
        self._entries = list(entries)
        self._instance_index = instance_index
        self._resolve = resolve or resolve_ipv4
        self._retry_delay = retry_delay
        self._own_addresses = own_addresses
        self._on_member: MemberListener = _ignore_member
        self._known: dict[int, Address] = {}
        self._owners: dict[Address, int] = {}  # for whom an address was reported last
        self._searches: dict[int, _Search] = {}
        self._lost: set[int] = set()  # reported again, where they are found
        self._troubles: dict[int, str] = {}
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def start(self, on_member: MemberListener, on_failure: FailureListener | None = None) -> None:
        """Reports the IP literals, and starts looking up the names.

        ConfigError of `on_member` for a literal: it can never be reached.
        """
        self._on_member = on_member
        hostname, port = self._entries[self._instance_index]
        if is_ip_literal(hostname):
            self._check_own((hostname, port))
        for peer, (hostname, port) in self._entries_of_peers():
            if is_ip_literal(hostname):
                self._report(peer, (hostname, port))
            else:
                self._searches[peer] = _Search(time.monotonic(), self._retry_delay)
        if self._searches:
            thread = threading.Thread(
                target=self._look_up_names, name="comfy-cluster-discovery", daemon=True
            )
            thread.start()
            self._thread = thread  # once it is there to be waited for

    def on_heard(self, peer: int, address: Address, *, is_observer: bool = False) -> None:
        """Only the list says where instances are."""

    def on_peer_connected(self, peer: int) -> None:
        with self._changed:
            self._searches.pop(peer, None)

    def on_peer_lost(self, peer: int) -> None:
        if is_ip_literal(self._entries[peer][0]):
            return
        with self._changed:
            self._searches[peer] = _Search(time.monotonic(), self._retry_delay)
            self._lost.add(peer)
            self._changed.notify_all()

    def troubles(self) -> dict[int, str]:
        with self._changed:
            shared = {
                peer: self._shared_text(peer, self._owners[address])
                for peer, address in self._known.items()
                if self._owners[address] != peer
            }
            return shared | self._troubles

    def stop_soon(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def close(self) -> None:
        self.stop_soon()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_TIMEOUT)

    def _entries_of_peers(self) -> list[tuple[int, tuple[str, int]]]:
        numbered = enumerate(self._entries)
        return [(peer, entry) for peer, entry in numbered if peer != self._instance_index]

    def _check_own(self, address: Address) -> None:
        """Whether the own entry can be this instance's: the commonest mistake is a wrong order."""
        hostname, _ = address
        if hostname in self._own_addresses():
            return
        logger.warning(
            "! entry %s is this instance's own, and %s is no address of this machine: are "
            "COMFY_CLUSTER_INSTANCE_INDEX and the order of the entries right? (Behind NAT they may "
            "be.)",
            self._entry_text(self._instance_index),
            hostname,
        )

    def _look_up_own_name(self) -> None:
        hostname, port = self._entries[self._instance_index]
        if not is_ip_literal(hostname):
            with contextlib.suppress(OSError, UnicodeError):  # nobody here needs to reach it
                self._check_own(self._resolve(hostname, port))

    def _look_up_names(self) -> None:
        self._look_up_own_name()
        while (peer := self._next_due()) is not None:
            hostname, port = self._entries[peer]
            try:
                self._report(peer, self._resolve(hostname, port))
            except OSError as error:
                self._on_trouble("cannot resolve entry", peer, error.strerror or str(error))
            except UnicodeError as error:  # of IDNA: a label that is empty or too long
                self._on_trouble("cannot resolve entry", peer, str(error))
            except ConfigError as error:
                self._on_trouble("cannot use entry", peer, str(error))

    def _next_due(self) -> int | None:
        """Waits for the next name to look up; None: closed."""
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                due = [peer for peer, each in self._searches.items() if each.look_up_at <= now]
                if due:
                    search = self._searches[due[0]]
                    search.look_up_at = now + search.delay
                    search.delay = min(2 * search.delay, LARGEST_RETRY_DELAY)
                    return due[0]
                times = [each.look_up_at for each in self._searches.values()]
                self._changed.wait(min(times) - now if times else None)
        return None

    def _on_trouble(self, what: str, peer: int, reason: str) -> None:
        text = f"{what} {self._entry_text(peer)}: {reason}"
        with self._changed:
            is_new = peer not in self._troubles
            self._troubles[peer] = text
        logger.log(logging.WARNING if is_new else logging.DEBUG, "! %s; trying again", text)

    def _entry_text(self, peer: int) -> str:
        return f"{peer} of COMFY_CLUSTER_UDP_HOSTNAMES ({address_text(self._entries[peer])})"

    def _shared_text(self, peer: int, owner: int) -> str:
        shared = address_text(self._known[peer])
        return f"entry {self._entry_text(peer)} is at {shared}, and so is entry {owner}"

    def _report(self, peer: int, address: Address) -> None:
        """ConfigError of `on_member`: nobody can be reached there."""
        with self._changed:
            if self._is_closed:
                return
            # While it was connected elsewhere, its address may have become another one's.
            is_lost = peer in self._lost
            self._lost.discard(peer)
            if self._known.get(peer) == address and not is_lost:
                self._troubles.pop(peer, None)
                return
        logger.debug(
            "= instance %d (%s) is at %s", peer, address_text(self._entries[peer]), address
        )
        self._on_member(peer, address)
        heir = self._note(peer, address)
        if heir is not None:
            self._on_member(*heir)

    def _note(self, peer: int, address: Address) -> tuple[int, Address] | None:
        """Keeps what was reported. Returns who gets the address that `peer` left, and that."""
        with self._changed:
            self._troubles.pop(peer, None)
            left = self._known.get(peer)
            self._known[peer] = address
            self._owners[address] = peer
            if left in (None, address) or self._owners[left] != peer:
                return None
            heir = next((other for other in self._known if self._known[other] == left), None)
            if heir is None:
                del self._owners[left]
                return None
            self._owners[left] = heir
            return heir, left


def resolve_ipv4(hostname: str, port: int) -> Address:
    """The first IPv4 address of a name; OSError if there is none."""
    return _resolve(hostname, port, socket.AF_INET)


def resolve_ipv6(hostname: str, port: int) -> Address:
    """The first IPv6 address of a name, or its first IPv4 address; OSError if it has neither.

    For instances that listen on `::`, which serves IPv4 too.
    """
    try:
        return _resolve(hostname, port, socket.AF_INET6)
    except OSError as error:
        try:
            return _resolve(hostname, port, socket.AF_INET)
        except OSError:
            raise error from None


def _resolve(hostname: str, port: int, family: socket.AddressFamily) -> Address:
    found = socket.getaddrinfo(hostname, port, family=family, type=socket.SOCK_DGRAM)
    return str(found[0][4][0]), port


def is_ip_literal(hostname: str) -> bool:
    try:
        ipaddress.ip_address(hostname)
    except ValueError:
        return False
    return True


def _ignore_member(peer: int, address: Address) -> None:
    """Stands for the listener until `start`."""
