# The packets sent to one peer: the compiled half of _fastpath_py/sent.py.

cdef enum:
    C_FIRST_CAPACITY = 256
    C_MAX_CAPACITY = 65536
    C_RESERVE = 4096
    C_EMPTY = 0
    C_IN_FLIGHT = 1
    C_LOST = 2

cdef struct SentEntry:
    uint64_t counter
    double sent_at
    OutgoingBuffer* buffer
    uint32_t chunk_index
    uint32_t size
    uint8_t state

cdef struct SentPackets:
    SentEntry* entries
    uint64_t capacity  # a power of two
    uint64_t oldest
    uint64_t next_counter
    int64_t bytes_in_flight


cdef inline bint sent_init(SentPackets* sent) noexcept nogil:
    sent.entries = <SentEntry*>calloc(C_FIRST_CAPACITY, sizeof(SentEntry))
    sent.capacity = C_FIRST_CAPACITY
    sent.oldest = 0
    sent.next_counter = 0
    sent.bytes_in_flight = 0
    return sent.entries != NULL


cdef inline SentEntry* sent_slot(const SentPackets* sent, uint64_t counter) noexcept nogil:
    return &sent.entries[counter & (sent.capacity - 1)]


cdef inline SentEntry* sent_get(const SentPackets* sent, uint64_t counter) noexcept nogil:
    cdef SentEntry* entry = sent_slot(sent, counter)
    return entry if entry.state != C_EMPTY and entry.counter == counter else NULL


cdef inline void sent_clear(SentEntry* entry) noexcept nogil:
    if entry.state != C_EMPTY:
        entry.buffer.tracked_count -= 1
        entry.state = C_EMPTY


cdef inline bint sent_has_room(const SentPackets* sent) noexcept nogil:
    return sent.next_counter - sent.oldest < C_MAX_CAPACITY - C_RESERVE


cdef inline bint sent_is_full(const SentPackets* sent) noexcept nogil:
    return sent.next_counter - sent.oldest >= C_MAX_CAPACITY


cdef inline void sent_advance(SentPackets* sent) noexcept nogil:
    cdef SentEntry* entry
    while sent.oldest < sent.next_counter:
        entry = sent_get(sent, sent.oldest)
        if entry != NULL and entry.state == C_IN_FLIGHT:
            return
        sent.oldest += 1


cdef bint sent_grow(SentPackets* sent) noexcept nogil:
    cdef SentEntry* old = sent.entries
    cdef uint64_t old_capacity = sent.capacity
    cdef SentEntry* entries = <SentEntry*>calloc(2 * old_capacity, sizeof(SentEntry))
    cdef uint64_t number
    if entries == NULL:
        return False
    sent.entries = entries
    sent.capacity = 2 * old_capacity
    for number in range(old_capacity):
        if old[number].state != C_EMPTY:
            sent_slot(sent, old[number].counter)[0] = old[number]
    free(old)
    return True


cdef inline uint64_t sent_take_counter(SentPackets* sent) noexcept nogil:
    cdef uint64_t counter
    if sent.next_counter - sent.oldest >= sent.capacity and sent.capacity < C_MAX_CAPACITY:
        sent_grow(sent)
    counter = sent.next_counter
    sent_clear(sent_slot(sent, counter))
    sent.next_counter += 1
    sent_advance(sent)
    return counter


cdef inline void sent_put(
    SentPackets* sent, uint64_t counter, OutgoingBuffer* buffer, uint32_t chunk_index,
    uint32_t size, double now
) noexcept nogil:
    cdef SentEntry* entry = sent_slot(sent, counter)
    entry.counter = counter
    entry.sent_at = now
    entry.buffer = buffer
    entry.chunk_index = chunk_index
    entry.size = size
    entry.state = C_IN_FLIGHT
    buffer.tracked_count += 1
    if counter < sent.oldest:
        sent.oldest = counter
    sent.bytes_in_flight += size


cdef inline void sent_on_acked(SentPackets* sent, SentEntry* entry) noexcept nogil:
    if entry.state == C_IN_FLIGHT:
        sent.bytes_in_flight -= entry.size
    sent_clear(entry)
    sent_advance(sent)


cdef inline void sent_on_lost(SentPackets* sent, SentEntry* entry) noexcept nogil:
    entry.state = C_LOST
    sent.bytes_in_flight -= entry.size
    sent_advance(sent)


cdef inline SentEntry* sent_first_in_flight(const SentPackets* sent) noexcept nogil:
    return sent_get(sent, sent.oldest) if sent.oldest < sent.next_counter else NULL


cdef void sent_forget_buffer(SentPackets* sent, OutgoingBuffer* buffer) noexcept nogil:
    cdef uint64_t number = 0
    cdef SentEntry* entry
    # After a clean transfer there is none, and the ring need not be looked at.
    while buffer.tracked_count and number < sent.capacity:
        entry = &sent.entries[number]
        number += 1
        if entry.state != C_EMPTY and entry.buffer == buffer:
            if entry.state == C_IN_FLIGHT:
                sent.bytes_in_flight -= entry.size
            sent_clear(entry)
    sent_advance(sent)
