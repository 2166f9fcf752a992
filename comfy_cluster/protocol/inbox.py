"""Incoming messages of one connection: which are duplicates, and which ACKs are owed.

How it works: a sender repeats a message until its ACK arrives, and never sends one that is more
than `outbox.SPAN` messages ahead of its oldest unacknowledged one. The ids of the last `MEMORY`
messages, twice as many, therefore suffice to act on every message once, and memory is bounded.
"""

from __future__ import annotations

from comfy_cluster.wire import LARGEST_ACK, Ack

MEMORY = 4_096  # message ids; at least 2 * outbox.SPAN, see above


class Inbox:
    def __init__(self) -> None:
        self._seen: dict[int, None] = {}
        self._owed: list[int] = []

    def on_message(self, message_id: int) -> bool:
        """Note a message that asks for an ACK. True: it is new. False: act on it no more."""
        self._owed.append(message_id)
        if message_id in self._seen:
            return False
        self._seen[message_id] = None
        if len(self._seen) > MEMORY:
            del self._seen[next(iter(self._seen))]
        return True

    def take_acks(self) -> list[Ack]:
        """The ACKs to send now, as few as possible; they are owed no longer."""
        owed = tuple(dict.fromkeys(self._owed))
        self._owed.clear()
        return [
            Ack(owed[start : start + LARGEST_ACK]) for start in range(0, len(owed), LARGEST_ACK)
        ]
