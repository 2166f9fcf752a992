"""The packet engine: the contract that both `_fastpath` (compiled) and `_fastpath_py` (twin) keep.

Sans-I/O: packets and `now` (monotonic seconds) go in, packets and events come out. The compiled
engine also has loops that do the same on a socket, without the GIL (`HAS_LOOPS`).

Sizes are bytes of UDP payload, times are seconds, addresses are (IP literal, port). A packet from
the network never raises: what is not acceptable is counted (`PacketEngine.stats`) and dropped.
docs/protocol.md describes the packets and the rules.
"""

from typing import Final

from typing_extensions import Buffer

Address = tuple[str, int]

KIND_HELLO: Final[int]
KIND_MESSAGE: Final[int]
KIND_CHUNK: Final[int]
KIND_SACK: Final[int]
KIND_PROBE: Final[int]
HEADER_SIZE: Final[int]
CHUNK_HEADER_SIZE: Final[int]
SACK_HEADER_SIZE: Final[int]
TAG_SIZE: Final[int]
MIN_PACKET_SIZE: Final[int]
PROBE_SIZES: Final[tuple[int, ...]]
MAX_PACKET_SIZE: Final[int]
MESSAGE_PAYLOAD_LIMIT: Final[int]
SACK_MAX_WORDS: Final[int]
HISTORY_WINDOW: Final[int]
MAX_PEERS: Final[int]
MAX_STUN_TRANSACTIONS: Final[int]
COUNTERS: Final[tuple[str, ...]]
EVENT_HELLO: Final[int]
EVENT_MESSAGE: Final[int]
EVENT_INCOMING_COMPLETE: Final[int]
EVENT_OUTGOING_ACKED: Final[int]
EVENT_PACKET_SIZE: Final[int]
EVENT_STUN: Final[int]
IS_COMPILED: Final[bool]
HAS_LOOPS: Final[bool]
HAS_CEILING: Final[bool]

def chunk_size_for(packet_size: int) -> int:
    """Return the payload bytes of a chunk in packets of `packet_size` bytes."""

def pack_header(kind: int, session: int, counter: int) -> bytes: ...
def parse_header(packet: bytes) -> tuple[int, int, int] | None:
    """Return (kind, session, counter), or None for anything but a packet of this protocol."""

def pack_chunk_header(
    buffer_id: int, chunk_index: int, total_chunks: int, chunk_size: int
) -> bytes: ...
def parse_chunk_header(payload: bytes) -> tuple[int, int, int, int] | None: ...
def pack_sack(largest: int, ack_delay_us: int, receive_window: int, words: list[int]) -> bytes: ...
def parse_sack(payload: bytes) -> tuple[int, int, int, list[int]] | None: ...

class ChunkBitmap:
    """Which of `chunk_count` chunks are there."""

    def __init__(self, chunk_count: int) -> None: ...
    @property
    def chunk_count(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def is_complete(self) -> bool: ...
    def add(self, index: int) -> bool:
        """Return True when the chunk is new, False when it was there or is out of range."""

    def __contains__(self, index: int) -> bool: ...
    def first_missing(self) -> int: ...
    def missing_ranges(self, limit: int) -> list[tuple[int, int]]: ...

class ReceiveHistory:
    """The last `HISTORY_WINDOW` packet counters of a peer."""

    @property
    def largest(self) -> int: ...
    def is_new(self, counter: int) -> bool: ...
    def add(self, counter: int) -> None: ...
    def sack_words(self) -> list[int]: ...

class RttEstimator:
    """Smoothed round-trip time and its variance (RFC 6298), seconds."""

    @property
    def has_sample(self) -> bool: ...
    @property
    def latest(self) -> float: ...
    @property
    def smoothed(self) -> float: ...
    @property
    def variance(self) -> float: ...
    @property
    def minimum(self) -> float: ...
    @property
    def retransmit_timeout(self) -> float: ...
    def loss_delay(self, reordering: float) -> float: ...
    def on_sample(self, sample: float, ack_delay: float = 0.0) -> None: ...

class CongestionController:
    """Window and pacing rate of one path; seconds and bytes of UDP payload."""

    packet_size: int
    def __init__(self, packet_size: int, phase: int = 0) -> None: ...
    @property
    def window(self) -> int: ...
    @property
    def underway(self) -> int: ...
    @property
    def bandwidth(self) -> float: ...
    @property
    def min_rtt(self) -> float: ...
    @property
    def mode(self) -> int: ...
    @property
    def is_startup(self) -> bool: ...
    @property
    def is_competing(self) -> bool: ...
    def pacing_rate(self, smoothed_rtt: float) -> float: ...
    def set_packet_size(self, packet_size: int) -> None: ...
    def on_restart(self, now: float) -> None: ...
    def on_app_limited(self) -> None: ...
    def on_sack(
        self, acked: int, newest_sent_at: float, rtt: float, bytes_in_flight: int, now: float
    ) -> None: ...
    def on_packets_lost(self, lost: int, newest_sent_at: float, rtt: float, now: float) -> None: ...
    def on_persistent_loss(self) -> None: ...

class PathMtu:
    """The search for the largest packet that a path carries (RFC 8899)."""

    def __init__(self, packet_size: int, largest_packet_size: int, now: float) -> None: ...
    @property
    def packet_size(self) -> int: ...
    @property
    def probe_size(self) -> int: ...
    @property
    def due_at(self) -> float: ...
    def probe_due_at(self) -> float: ...
    def on_probe_sent(self, counter: int, timeout: float, now: float) -> None: ...
    def on_timer(self, now: float) -> bool: ...
    def on_acked(self, counter: int, now: float) -> bool: ...
    def verify(self, now: float) -> None: ...

class Pacer:
    """A token bucket: when the next packet may go (RFC 9002 section 7.7)."""

    packet_size: int
    def __init__(self, packet_size: int) -> None: ...
    def refill(self, now: float, rate: float) -> None: ...
    @property
    def ready_at(self) -> float: ...
    def on_packet_sent(self, size: int) -> None: ...

class PacketEngine:
    """All flows of one instance. Any thread may call any method."""

    def __init__(
        self,
        *,
        burst_size: int = 174,
        receive_capacity: int = 1 << 20,
        keepalive_interval: float = 0.0,
        strangers_per_second: float = 0.0,
    ) -> None:
        """`burst_size`: packets a burst. `receive_capacity`: bytes that the socket's buffer holds,
        shared among the peers that send. `keepalive_interval`: seconds without a packet to a peer
        after which a SACK shows that this instance is there, even while its Python does not run;
        0.0: never. It ends when no message was sent for many of them. `strangers_per_second`:
        HELLOs from addresses that are not allowed, which are events too; more are dropped."""

    def allow_address(self, address: Address) -> None:
        """Accept all HELLO packets from this address; see `strangers_per_second` for others."""

    def disallow_address(self, address: Address) -> None: ...
    def connect_peer(
        self,
        peer: int,
        address: Address,
        *,
        local_session: int,
        remote_session: int,
        packet_size: int = ...,
        largest_packet_size: int = 0,
        now: float,
    ) -> None:
        """Start a flow with a peer; an older one with it, and its buffers, end without events.

        Packets to the peer carry `remote_session`, packets from it must carry `local_session` and
        come from `address`. `packet_size` is what the path surely carries; up to
        `largest_packet_size` is probed. Raises ValueError for values out of range.
        """

    def disconnect_peer(self, peer: int) -> None: ...
    def send_hello(self, address: Address, payload: bytes) -> None:
        """Queue a HELLO packet: no session, no acknowledgement."""

    def send_message(self, peer: int, payload: bytes) -> bool:
        """Queue a message; it is sent once, before any chunk. False: not connected, or too many
        are queued. Raises ValueError above MESSAGE_PAYLOAD_LIMIT."""

    def expect_stun(self, transaction_id: bytes) -> None:
        """From now on a STUN packet (RFC 8489) with this id is EVENT_STUN, wherever it comes from;
        all others are malformed. At most 16 wait to be taken, more are dropped. Raises ValueError
        when it has not 12 bytes, or MAX_STUN_TRANSACTIONS others are expected."""

    def forget_stun(self, transaction_id: bytes) -> None:
        """Its packets are malformed from now on. Unknown ids are ignored."""

    def open_outgoing(
        self, peer: int, buffer_id: int, prefix: bytes, body: Buffer, *, chunk_size: int
    ) -> None:
        """Send `prefix`, then `body`, as one buffer; the memory of `body` is read until it is
        closed. EVENT_OUTGOING_ACKED follows once every chunk is acknowledged."""

    def open_relay(self, peer: int, buffer_id: int, source_id: int, *, chunk_size: int) -> None:
        """Pass on to `peer` what incoming buffer `source_id` receives, as it arrives without gaps.

        Otherwise as `open_outgoing`. The relay holds on to the memory: the source may be closed,
        and once it was complete the relay still ends. Raises ValueError when no such buffer is
        being received."""

    def close_outgoing(self, buffer_id: int) -> None:
        """Stop sending. When it returns the memory is no longer read. Unknown ids are ignored."""

    def open_incoming(
        self, peer: int, buffer_id: int, destination: Buffer, *, size: int, chunk_size: int
    ) -> None:
        """Accept a buffer of `size` bytes into `destination`. EVENT_INCOMING_COMPLETE follows once
        every chunk is there. Raises ValueError when the memory is too small."""

    def close_incoming(self, buffer_id: int) -> None:
        """Refuse further chunks. When it returns the memory is no longer written."""

    def receive_packet(self, packet: bytes, address: Address, now: float) -> None: ...
    def packets_to_send(self, now: float, *, limit: int = 0) -> list[tuple[Address, bytes]]:
        """Do what is due, and return up to `limit` packets (0: a burst)."""

    def next_timer(self) -> float | None:
        """Return when `packets_to_send` has something to do; 0.0: at once, None: never."""

    def take_events(self) -> list[tuple[object, ...]]:
        """Return what happened since the last call, in order:

        (EVENT_HELLO, address, payload), (EVENT_STUN, address, packet),
        (EVENT_MESSAGE, peer, payload),
        (EVENT_INCOMING_COMPLETE, peer, buffer_id), (EVENT_OUTGOING_ACKED, peer, buffer_id),
        (EVENT_PACKET_SIZE, peer, packet_size): the path was found to carry larger packets, or no
        more than this; then outgoing buffers in larger chunks have fallen silent.
        """

    def peer_stats(self, peer: int) -> dict[str, float | int]:
        """Return the peer's numbers, named in docs/protocol.md. Raises ValueError for an unknown
        peer."""

    def stats(self) -> dict[str, int]:
        """Return how many packets were dropped, by reason."""

    # The compiled engine only.

    @property
    def event_fd(self) -> int:
        """A descriptor that is readable while `take_events` has something to return."""

    def clear_event_fd(self) -> None:
        """Make `event_fd` quiet again; `take_events` comes after it."""

    def receive_loop(self, fd: int, *, use_gro: bool = True, use_mmsg: bool = True) -> None:
        """Receive from the UDP socket `fd` until `stop_loops`; send SACKs on it. Without the GIL.
        Raises OSError when the socket is beyond use."""

    def send_loop(self, fd: int, *, use_gso: bool = True, use_mmsg: bool = True) -> None:
        """Send on the UDP socket `fd` until `stop_loops`. Without the GIL. Raises OSError when the
        socket is beyond use."""

    def stop_loops(self) -> None:
        """Make both loops return, for good."""

    def close_loops(self) -> None:
        """Close the loops' descriptors; to be called when both have returned."""

    def loop_stats(self) -> dict[str, int]:
        """Return receive_calls, send_calls, send_errors, receive_errors, socket_full."""

# Pixels, for the codec. Memory of any alignment; released GIL.

def find_levels(values: Buffer, levels: Buffer) -> bool:
    """Write the level k = 0..255 of each float32 in `values` to `levels`, a byte each.

    False as soon as a value has not the very bits of float32(k) / float32(255); what `levels` holds
    means nothing then. ValueError: sizes that do not match.
    """

def restore_values(levels: Buffer, values: Buffer) -> None:
    """Write float32(k) / float32(255) for each level k: the inverse of `find_levels`."""

def undo_up_filter(rows: Buffer, row_size: int) -> None:
    """Add to each row of bytes the row above it, modulo 256, from the second row on, in place.

    The inverse of PNG's "up" filter (RFC 2083 section 6.4). ValueError: no whole rows.
    """

def pack_rows(rows: Buffer, row_size: int, *, stride: int, has_above: bool) -> bytearray:
    """Rows of bytes in few bits each; _fastpath_py/bitpack.py tells the form.

    `stride`: bytes of a pixel, of which a row has a whole number. `has_above`: the first row is not
    packed; it is the one above the others, which has to be there when they are unpacked.
    ValueError: no whole rows, or none to pack. MemoryError.
    """

def unpack_rows(
    packed: Buffer, rows: Buffer, row_size: int, *, stride: int, has_above: bool
) -> bool:
    """Fill `rows` from what `pack_rows` made of so many bytes; with `has_above` all but the first.

    False, before anything is written, if the head of `packed` does not fit its size and that of the
    rows. Blocks that are wider than they need to be, and what fills the last one up, are no matter.
    ValueError: no whole rows, or none to fill.
    """

# The raw ceiling, for benchmarks: memory to memory over UDP with no protocol. Where HAS_CEILING is
# false (the pure-Python engine; not Linux) both raise OSError (ENOSYS).

def ceiling_send(
    fd: int, source: Buffer, *, segment_size: int, window: int, nonce: int, timeout: float
) -> dict[str, int]:
    """Send `source` on a connected UDP socket, at most `window` bytes at once, without the GIL.

    Returns `bytes` (what the receiver said it has: less than all where packets were lost, which are
    not sent again) and `calls` (system calls). TimeoutError: no receiver was ready for `timeout`
    seconds. ValueError: a window of less than MAX_PACKET_SIZE, or an impossible segment size.
    """

def ceiling_receive(
    fd: int, destination: Buffer, *, window: int, nonce: int, timeout: float
) -> dict[str, int]:
    """Receive the bytes of `ceiling_send` with the same nonce, in the order of their arrival.

    Returns `bytes` and `calls`. TimeoutError: they were not all there after `timeout` seconds.
    """
