"""What every way of finding the other instances offers to the cluster.

Used by `cluster/`; each mode (static, broadcast, stun) is a module of its own beside this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from comfy_cluster.errors import DiscoveryError

Address = tuple[str, int]
"""IP literal and UDP port."""

MemberListener = Callable[[int, Address], None]
FailureListener = Callable[[DiscoveryError], None]


def address_text(address: tuple[str, int]) -> str:
    """`host:port`, with brackets around IPv6 literals."""
    hostname, port = address
    return f"[{hostname}]:{port}" if ":" in hostname else f"{hostname}:{port}"


class Discovery(Protocol):
    """Finds out at which address each peer may be reached; whether it *is* reached, others tell.

    Calls `on_member(peer, address)` from any thread, again whenever an address changes; it must not
    block nor call back, as it may be called under a lock, which keeps reports in order. Calls
    `on_failure(error)` once if this instance cannot be part of the cluster, such as when its index
    is another one's; it then looks no further. All methods but `close` return at once, and that one
    within a second. Closing twice is fine.
    """

    def start(self, on_member: MemberListener, on_failure: FailureListener) -> None:
        """Starts looking. DiscoveryError: it cannot even begin."""

    def on_heard(self, peer: int, address: Address, *, is_observer: bool = False) -> None:
        """`peer` says HELLO from an address that was not reported. Blocks for no time at all.

        Nothing comes of it before `start`, when there is nobody to tell: HELLOs are said again.
        `is_observer`: one who only looks, in its place; he gives way to every member.
        """

    def on_peer_connected(self, peer: int) -> None:
        """`peer` is reached: nobody needs to look for it any more."""

    def on_peer_lost(self, peer: int) -> None:
        """`peer` was lost: it may come back under another address."""

    def troubles(self) -> Mapping[int, str]:
        """By peer: what keeps its address from being found, in words for the user."""

    def stop_soon(self) -> None:
        """Begins to stop looking."""

    def close(self) -> None:
        """Stops looking."""
