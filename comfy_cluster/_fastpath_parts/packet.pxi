# Packet layout: the compiled half of _fastpath_py/packet.py. docs/protocol.md is normative.

KIND_HELLO = C_KIND_HELLO
KIND_MESSAGE = C_KIND_MESSAGE
KIND_CHUNK = C_KIND_CHUNK
KIND_SACK = C_KIND_SACK
KIND_PROBE = C_KIND_PROBE
HEADER_SIZE = C_HEADER_SIZE
CHUNK_HEADER_SIZE = C_CHUNK_HEADER_SIZE
SACK_HEADER_SIZE = C_SACK_HEADER_SIZE
TAG_SIZE = C_TAG_SIZE
MIN_PACKET_SIZE = C_MIN_PACKET_SIZE
MAX_PACKET_SIZE = C_MAX_PACKET_SIZE
MESSAGE_PAYLOAD_LIMIT = C_MESSAGE_PAYLOAD_LIMIT
SACK_MAX_WORDS = C_SACK_MAX_WORDS

cdef inline void store_u16(uint8_t* at, uint32_t value) noexcept nogil:
    at[0] = <uint8_t>(value >> 8)
    at[1] = <uint8_t>value


cdef inline void store_u32(uint8_t* at, uint32_t value) noexcept nogil:
    store_u16(at, value >> 16)
    store_u16(at + 2, value & 0xFFFF)


cdef inline void store_u64(uint8_t* at, uint64_t value) noexcept nogil:
    store_u32(at, <uint32_t>(value >> 32))
    store_u32(at + 4, <uint32_t>value)


cdef inline uint32_t load_u16(const uint8_t* at) noexcept nogil:
    return (<uint32_t>at[0] << 8) | at[1]


cdef inline uint32_t load_u32(const uint8_t* at) noexcept nogil:
    return (load_u16(at) << 16) | load_u16(at + 2)


cdef inline uint64_t load_u64(const uint8_t* at) noexcept nogil:
    return (<uint64_t>load_u32(at) << 32) | load_u32(at + 4)


cdef inline uint32_t chunk_size_of(uint32_t packet_size) noexcept nogil:
    return packet_size - C_HEADER_SIZE - C_CHUNK_HEADER_SIZE - C_TAG_SIZE


cdef void header_pack(uint8_t* at, uint8_t kind, uint32_t session, uint64_t counter) noexcept nogil:
    at[0] = kind
    at[1] = 0
    store_u16(at + 2, 0)
    store_u32(at + 4, session)
    store_u64(at + 8, counter)


cdef bint header_parse(const uint8_t* packet, size_t size, Header* header) noexcept nogil:
    if size < C_HEADER_SIZE:
        return False
    header.kind = packet[0]
    header.session = load_u32(packet + 4)
    header.counter = load_u64(packet + 8)
    if header.kind < C_KIND_HELLO or header.kind > C_KIND_PROBE:
        return False
    return packet[1] == 0 and load_u16(packet + 2) == 0 and not header.counter >> 63


cdef inline size_t packet_seal(uint8_t* packet, size_t size) noexcept nogil:
    # The one place where a packet is protected before it is sent: returns the bytes added behind
    # it. Epoch 0, the only one yet, adds none.
    return 0


cdef inline bint packet_open(const uint8_t* packet, size_t* size) noexcept nogil:
    # The one place where a packet is proved authentic: `size` becomes that of header and payload.
    # Epoch 0, the only one yet, proves nothing.
    return True


cdef inline void chunk_header_pack(uint8_t* at, const ChunkHeader* header) noexcept nogil:
    store_u64(at, header.buffer_id)
    store_u32(at + 8, header.chunk_index)
    store_u32(at + 12, header.total_chunks)
    store_u32(at + 16, header.chunk_size)


cdef inline void chunk_header_parse(const uint8_t* payload, ChunkHeader* header) noexcept nogil:
    header.buffer_id = load_u64(payload)
    header.chunk_index = load_u32(payload + 8)
    header.total_chunks = load_u32(payload + 12)
    header.chunk_size = load_u32(payload + 16)


cdef size_t sack_pack(uint8_t* at, const Sack* sack) noexcept nogil:
    cdef uint32_t number
    store_u64(at, sack.largest)
    store_u32(at + 8, sack.ack_delay_us)
    store_u32(at + 12, sack.receive_window)
    store_u16(at + 16, sack.word_count)
    store_u16(at + 18, 0)
    for number in range(sack.word_count):
        store_u64(at + C_SACK_HEADER_SIZE + 8 * number, sack.words[number])
    return C_SACK_HEADER_SIZE + 8 * sack.word_count


cdef bint sack_parse(const uint8_t* payload, size_t size, Sack* sack) noexcept nogil:
    cdef uint32_t number
    if size < C_SACK_HEADER_SIZE:
        return False
    sack.largest = load_u64(payload)
    sack.ack_delay_us = load_u32(payload + 8)
    sack.receive_window = load_u32(payload + 12)
    sack.word_count = load_u16(payload + 16)
    if load_u16(payload + 18) or not 1 <= sack.word_count <= C_SACK_MAX_WORDS:
        return False
    if sack.word_count > sack.largest // 64 + 1:
        return False
    if size != C_SACK_HEADER_SIZE + 8 * sack.word_count:
        return False
    for number in range(sack.word_count):
        sack.words[number] = load_u64(payload + C_SACK_HEADER_SIZE + 8 * number)
    return sack.words[sack.word_count - 1] >> (sack.largest % 64) == 1


def chunk_size_for(uint32_t packet_size):
    return <int64_t>packet_size - C_HEADER_SIZE - C_CHUNK_HEADER_SIZE - C_TAG_SIZE


def pack_header(uint8_t kind, uint32_t session, uint64_t counter):
    cdef uint8_t packed[C_HEADER_SIZE]
    header_pack(packed, kind, session, counter)
    return packed[:C_HEADER_SIZE]


def parse_header(bytes packet not None):
    cdef Header header
    if not header_parse(<const uint8_t*>PyBytes_AS_STRING(packet), len(packet), &header):
        return None
    return header.kind, header.session, header.counter


def pack_chunk_header(
    uint64_t buffer_id, uint32_t chunk_index, uint32_t total_chunks, uint32_t chunk_size
):
    cdef uint8_t packed[C_CHUNK_HEADER_SIZE]
    cdef ChunkHeader header = ChunkHeader(buffer_id, chunk_index, total_chunks, chunk_size)
    chunk_header_pack(packed, &header)
    return packed[:C_CHUNK_HEADER_SIZE]


def parse_chunk_header(bytes payload not None):
    cdef ChunkHeader header
    if len(payload) < C_CHUNK_HEADER_SIZE:
        return None
    chunk_header_parse(<const uint8_t*>PyBytes_AS_STRING(payload), &header)
    return header.buffer_id, header.chunk_index, header.total_chunks, header.chunk_size


def pack_sack(uint64_t largest, uint32_t ack_delay_us, uint32_t receive_window, list words not None):
    cdef Sack sack
    cdef uint8_t packed[C_SACK_HEADER_SIZE + 8 * C_SACK_MAX_WORDS]
    cdef size_t size
    if len(words) > C_SACK_MAX_WORDS:
        raise ValueError(f"a SACK holds at most {C_SACK_MAX_WORDS} words, not {len(words)}")
    sack.largest = largest
    sack.ack_delay_us = ack_delay_us
    sack.receive_window = receive_window
    sack.word_count = <uint32_t>len(words)
    for number, word in enumerate(words):
        sack.words[<uint32_t>number] = word
    size = sack_pack(packed, &sack)
    return packed[:size]


def parse_sack(bytes payload not None):
    cdef Sack sack
    if not sack_parse(<const uint8_t*>PyBytes_AS_STRING(payload), len(payload), &sack):
        return None
    words = [sack.words[number] for number in range(sack.word_count)]
    return sack.largest, sack.ack_delay_us, sack.receive_window, words
