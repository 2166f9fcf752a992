"""Keeps the address that the world sees this instance's socket under: asks STUN servers for it.

It sends nothing itself: `ask` does, through the socket that the peers are talked to by. Used by the
discovery that publishes what it finds.

How it works: one thread asks at the start, and then every 20 to 25 s for as long as it is needed: a
NAT forgets a socket that was silent for 30 s, and gives it another port. The servers are asked in
turn, the one that answered last first, until one answers. Where none does, the address that was
known stays: a wrong one costs those who try it nothing but the try.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from comfy_cluster.config import ClusterConfig
from comfy_cluster.discovery.base import Address, address_text
from comfy_cluster.discovery.candidates import (
    Candidate,
    host_addresses,
    is_publishable,
    own_candidates,
)
from comfy_cluster.discovery.static import Resolver, resolve_ipv4, resolve_ipv6
from comfy_cluster.errors import ClusterError, DiscoveryError

logger = logging.getLogger("comfy_cluster.discovery")

ASK_TIMEOUT = 3.0  # seconds for one server: three requests (RFC 8489, section 6.2.1)
ASK_INTERVAL = (20.0, 25.0)  # seconds, at random; conntrack of Linux forgets after 30
FIRST_RETRY_DELAY = 1.0  # seconds after a round without an answer; then it doubles
CLOSE_TIMEOUT = 0.5  # seconds; a name being looked up cannot be interrupted


class Answer(Protocol):
    """An answer that is waited for: a handle of the transport."""

    def result(self, timeout: float | None = None) -> Address:
        """Blocks. ClusterError: there is none."""

    def cancel(self) -> object:
        """Ends the wait."""


class Ask(Protocol):
    """`Transport.ask_reflexive`."""

    def __call__(self, server: Address, *, timeout: float) -> Answer:
        """ClusterError: it cannot be asked."""


class AskingTimes:
    """When to ask next. Not thread-safe."""

    def __init__(
        self, now: float, *, rng: random.Random, interval: tuple[float, float] = ASK_INTERVAL
    ) -> None:
        self.ask_at = now
        self._rng = rng
        self._interval = interval
        self._retry_delay = FIRST_RETRY_DELAY

    def on_answer(self, now: float) -> None:
        self._retry_delay = FIRST_RETRY_DELAY
        self.ask_at = now + self._rng.uniform(*self._interval)

    def on_silence(self, now: float) -> None:
        """No server answered."""
        self.ask_at = now + min(self._retry_delay, self._rng.uniform(*self._interval))
        self._retry_delay *= 2


class ReflexiveAddress:
    """Thread-safe; all methods return at once, `close` within half a second."""

    def __init__(
        self,
        config: ClusterConfig,
        servers: Sequence[tuple[str, int]],
        *,
        ask: Ask,
        on_change: Callable[[Address], object],
        resolve: Resolver | None = None,
        rng: random.Random | None = None,
        interval: tuple[float, float] = ASK_INTERVAL,
    ) -> None:
        """`servers`: hostname and UDP port. `on_change(address)` is called on a thread of this
        class whenever the address became another one; it must not raise."""
        self._config = config
        self._servers = list(servers)
        self._ask = ask
        self._on_change = on_change
        default: Resolver = resolve_ipv6 if ":" in config.listen_address else resolve_ipv4
        self._resolve = resolve or default
        self._times = AskingTimes(0.0, rng=rng or random.Random(), interval=interval)
        self._changed = threading.Condition()  # guards what is below
        self._resolved: dict[tuple[str, int], Address] = {}
        self._address: Address | None = None
        self._trouble = ""
        self._is_needed = True
        self._is_closed = False
        self._answer: Answer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """The transport must have been started. Without servers nothing is asked."""
        with self._changed:
            self._start()

    def add_server(self, server: tuple[str, int]) -> None:
        """It is asked too, where those that are known do not answer; starts what is not started."""
        with self._changed:
            if server not in self._servers:
                self._servers.append(server)
            self._start()

    def _start(self) -> None:
        if not self._servers or self._is_closed or self._thread is not None:
            return
        thread = threading.Thread(target=self._run, name="comfy-cluster-reflexive", daemon=True)
        thread.start()
        self._thread = thread  # once it is there to be waited for

    def set_needed(self, is_needed: bool) -> None:
        """False: nobody looks for this instance, such as when all peers are connected."""
        with self._changed:
            self._is_needed = is_needed
            self._changed.notify_all()

    @property
    def address(self) -> Address | None:
        """As a server saw it last; None: none has answered yet."""
        with self._changed:
            return self._address

    @property
    def is_pending(self) -> bool:
        """Whether the first round of questions has not ended yet."""
        with self._changed:
            return self._thread is not None and self._address is None and not self._trouble

    @property
    def trouble(self) -> str:
        """Why the last round of questions had no answer, for the user; empty: it had one."""
        with self._changed:
            return self._trouble

    def candidates(self) -> list[Candidate]:
        """Where this instance may be reached, best first: of interfaces, and the reflexive one."""
        with self._changed:
            reflexive, destinations = self._address, list(self._resolved.values())
        return own_candidates(
            host_addresses(self._config, destinations),
            self._config.direct_listen_port,
            reflexive=reflexive,
            single_host=self._config.single_host,
        )

    def close(self) -> None:
        """Twice is fine."""
        with self._changed:
            self._is_closed = True
            answer = self._answer
            self._changed.notify_all()
        if answer is not None:
            answer.cancel()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_TIMEOUT)

    # The thread

    def _run(self) -> None:
        while self._wait_until_due():
            found = self._ask_all()
            if found is None:
                self._times.on_silence(time.monotonic())
            else:
                self._times.on_answer(time.monotonic())
                self._take(found)

    def _wait_until_due(self) -> bool:
        """False: closed."""
        with self._changed:
            while not self._is_closed:
                left = self._times.ask_at - time.monotonic()
                if left <= 0 and self._is_needed:
                    return True
                self._changed.wait(left if self._is_needed else None)
            return False

    def _ask_all(self) -> Address | None:
        """The first answer; None: there is none, and `trouble` says why."""
        troubles = []
        with self._changed:
            servers = list(self._servers)
        for server in servers:
            try:
                found = self._ask_one(server)
            except (OSError, UnicodeError) as error:
                troubles.append(f"{server[0]} cannot be resolved: {error}")
            except ClusterError as error:
                troubles.append(str(error))
            else:
                with self._changed:
                    self._servers.remove(server)
                    self._servers.insert(0, server)
                return found
            if self._is_closed:
                return None
        self._note_trouble("; ".join(troubles))
        return None

    def _ask_one(self, server: tuple[str, int]) -> Address:
        """Raises OSError, UnicodeError, ClusterError."""
        resolved = self._resolve(*server)
        answer = self._ask(resolved, timeout=ASK_TIMEOUT)
        with self._changed:
            self._resolved[server] = resolved
            self._answer = answer
            is_closed = self._is_closed
        if is_closed:  # before the answer could be cancelled there
            answer.cancel()
        found = answer.result()
        if not is_publishable(found[0], single_host=self._config.single_host):
            raise DiscoveryError(
                f"STUN server {address_text(server)} sees this instance at {found[0]}, where no"
                " other machine can reach it"
            )
        return found

    def _take(self, found: Address) -> None:
        with self._changed:
            self._trouble = ""
            has_changed = not self._is_closed and self._address != found
            self._address = found
        if has_changed:
            server = address_text(self._servers[0])
            logger.info("= seen at %s by STUN server %s", address_text(found), server)
            self._on_change(found)

    def _note_trouble(self, text: str) -> None:
        with self._changed:
            is_known, self._trouble = bool(self._trouble), text
        logger.log(logging.DEBUG if is_known else logging.INFO, "! no reflexive address: %s", text)
