# Whose HELLO packets are heard: allowed addresses always, others so many a second.

cdef int64_t engine_find_allowed(EngineState* engine, const PeerAddress* address) noexcept nogil:
    # The place of an address, or -1.
    cdef uint32_t number
    for number in range(engine.allowed_count):
        if address_equal(&engine.allowed[number], address):
            return number
    return -1


cdef bint engine_allow(EngineState* engine, const PeerAddress* address) noexcept nogil:
    # False: no memory.
    cdef PeerAddress* grown
    if engine_find_allowed(engine, address) >= 0:
        return True
    if engine.allowed_count == engine.allowed_capacity:
        grown = <PeerAddress*>realloc(
            engine.allowed, (engine.allowed_capacity + 16) * sizeof(PeerAddress)
        )
        if grown == NULL:
            return False
        engine.allowed = grown
        engine.allowed_capacity += 16
    engine.allowed[engine.allowed_count] = address[0]
    engine.allowed_count += 1
    return True


cdef void engine_disallow(EngineState* engine, const PeerAddress* address) noexcept nogil:
    cdef int64_t number = engine_find_allowed(engine, address)
    if number >= 0:
        engine.allowed_count -= 1
        engine.allowed[number] = engine.allowed[engine.allowed_count]


cdef bint engine_hears(EngineState* engine, const PeerAddress* address, double now) noexcept nogil:
    cdef double earned
    if engine_find_allowed(engine, address) >= 0:
        return True
    earned = (now - engine.strangers_at) * engine.strangers_per_second
    engine.strangers_at = now
    engine.stranger_tokens = min(
        engine.stranger_tokens + max(0.0, earned), engine.strangers_per_second
    )
    if engine.stranger_tokens < 1.0:
        return False
    engine.stranger_tokens -= 1.0
    return True


cdef void engine_receive_hello(
    EngineState* engine, uint32_t session, const uint8_t* packet, size_t size,
    const PeerAddress* address, double now
) noexcept nogil:
    if session != 0 or size > C_MIN_PACKET_SIZE:
        engine.counters[COUNT_MALFORMED] += 1
    elif not engine_hears(engine, address, now):
        engine.counters[COUNT_UNKNOWN_ADDRESS] += 1
    else:
        engine_add_message_event(
            engine, C_EVENT_HELLO, 0, address, packet + C_HEADER_SIZE,
            <uint32_t>(size - C_HEADER_SIZE)
        )
