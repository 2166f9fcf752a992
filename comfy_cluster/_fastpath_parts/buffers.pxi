# Buffers on their way: the compiled half of _fastpath_py/buffers.py.
#
# The structures only point at payload memory. The Python objects that own it are held by
# PacketEngine (`_outgoing_pins`, `_incoming_pins`) until the buffer is closed.

cdef struct OutgoingBuffer:
    uint64_t buffer_id
    uint32_t chunk_size
    uint64_t size
    const uint8_t* prefix
    uint64_t prefix_size
    const uint8_t* body
    Bitmap acked
    uint32_t next_chunk
    uint32_t available_chunks     # a relay's grow as its source arrives
    IncomingBuffer* source        # what a relay passes on, while that is open
    OutgoingBuffer* next_relay    # of the same source
    uint32_t tracked_count        # entries of the peer's SentPackets that point here
    PeerFlow* flow
    OutgoingBuffer* next_sending  # the peer's queue of buffers with unsent chunks
    OutgoingBuffer* next_open     # all open buffers of the engine

cdef struct IncomingBuffer:
    uint64_t buffer_id
    uint32_t chunk_size
    uint64_t size
    uint8_t* destination
    Bitmap received
    OutgoingBuffer* relays
    uint32_t prefix_chunks        # as far as relays were told
    PeerFlow* flow
    IncomingBuffer* next_open     # the peer's open buffers


cdef inline uint64_t chunk_count_of(uint64_t size, uint32_t chunk_size) noexcept nogil:
    return (size + chunk_size - 1) // chunk_size


cdef inline uint32_t outgoing_chunk_length(const OutgoingBuffer* buffer, uint32_t chunk_index) noexcept nogil:
    cdef uint64_t left = buffer.size - <uint64_t>chunk_index * buffer.chunk_size
    return <uint32_t>left if left < buffer.chunk_size else buffer.chunk_size


cdef inline int incoming_place(
    IncomingBuffer* buffer, const ChunkHeader* header, const uint8_t* data, size_t size
) noexcept nogil:
    # 1: placed, 0: was there, -1: contradicts the announcement.
    cdef uint64_t start
    cdef uint64_t expected
    if header.total_chunks != buffer.received.chunk_count or header.chunk_size != buffer.chunk_size:
        return -1
    if header.chunk_index >= header.total_chunks:
        return -1
    start = <uint64_t>header.chunk_index * buffer.chunk_size
    expected = buffer.size - start
    if expected > buffer.chunk_size:
        expected = buffer.chunk_size
    if size != expected:
        return -1
    if not bitmap_add(&buffer.received, header.chunk_index):
        return 0
    memcpy(buffer.destination + start, data, size)
    return 1


cdef inline bint outgoing_has_unsent(const OutgoingBuffer* buffer) noexcept nogil:
    return buffer.next_chunk < buffer.available_chunks


cdef inline uint64_t outgoing_bytes_left(const OutgoingBuffer* buffer) noexcept nogil:
    return buffer.size - <uint64_t>buffer.next_chunk * buffer.chunk_size


cdef inline uint64_t incoming_contiguous_size(IncomingBuffer* buffer) noexcept nogil:
    cdef uint64_t size
    while bitmap_has(&buffer.received, buffer.prefix_chunks):
        buffer.prefix_chunks += 1
    size = <uint64_t>buffer.prefix_chunks * buffer.chunk_size
    return size if size < buffer.size else buffer.size


cdef inline void incoming_add_relay(IncomingBuffer* buffer, OutgoingBuffer* relay) noexcept nogil:
    cdef OutgoingBuffer** link = &buffer.relays
    while link[0] != NULL:
        link = &link[0].next_relay
    link[0] = relay
    relay.next_relay = NULL
    relay.source = buffer


cdef void incoming_forget_relays(IncomingBuffer* buffer) noexcept nogil:
    while buffer.relays != NULL:
        buffer.relays.source = NULL
        buffer.relays = buffer.relays.next_relay


cdef void outgoing_forget_source(OutgoingBuffer* buffer) noexcept nogil:
    cdef OutgoingBuffer** link
    if buffer.source == NULL:
        return
    link = &buffer.source.relays
    while link[0] != buffer:
        link = &link[0].next_relay
    link[0] = buffer.next_relay
    buffer.source = NULL


cdef OutgoingBuffer* outgoing_new(
    uint64_t buffer_id, const uint8_t* prefix, uint64_t prefix_size, const uint8_t* body,
    uint64_t size, int64_t chunk_size
) noexcept nogil:
    cdef OutgoingBuffer* buffer = <OutgoingBuffer*>calloc(1, sizeof(OutgoingBuffer))
    if buffer == NULL:
        return NULL
    if not bitmap_init(&buffer.acked, <uint32_t>chunk_count_of(size, <uint32_t>chunk_size)):
        free(buffer)
        return NULL
    buffer.buffer_id = buffer_id
    buffer.chunk_size = <uint32_t>chunk_size
    buffer.size = size
    buffer.prefix = prefix
    buffer.prefix_size = prefix_size
    buffer.body = body
    return buffer


cdef inline void outgoing_free(OutgoingBuffer* buffer) noexcept nogil:
    free(buffer.acked.words)
    free(buffer)


cdef inline void incoming_free(IncomingBuffer* buffer) noexcept nogil:
    free(buffer.received.words)
    free(buffer)


cdef int check_layout(uint64_t size, int64_t chunk_size, int64_t largest_chunk) except -1:
    if not 1 <= chunk_size <= largest_chunk:
        raise ValueError(f"chunk_size must be 1 to {largest_chunk}, not {chunk_size}")
    if chunk_count_of(size, <uint32_t>chunk_size) > 0xFFFFFFFF:
        raise ValueError(f"a buffer of {size} bytes cannot travel in chunks of {chunk_size}")
    return 0


cdef class _Pin:
    """Keeps payload memory alive and in place while a buffer is open."""

    cdef Py_buffer view
    cdef bint is_held

    def __cinit__(self, payload, bint writable):
        PyObject_GetBuffer(payload, &self.view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
        self.is_held = True

    def __dealloc__(self):
        if self.is_held:
            PyBuffer_Release(&self.view)
