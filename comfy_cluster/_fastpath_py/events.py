"""What the engine tells the layer above: kinds of events, and the names of its counters."""

from __future__ import annotations

EVENT_HELLO = 0
EVENT_MESSAGE = 1
EVENT_INCOMING_COMPLETE = 2
EVENT_OUTGOING_ACKED = 3
EVENT_PACKET_SIZE = 4
EVENT_STUN = 5

COUNTERS = (
    "malformed",
    "unknown_address",
    "unknown_session",
    "wrong_address",
    "replayed",
    "unknown_buffer",
    "bad_chunk",
    "bad_sack",
    "messages_dropped",
    "stun_dropped",
)
