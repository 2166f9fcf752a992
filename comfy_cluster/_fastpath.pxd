# What other Cython modules may use of the compiled engine: the packet layout and the sets, without
# the GIL. tests/cython/ does. The structures are laid out here, the functions stand in the parts.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    C_KIND_HELLO = 0xC0
    C_KIND_MESSAGE = 0xC1
    C_KIND_CHUNK = 0xC2
    C_KIND_SACK = 0xC3
    C_KIND_PROBE = 0xC4
    C_HEADER_SIZE = 16
    C_CHUNK_HEADER_SIZE = 20
    C_SACK_HEADER_SIZE = 20
    C_TAG_SIZE = 16
    C_MIN_PACKET_SIZE = 1200
    C_MAX_PACKET_SIZE = 65507
    C_MESSAGE_PAYLOAD_LIMIT = 1168  # MIN_PACKET_SIZE - HEADER_SIZE - TAG_SIZE
    C_SACK_MAX_WORDS = 128

cdef enum:
    C_SACK_REDUNDANCY = 8

cdef struct Header:
    uint8_t kind
    uint32_t session
    uint64_t counter

cdef struct ChunkHeader:
    uint64_t buffer_id
    uint32_t chunk_index
    uint32_t total_chunks
    uint32_t chunk_size

cdef struct Sack:
    uint64_t largest
    uint32_t ack_delay_us
    uint32_t receive_window
    uint32_t word_count
    uint64_t words[C_SACK_MAX_WORDS]

cdef struct Bitmap:
    uint64_t* words
    uint32_t chunk_count
    uint32_t count

cdef struct History:
    int64_t largest  # -1 before the first packet; counters have 63 bits
    uint64_t words[C_SACK_MAX_WORDS]
    int64_t lowest_new[C_SACK_REDUNDANCY]  # -1: nothing new for that SACK
    uint64_t sack_number

cdef void header_pack(uint8_t* at, uint8_t kind, uint32_t session, uint64_t counter) noexcept nogil
cdef bint header_parse(const uint8_t* packet, size_t size, Header* header) noexcept nogil
cdef size_t sack_pack(uint8_t* at, const Sack* sack) noexcept nogil
cdef bint sack_parse(const uint8_t* payload, size_t size, Sack* sack) noexcept nogil
cdef bint bitmap_init(Bitmap* bitmap, uint32_t chunk_count) noexcept nogil
cdef bint bitmap_has(const Bitmap* bitmap, uint32_t index) noexcept nogil
cdef bint bitmap_add(Bitmap* bitmap, uint32_t index) noexcept nogil
cdef void history_init(History* history) noexcept nogil
cdef bint history_is_new(const History* history, int64_t counter) noexcept nogil
cdef void history_add(History* history, int64_t counter) noexcept nogil
cdef void history_fill_sack(History* history, Sack* sack) noexcept nogil
