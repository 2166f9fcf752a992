# STUN packets on an instance's own socket (RFC 8489): the compiled half of _fastpath_py/stun.py.

cdef enum:
    C_STUN_COOKIE = 0x2112A442
    C_STUN_HEADER_SIZE = 20
    C_STUN_ID_SIZE = 12
    C_LARGEST_STUN_PACKET = 548
    C_MAX_STUN_TRANSACTIONS = 8
    C_STUN_QUEUE_LIMIT = 16

MAX_STUN_TRANSACTIONS = C_MAX_STUN_TRANSACTIONS

cdef struct StunTransactions:
    uint8_t[C_MAX_STUN_TRANSACTIONS][C_STUN_ID_SIZE] ids
    uint32_t count
    uint32_t waiting  # packets with these ids that were not taken yet


cdef int64_t stun_find(const StunTransactions* stun, const uint8_t* transaction_id) noexcept nogil:
    # The place of an id, or -1.
    cdef uint32_t number
    for number in range(stun.count):
        if memcmp(stun.ids[number], transaction_id, C_STUN_ID_SIZE) == 0:
            return number
    return -1


cdef bint stun_expect(StunTransactions* stun, const uint8_t* transaction_id) noexcept nogil:
    # False: too many.
    if stun_find(stun, transaction_id) >= 0:
        return True
    if stun.count == C_MAX_STUN_TRANSACTIONS:
        return False
    memcpy(stun.ids[stun.count], transaction_id, C_STUN_ID_SIZE)
    stun.count += 1
    return True


cdef void stun_forget(StunTransactions* stun, const uint8_t* transaction_id) noexcept nogil:
    cdef int64_t number = stun_find(stun, transaction_id)
    if number >= 0:
        stun.count -= 1
        memmove(stun.ids[number], stun.ids[stun.count], C_STUN_ID_SIZE)


cdef bint stun_is_expected(
    const StunTransactions* stun, const uint8_t* packet, size_t size
) noexcept nogil:
    if not stun.count or size < C_STUN_HEADER_SIZE or size > C_LARGEST_STUN_PACKET:
        return False
    if packet[0] > 3 or load_u32(packet + 4) != C_STUN_COOKIE:
        return False
    return stun_find(stun, packet + 8) >= 0
