"""Discovery by rendezvous servers ("STUN mode"): registers with each, and asks who else is there.

How it works. A thread for each server registers, lists and sends heartbeats, and goes on trying
when the server is away; what any of them lists counts. A cluster that is connected needs no server:
whether peers live is found out by the transport. The others are reached at the addresses that they
registered; an instance that is in no list yet is found by the HELLO of one that has found it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from comfy_cluster import identity
from comfy_cluster.config import ClusterConfig
from comfy_cluster.discovery.base import Address, FailureListener, MemberListener, address_text
from comfy_cluster.discovery.own_address import own_hostname
from comfy_cluster.discovery.reflexive import Ask, ReflexiveAddress
from comfy_cluster.discovery.registry import (
    LARGEST_WAIT,
    IndexHeld,
    IndexTaken,
    Listed,
    NotRegistered,
    Registered,
    Registration,
    Registry,
)
from comfy_cluster.discovery.server_state import Lookup, Server
from comfy_cluster.discovery.static import Resolver, is_ip_literal, resolve_ipv4, resolve_ipv6
from comfy_cluster.errors import ConfigError, DiscoveryError, RegistrationRefused

logger = logging.getLogger("comfy_cluster.discovery")

HEARTBEAT_INTERVAL = 20.0  # seconds; a third of the time that a server keeps who is silent
FORMING_INTERVAL = 0.5  # seconds between two lists while somebody is missing
COMPLETE_INTERVAL = 30.0  # seconds, from then on
FIRST_LOOKUP_DELAY = 1.0  # seconds until a name is looked up again; then it doubles
LARGEST_LOOKUP_DELAY = 30.0
HELD_INTERVAL = 2.0  # seconds until an index is asked for again that another instance has
FIRST_RETRY_DELAY = 0.5  # seconds until a server is tried again; then it doubles
LARGEST_RETRY_DELAY = 15.0
JITTER = 0.2  # of each delay, so that the instances of a cluster do not come at once
LEAVE_TIMEOUT = 0.9  # seconds
CLOSE_TIMEOUT = 1.0  # seconds, of all servers together; a thread that needs longer is a daemon


class StunDiscovery:
    """Thread-safe. An observer registers nowhere: it asks who is there and says HELLO to them, so
    that nothing of the instance in whose place it looks is changed, removed, or held up."""

    def __init__(
        self,
        config: ClusterConfig,
        *,
        make_registry: Callable[[str], Registry] | None = None,
        rng: random.Random | None = None,
        is_observer: bool = False,
        ask_reflexive: Ask | None = None,
    ) -> None:
        """`ask_reflexive`: of the transport; None: no candidates are published."""
        self._config = config
        self._boot_id = f"{identity.new_boot_id():016x}"
        self._is_observer = is_observer
        self._make_registry = make_registry or self._registry_at
        self._rng = rng or random.Random()
        self._resolve: Resolver = resolve_ipv6 if ":" in config.listen_address else resolve_ipv4
        self._reflexive: ReflexiveAddress | None = None
        if ask_reflexive is not None and not is_observer:
            self._reflexive = ReflexiveAddress(
                config, (), ask=ask_reflexive, on_change=self._on_reflexive
            )
        self._servers: list[Server] = []
        self._connected: set[int] = set()
        self._reported: dict[int, Address] = {}
        self._observed: set[int] = set()  # of these, those at which an observer was heard
        self._told: dict[int, Address] = {}  # where the transport has them
        self._found_before: dict[int, list[Address | None]] = {}  # by servers, when connected
        self._unresolved: dict[int, str] = {}
        self._on_member: MemberListener | None = None  # before `start`
        self._on_failure: FailureListener | None = None
        self._news_count = 0  # somebody was lost, or this instance's address was found
        self._is_closed = False
        self._close_by: float | None = None
        self._changed = threading.Condition()  # guards all of the above

    def start(self, on_member: MemberListener, on_failure: FailureListener) -> None:
        """Starts to look. Nothing that a server does keeps this instance from starting."""
        self._on_member, self._on_failure = on_member, on_failure
        self._servers = [
            Server(self._make_registry(url), HEARTBEAT_INTERVAL, FIRST_RETRY_DELAY)
            for url in self._config.stun_servers
        ]
        for number, server in enumerate(self._servers):
            thread = threading.Thread(
                target=self._run, args=(server,), name=f"comfy-cluster-stun-{number}", daemon=True
            )
            thread.start()
            server.thread = thread
        threading.Thread(
            target=self._look_up_names, name="comfy-cluster-stun-names", daemon=True
        ).start()

    def on_heard(self, peer: int, address: Address, *, is_observer: bool = False) -> None:
        with self._changed:
            if self._on_member is None or (is_observer and self._is_of_member(peer, address)):
                return
            self._report(peer, address, is_observer=is_observer)

    def _is_of_member(self, peer: int, address: Address) -> bool:
        """Whether the place of `peer`, or that address, is that of somebody who does not look."""
        return any(
            each not in self._observed and (each == peer or where == address)
            for each, where in self._reported.items()
        )

    def on_peer_connected(self, peer: int) -> None:
        with self._changed:
            self._connected.add(peer)
            self._observed.discard(peer)
            self._found_before[peer] = self._found(peer)

    def on_peer_lost(self, peer: int) -> None:
        with self._changed:
            self._connected.discard(peer)
            self._reported.pop(peer, None)
            found, before = self._found(peer), self._found_before.pop(peer, [])
            for address in (now for now, then in zip(found, before, strict=False) if now != then):
                if address is not None:  # it has moved meanwhile
                    self._report(peer, address)
            self._note_news()

    def _found(self, peer: int) -> list[Address | None]:
        return [each.found.get(peer) for each in self._servers]

    def troubles(self) -> dict[int, str]:
        with self._changed:
            listed = set[int]().union(*(server.listed for server in self._servers))
            registered = [each for each in self._servers if self._is_served_by(each)]
            texts = [each.trouble for each in self._servers if each.trouble]
            missing = set(range(self._config.instance_count)) - self._connected
            missing.discard(self._config.instance_index)
            if not registered:
                return dict.fromkeys(missing, "; ".join(texts)) if texts else {}
            urls = ", ".join(each.registry.url for each in registered)
            absent = dict.fromkeys(missing - listed, f"it is not registered at {urls}")
            return {**absent, **self._unresolved}

    def _is_served_by(self, server: Server) -> bool:
        return server.has_listed if self._is_observer else server.registered_as is not None

    def stop_soon(self) -> None:
        """Each server's thread is interrupted where it waits for news, and leaves."""
        with self._changed:
            self._is_closed = True
            if self._close_by is None:
                self._close_by = time.monotonic() + CLOSE_TIMEOUT
            interrupted = [each for each in self._servers if not each.is_registering]
            self._changed.notify_all()
        for each in interrupted:
            each.registry.interrupt()

    def close(self) -> None:
        self.stop_soon()
        if self._reflexive is not None:
            self._reflexive.close()
        assert self._close_by is not None
        for each in self._servers:
            if each.thread is not None and each.thread is not threading.current_thread():
                each.thread.join(max(0.0, self._close_by - time.monotonic()))

    def _leave(self, server: Server) -> None:
        if server.registered_as is None:
            return
        registry = server.registry.successor()  # that one may have been interrupted
        registry.leave(self._config.instance_index, timeout=LEAVE_TIMEOUT)
        registry.close()

    # One thread for each server.

    def _registry_at(self, url: str) -> Registry:
        assert self._config.key is not None  # the settings of this mode have one
        return Registry(url, cluster_id=self._config.cluster_id, key=self._config.key)

    def _run(self, server: Server) -> None:
        while not self._is_closed:
            seen = self._news_count
            try:
                delay = self._turn(server)
            except DiscoveryError as error:
                delay = self._on_error(server, error)
            except Exception as error:  # a server may answer anything, and this thread must live
                logger.exception("! %s", server.registry.url)
                delay = self._on_trouble(server, DiscoveryError(f"{error!r}"))
            else:
                self._on_good_turn(server)
            self._pause(delay, seen)
        server.registry.close()
        self._leave(server)

    def _turn(self, server: Server) -> float:
        """Does what is due; returns for how long to wait after that."""
        if self._is_observer:
            return self._list(server, math.inf)
        registration = self._registration(server)
        if server.registered_as != registration:
            self._register(server, registration)
        if self._is_closed:
            return 0.0
        now = time.monotonic()
        try:
            if now >= server.heartbeat_at:
                server.registry.heartbeat(self._config.instance_index)
                server.heartbeat_at = now + self._spread(server.heartbeat_interval)
            return self._list(server, server.heartbeat_at - now)
        except (NotRegistered, RegistrationRefused):
            # It may say so of a cluster that it has never heard of, too: registering tells.
            logger.info("= %s has forgotten this instance: registering again", server.registry.url)
            server.registered_as = None
            return self._spread(FORMING_INTERVAL)

    def _register(self, server: Server, registration: Registration) -> None:
        with self._changed:
            if self._is_closed:
                return
            server.is_registering = True
        try:
            self._on_granted(server, server.registry.register(registration))
            self._on_registered(server, registration)
        finally:
            server.is_registering = False

    def _list(self, server: Server, until_heartbeat: float) -> float:
        began = time.monotonic()
        wait = 0.0 if self._is_complete() else min(LARGEST_WAIT, until_heartbeat)
        if self._reflexive is not None and self._reflexive.is_pending:  # soon to be published
            wait = min(wait, FORMING_INTERVAL)
        listing = server.registry.instances(server.revision, wait=wait)
        server.has_listed = True
        if listing is not None:
            server.revision = listing.revision
            self._take(server, listing.instances)
        if self._is_complete():  # by now: peers come and go while the server is asked
            return min(until_heartbeat, self._spread(COMPLETE_INTERVAL))
        # A server that tells revisions holds the next question until there is news; if it does.
        was_held = time.monotonic() - began > FORMING_INTERVAL
        is_held = bool(server.revision) and (listing is not None or was_held)
        return 0.0 if is_held else self._spread(FORMING_INTERVAL)

    def _registration(self, server: Server) -> Registration:
        hostname = own_hostname(self._config, self._destinations(server))
        if hostname is None:
            raise DiscoveryError(
                f"Failed to register with STUN server: {server.registry.url} cannot be reached: "
                "its name cannot be resolved, or no network interface has a route to it"
            )
        config = self._config
        return Registration(
            config.cluster_id,
            config.instance_index,
            hostname,
            config.direct_listen_port,
            config.role,
            self._boot_id,
            tuple(self._reflexive.candidates()) if self._reflexive is not None else (),
        )

    def _destinations(self, server: Server) -> list[tuple[str, int]]:
        """The peers; and before there are any, the server."""
        with self._changed:
            peers = list(self._reported.values())
        if peers:
            return peers
        url = urlsplit(server.registry.url)
        return [(url.hostname or "", url.port or (443 if url.scheme == "https" else 80))]

    def _on_granted(self, server: Server, granted: Registered) -> None:
        server.holder_ping = None
        server.heartbeat_interval = granted.heartbeat_interval or HEARTBEAT_INTERVAL
        hostname = urlsplit(server.registry.url).hostname
        if self._reflexive is not None and granted.stun_port is not None and hostname:
            self._reflexive.add_server((hostname, granted.stun_port))
        self._take(server, granted.instances)

    def _on_reflexive(self, address: Address) -> None:
        """Each server is told, those that hold a question when it is over."""
        with self._changed:
            self._note_news()

    def _on_registered(self, server: Server, registration: Registration) -> None:
        server.registered_as = registration
        server.was_taken_in = True
        server.heartbeat_at = time.monotonic() + self._spread(server.heartbeat_interval)
        where = address_text((registration.hostname, registration.port))
        logger.info("= registered at %s as %s", server.registry.url, where)

    def _on_good_turn(self, server: Server) -> None:
        server.retry_delay = FIRST_RETRY_DELAY
        if server.trouble:
            logger.info("= %s works again", server.registry.url)
            server.trouble = ""

    def _on_error(self, server: Server, error: DiscoveryError) -> float:
        if self._is_closed:  # it was interrupted
            return 0.0
        if isinstance(error, IndexHeld):
            return self._on_held(server, error)
        if isinstance(error, IndexTaken):
            return self._on_taken(server, error)
        return self._on_trouble(server, error)

    def _on_held(self, server: Server, error: IndexHeld) -> float:
        """It lives if it gives another sign of life; else its registration is to be had soon."""
        known, server.holder_ping = server.holder_ping, error.last_ping
        if known not in (None, error.last_ping):
            return self._on_taken(server, IndexTaken(f"{error}. It lives"))
        self._on_trouble(server, error)
        return self._spread(HELD_INTERVAL)

    def _on_taken(self, server: Server, error: IndexTaken) -> float:
        """Ends an instance that was never part of the cluster, and no other."""
        with self._changed:
            is_new = not self._connected and not any(each.was_taken_in for each in self._servers)
        if not is_new:
            return self._on_trouble(server, error)
        self._stop(error)
        return 0.0

    def _on_trouble(self, server: Server, error: DiscoveryError) -> float:
        text = str(error)
        level = logging.DEBUG if server.trouble == text else logging.WARNING
        server.trouble = text
        logger.log(level, "! %s; trying again", text)
        delay = server.retry_delay
        server.retry_delay = min(2 * delay, LARGEST_RETRY_DELAY)
        return self._spread(delay)

    def _stop(self, error: IndexTaken) -> None:
        with self._changed:
            is_first = not self._is_closed
            self._is_closed = True
            self._changed.notify_all()
        if is_first:
            assert self._on_failure is not None
            self._on_failure(error)

    def _note_news(self) -> None:
        """Under the lock: every server's thread has its turn."""
        self._news_count += 1
        self._changed.notify_all()

    def _pause(self, seconds: float, seen: int) -> None:
        """Until then, or until there is news that the turn, which began at `seen`, may lack."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._news_count != seen, seconds)

    def _spread(self, seconds: float) -> float:
        return seconds * self._rng.uniform(1.0 - JITTER, 1.0)

    def _is_complete(self) -> bool:
        return len(self._connected) == self._config.instance_count - 1

    # What servers list.

    def _take(self, server: Server, listed: tuple[Listed, ...]) -> None:
        count, own = self._config.instance_count, self._config.instance_index
        peers = {each.instance_index: each for each in listed if each.instance_index != own}
        with self._changed:
            before = server.listed
            server.listed = {index: each for index, each in peers.items() if index < count}
            for gone in before.keys() - server.listed.keys():
                server.found.pop(gone, None)
                server.lookups.pop(gone, None)
            self._forget(before.keys() - set().union(*(each.listed for each in self._servers)))
            for index, each in server.listed.items():
                is_moved = before.get(index) != each
                # Of a server that tells revisions a list is news, and a name may lead elsewhere.
                if is_moved or server.revision or index not in self._connected:
                    self._look_up(server, each, is_moved=is_moved)

    def _forget(self, unlisted: set[int]) -> None:
        """They are gone, or are reported anew once they are back. An observer is in no list."""
        for peer in unlisted:
            self._unresolved.pop(peer, None)
            if peer not in self._connected | self._observed:
                self._reported.pop(peer, None)
                self._told.pop(peer, None)

    def _look_up(self, server: Server, listed: Listed, *, is_moved: bool) -> None:
        """Under the lock: soon. A name may take its time, and that is nobody's but the names'."""
        peer = listed.instance_index
        if is_ip_literal(listed.hostname):
            with contextlib.suppress(OSError, UnicodeError):  # of IPv6, where the socket has none
                address = self._resolve(listed.hostname, listed.port)
                server.lookups.pop(peer, None)
                self._on_found(server, peer, address)
                return
        if is_moved or peer not in server.lookups:
            server.lookups[peer] = Lookup(listed, time.monotonic(), FIRST_LOOKUP_DELAY)
            self._changed.notify_all()

    def _look_up_names(self) -> None:
        """On a thread of its own."""
        while (due := self._next_lookup()) is not None:
            server, lookup = due
            peer = lookup.listed.instance_index
            try:
                address = self._resolve(lookup.listed.hostname, lookup.listed.port)
            except Exception as error:  # a server may list anything, and this thread must live
                self._on_unresolved(*due, getattr(error, "strerror", None) or str(error))
                continue
            with self._changed:
                if server.lookups.get(peer) is lookup:
                    del server.lookups[peer]
                    self._on_found(server, peer, address)

    def _next_lookup(self) -> tuple[Server, Lookup] | None:
        """Waits for the next one that is due; None: closed."""
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                lookups = [(each, it) for each in self._servers for it in each.lookups.values()]
                first = min(lookups, key=lambda each: each[1].at, default=None)
                if first is not None and first[1].at <= now:
                    return first
                self._changed.wait(None if first is None else first[1].at - now)
        return None

    def _on_unresolved(self, server: Server, lookup: Lookup, reason: str) -> None:
        """It is looked up again: a container is listed before its name server knows it."""
        peer = lookup.listed.instance_index
        with self._changed:
            if server.lookups.get(peer) is lookup:
                text = f"its address {lookup.listed.hostname} cannot be resolved: {reason}"
                self._unresolved[peer] = text
                lookup.at = time.monotonic() + lookup.delay
                lookup.delay = min(2 * lookup.delay, LARGEST_LOOKUP_DELAY)

    def _on_found(self, server: Server, peer: int, address: Address) -> None:
        """Under the lock. What is listed as before does not outdo where it was heard since."""
        self._unresolved.pop(peer, None)
        before, server.found[peer] = server.found.get(peer), address
        if address != before or peer not in self._told or peer in self._observed:
            self._report(peer, address)

    def _report(self, peer: int, address: Address, *, is_observer: bool = False) -> None:
        """Under the lock, which keeps two reports in their order: where it is, if that is news.

        Whoever was reported there before has it no more, and is reported again when it is lost,
        listed anew or heard.
        """
        if peer in self._connected or self._is_closed:
            return
        if is_observer:
            self._observed.add(peer)
        else:
            self._observed.discard(peer)
        if self._reported.get(peer) == address:
            return
        for known in (self._reported, self._told):
            for other in [each for each, where in known.items() if where == address]:
                del known[other]
            known[peer] = address
        logger.debug("= instance %d is at %s", peer, address_text(address))
        assert self._on_member is not None
        try:
            self._on_member(peer, address)
        except ConfigError as error:
            logger.warning("! instance %d cannot be reached: %s", peer, error)
