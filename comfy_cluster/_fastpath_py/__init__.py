"""The packet engine in pure Python: the readable definition, and the engine where nothing compiled.

Same names and behaviour as the compiled `_fastpath`; only `comfy_cluster.fastpath` imports it.
"""

from .bitmap import HISTORY_WINDOW, ChunkBitmap, ReceiveHistory
from .bitpack import pack_rows, unpack_rows
from .ceiling import HAS_CEILING, ceiling_receive, ceiling_send
from .congestion import CongestionController
from .engine import MAX_PEERS, PacketEngine
from .events import (
    COUNTERS,
    EVENT_HELLO,
    EVENT_INCOMING_COMPLETE,
    EVENT_MESSAGE,
    EVENT_OUTGOING_ACKED,
    EVENT_PACKET_SIZE,
    EVENT_STUN,
)
from .levels import find_levels, restore_values, undo_up_filter
from .mtu import PROBE_SIZES, PathMtu
from .packet import (
    CHUNK_HEADER_SIZE,
    HEADER_SIZE,
    KIND_CHUNK,
    KIND_HELLO,
    KIND_MESSAGE,
    KIND_PROBE,
    KIND_SACK,
    MAX_PACKET_SIZE,
    MESSAGE_PAYLOAD_LIMIT,
    MIN_PACKET_SIZE,
    SACK_HEADER_SIZE,
    SACK_MAX_WORDS,
    TAG_SIZE,
    chunk_size_for,
    pack_chunk_header,
    pack_header,
    pack_sack,
    parse_chunk_header,
    parse_header,
    parse_sack,
)
from .path import Pacer, RttEstimator
from .stun import MAX_STUN_TRANSACTIONS

IS_COMPILED = False
HAS_LOOPS = False  # the socket loops of this engine are Python threads in transport/

__all__ = [
    "CHUNK_HEADER_SIZE",
    "COUNTERS",
    "EVENT_HELLO",
    "EVENT_INCOMING_COMPLETE",
    "EVENT_MESSAGE",
    "EVENT_OUTGOING_ACKED",
    "EVENT_PACKET_SIZE",
    "EVENT_STUN",
    "HAS_CEILING",
    "HAS_LOOPS",
    "HEADER_SIZE",
    "HISTORY_WINDOW",
    "IS_COMPILED",
    "KIND_CHUNK",
    "KIND_HELLO",
    "KIND_MESSAGE",
    "KIND_PROBE",
    "KIND_SACK",
    "MAX_PACKET_SIZE",
    "MAX_PEERS",
    "MAX_STUN_TRANSACTIONS",
    "MESSAGE_PAYLOAD_LIMIT",
    "MIN_PACKET_SIZE",
    "PROBE_SIZES",
    "SACK_HEADER_SIZE",
    "SACK_MAX_WORDS",
    "TAG_SIZE",
    "ChunkBitmap",
    "CongestionController",
    "Pacer",
    "PacketEngine",
    "PathMtu",
    "ReceiveHistory",
    "RttEstimator",
    "ceiling_receive",
    "ceiling_send",
    "chunk_size_for",
    "find_levels",
    "pack_chunk_header",
    "pack_header",
    "pack_rows",
    "pack_sack",
    "parse_chunk_header",
    "parse_header",
    "parse_sack",
    "restore_values",
    "undo_up_filter",
    "unpack_rows",
]
