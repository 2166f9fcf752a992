# What the relay knows of a frame: its place, how many packets it is on the wire, and how to cut it.
#
# A frame is what a TAP device hands over: a virtio header, then an Ethernet frame, which may be a
# super-packet: IPv4 with TCP or UDP whose payload the sender's kernel left to be cut (GSO). Cutting
# is as in section 5.2.10 of the virtio specification, and net/ipv4/tcp_offload.c.

cdef enum:
    VIRTIO_HEADER = 10
    ETHERNET_HEADER = 14
    SMALLEST_SUPER = 10 + 14 + 20 + 13  # up to the byte that tells the size of a TCP header
    LARGEST_HEADERS = 10 + 14 + 60 + 60
    GSO_NONE = 0
    GSO_TCP4 = 1
    GSO_UDP = 5
    GSO_ECN = 0x80
    TCP = 6
    TCP_FIN = 0x01
    TCP_PUSH = 0x08
    TCP_CWR = 0x80


cdef packed struct Virtio:
    uint8_t flags
    uint8_t gso_type
    uint16_t header_size
    uint16_t segment_size
    uint16_t checksum_start
    uint16_t checksum_offset


cdef struct Frame:
    uint32_t size  # bytes, with the virtio header
    uint32_t header_size  # bytes before the payload that is cut, with the virtio header
    uint32_t segment_size  # payload bytes of a packet
    uint32_t packet_count
    uint32_t pieces  # that were not written yet; the frame's slot is free at 0
    uint32_t next


cdef inline uint32_t get16(const uint8_t* data) noexcept nogil:
    return (<uint32_t>data[0] << 8) | data[1]


cdef inline void set16(uint8_t* data, uint32_t value) noexcept nogil:
    data[0] = (value >> 8) & 0xFF
    data[1] = value & 0xFF


cdef inline uint32_t get32(const uint8_t* data) noexcept nogil:
    return (get16(data) << 16) | get16(data + 2)


cdef inline void set32(uint8_t* data, uint32_t value) noexcept nogil:
    set16(data, value >> 16)
    set16(data + 2, value & 0xFFFF)


cdef bint frame_parse(Frame* frame, const uint8_t* data, uint32_t size) noexcept nogil:
    """False: no frame that can be carried."""
    cdef const Virtio* virtio = <const Virtio*>data
    cdef const uint8_t* ip = data + VIRTIO_HEADER + ETHERNET_HEADER
    cdef uint8_t kind = virtio.gso_type & ~GSO_ECN
    cdef uint32_t ip_size
    if size < VIRTIO_HEADER + ETHERNET_HEADER:
        return False
    frame.size, frame.pieces = size, 0
    if kind == GSO_NONE:
        frame.header_size, frame.packet_count = VIRTIO_HEADER, 1
        frame.segment_size = size - VIRTIO_HEADER
        return True
    if kind not in (GSO_TCP4, GSO_UDP) or not virtio.segment_size or size < SMALLEST_SUPER:
        return False
    ip_size = (ip[0] & 0x0F) * 4
    if ip[0] >> 4 != 4 or ip_size < 20 or size < SMALLEST_SUPER + ip_size - 20:
        return False
    frame.header_size = VIRTIO_HEADER + ETHERNET_HEADER + ip_size
    frame.header_size += (ip[ip_size + 12] >> 4) * 4 if kind == GSO_TCP4 else 8
    if frame.header_size >= size or frame.header_size > LARGEST_HEADERS:
        return False
    frame.segment_size = virtio.segment_size
    frame.packet_count = (size - frame.header_size - 1) // frame.segment_size + 1
    return True


cdef inline uint32_t payload_end(const Frame* frame, uint32_t packet) noexcept nogil:
    """Offset behind the payload of one packet of the frame."""
    return min(frame.header_size + (packet + 1) * frame.segment_size, frame.size)


cdef inline uint32_t wire_size(const Frame* frame, uint32_t packet) noexcept nogil:
    """Bytes of the Ethernet frame that one packet is."""
    cdef uint32_t payload = payload_end(frame, packet) - frame.header_size
    return frame.header_size - VIRTIO_HEADER + payload - packet * frame.segment_size


cdef ssize_t write_packets(
    int fd, const Frame* frame, uint8_t* data, uint32_t first, uint32_t count
) noexcept nogil:
    """Write some packets of a frame in one call; as `write`."""
    cdef uint8_t[LARGEST_HEADERS] headers
    cdef iovec[2] parts
    cdef uint32_t begin = frame.header_size + first * frame.segment_size
    cdef uint32_t end = payload_end(frame, first + count - 1)
    if count == frame.packet_count:
        return write(fd, data, frame.size)
    memcpy(headers, data, frame.header_size)
    cut_headers(headers, frame, first, count, end - begin)
    parts[0].iov_base, parts[0].iov_len = headers, frame.header_size
    parts[1].iov_base, parts[1].iov_len = data + begin, end - begin
    return writev(fd, parts, 2)


cdef void cut_headers(
    uint8_t* headers, const Frame* frame, uint32_t first, uint32_t count, uint32_t payload
) noexcept nogil:
    """Make a super-packet's headers those of `count` of its packets, from `first` on."""
    cdef Virtio* virtio = <Virtio*>headers
    cdef uint8_t* ip = headers + VIRTIO_HEADER + ETHERNET_HEADER
    cdef uint32_t ip_size = (ip[0] & 0x0F) * 4
    cdef uint8_t* inner = ip + ip_size
    cdef uint32_t inner_size = frame.header_size - VIRTIO_HEADER - ETHERNET_HEADER - ip_size
    cdef bint is_tcp = ip[9] == TCP
    if count == 1:
        virtio.gso_type = GSO_NONE
        virtio.segment_size = 0
    set16(ip + 2, ip_size + inner_size + payload)
    set16(ip + 4, get16(ip + 4) + first)  # identification: one more each packet
    set16(ip + 10, 0)
    set16(ip + 10, ~folded(sum_of(ip, ip_size)) & 0xFFFF)
    if is_tcp:
        set32(inner + 4, get32(inner + 4) + first * frame.segment_size)
        if first + count < frame.packet_count:
            inner[13] &= ~(TCP_FIN | TCP_PUSH)
        if first:
            inner[13] &= ~TCP_CWR
    else:
        set16(inner + 4, inner_size + payload)
    # The kernel adds the sum over the rest: here goes that of the pseudo header (RFC 9293 3.1).
    set16(
        inner + (16 if is_tcp else 6),
        folded(sum_of(ip + 12, 8) + ip[9] + inner_size + payload),
    )


cdef uint32_t sum_of(const uint8_t* data, uint32_t size) noexcept nogil:
    cdef uint32_t total = 0
    cdef uint32_t at
    for at in range(0, size, 2):
        total += get16(data + at)
    return total


cdef uint32_t folded(uint32_t total) noexcept nogil:
    total = (total >> 16) + (total & 0xFFFF)
    return (total + (total >> 16)) & 0xFFFF
