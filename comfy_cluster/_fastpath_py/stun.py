"""STUN packets on an instance's own socket (RFC 8489): which of them the layer above waits for.

A server answers a request where it came from, so the answer to a question about this socket comes
in among our packets. Its first byte, 0 to 3, tells it from those (RFC 7983 section 7), its
transaction id from packets that nobody asked for. What else it holds is not looked at here.
"""

from __future__ import annotations

STUN_COOKIE = 0x2112A442  # RFC 8489 section 5
STUN_HEADER_SIZE = 20
STUN_ID_SIZE = 12
LARGEST_STUN_PACKET = 548  # 576 bytes less IP and UDP headers (RFC 8489 section 6.1)
MAX_STUN_TRANSACTIONS = 8
STUN_QUEUE_LIMIT = 16  # packets not yet taken; more are dropped: requests are sent again

_COOKIE = STUN_COOKIE.to_bytes(4, "big")


class StunTransactions:
    """The transaction ids that are waited for, and how many packets with them were not taken."""

    def __init__(self) -> None:
        self.waiting = 0
        self._ids: list[bytes] = []

    def expect(self, transaction_id: bytes) -> None:
        """Twice is once. Raises ValueError."""
        if len(transaction_id) != STUN_ID_SIZE:
            raise ValueError(
                f"a transaction id has {STUN_ID_SIZE} bytes, not {len(transaction_id)}"
            )
        if transaction_id in self._ids:
            return
        if len(self._ids) == MAX_STUN_TRANSACTIONS:
            raise ValueError(f"{MAX_STUN_TRANSACTIONS} transactions are waited for already")
        self._ids.append(bytes(transaction_id))

    def forget(self, transaction_id: bytes) -> None:
        """Unknown ids are ignored."""
        if transaction_id in self._ids:
            self._ids.remove(transaction_id)

    def is_expected(self, packet: bytes) -> bool:
        """Whether it is a STUN packet with one of the ids."""
        if not self._ids or not STUN_HEADER_SIZE <= len(packet) <= LARGEST_STUN_PACKET:
            return False
        return packet[0] <= 3 and packet[4:8] == _COOKIE and packet[8:20] in self._ids
