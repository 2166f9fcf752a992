# C values as Python sees them, and back: what PacketEngine needs besides its state.

cdef int check_message_size(bytes payload) except -1:
    if len(payload) > C_MESSAGE_PAYLOAD_LIMIT:
        raise ValueError(
            f"a message payload holds at most {C_MESSAGE_PAYLOAD_LIMIT} bytes, not {len(payload)}"
        )
    return 0


cdef tuple show_stranger(bytes packed):
    # An address that Python never named: IPv4 in IPv6 as IPv4.
    ip = ipaddress.ip_address(packed[:16])
    return str(ip.ipv4_mapped or ip), int.from_bytes(packed[16:], "big")


cdef bytes join_packet(const OutPacket* out):
    cdef bytes packet = PyBytes_FromStringAndSize(NULL, out.size)
    cdef char* at = PyBytes_AS_STRING(packet)
    cdef int part
    memcpy(at, out.head, out.head_size)
    at += out.head_size
    for part in range(2):
        if out.part_sizes[part]:
            memcpy(at, out.parts[part], out.part_sizes[part])
            at += out.part_sizes[part]
    return packet


cdef dict flow_numbers(const PeerFlow* flow):
    # docs/protocol.md says what each number means.
    return {
        "packet_size": flow.mtu.packet_size,
        "receive_window": flow.receive_window,
        "packets_sent": flow.packets_sent,
        "packets_received": flow.packets_received,
        "bytes_sent": flow.bytes_sent,
        "bytes_received": flow.bytes_received,
        "chunks_sent": flow.chunks_sent,
        "chunks_retransmitted": flow.chunks_retransmitted,
        "bytes_retransmitted": flow.bytes_retransmitted,
        "chunks_received": flow.chunks_received,
        "chunks_duplicate": flow.chunks_duplicate,
        "packets_lost": flow.packets_lost,
        "spurious_losses": flow.spurious_losses,
        "probes_sent": flow.probes_sent,
        "sacks_sent": flow.sacks_sent,
        "sacks_received": flow.sacks_received,
        "last_received_at": flow.last_received_at,
        "smoothed_rtt": flow.rtt.smoothed,
        "rtt_variance": flow.rtt.variance,
        "min_rtt": flow.rtt.minimum,
        "congestion_window": congestion_window(&flow.congestion),
        "window": flow_window(flow),
        "bandwidth": flow.congestion.bandwidth,
        "bytes_in_flight": flow.sent.bytes_in_flight,
    }


cdef class _Addresses:
    # As Python has them and as the engine does; Python's own objects come back where it named them.
    cdef dict _packed  # (ip, port) -> 18 bytes; only addresses that Python named
    cdef dict _named   # 18 bytes -> (ip, port)

    def __cinit__(self):
        self._packed = {}
        self._named = {}

    cdef bytes pack(self, address):
        packed = self._packed.get(address)
        if packed is None:
            ip = ipaddress.ip_address(address[0])
            mapped = ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed
            packed = mapped + int(address[1]).to_bytes(2, "big")
        return packed

    cdef int load(self, address, PeerAddress* to, bint remember) except -1:
        cdef bytes packed = self.pack(address)
        if remember:
            self._packed[address] = packed
            self._named[packed] = address
        memcpy(to.ip, PyBytes_AS_STRING(packed), 16)
        to.port = <uint16_t>((<uint8_t>packed[16] << 8) | <uint8_t>packed[17])
        return 0

    cdef name(self, const PeerAddress* address):
        packed = address.ip[:16] + int(address.port).to_bytes(2, "big")
        known = self._named.get(packed)
        return show_stranger(packed) if known is None else known
