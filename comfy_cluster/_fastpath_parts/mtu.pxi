# How large packets to one peer may be: the compiled half of _fastpath_py/mtu.py.

cdef enum:
    C_PROBE_SIZE_COUNT = 9
    C_PROBE_ATTEMPTS = 3
    C_VERIFY_ATTEMPTS = 6

cdef uint32_t[C_PROBE_SIZE_COUNT] C_PROBE_SIZES = [
    1372, 1392, 1422, 1452, 1472, 3852, 8848, 8952, 8972
]
PROBE_SIZES = tuple([C_PROBE_SIZES[number] for number in range(C_PROBE_SIZE_COUNT)])
cdef double C_RAISE_INTERVAL = 600.0
cdef double C_PROBE_TIMEOUT_FLOOR = 0.1

cdef struct Mtu:
    uint32_t packet_size
    uint32_t largest
    uint32_t probe_size
    uint32_t attempts
    int64_t counter  # of the probe that waits for an answer
    double sent_at
    bint is_verifying
    double due_at


cdef uint32_t mtu_next_size(const Mtu* mtu) noexcept nogil:
    cdef int number
    for number in range(C_PROBE_SIZE_COUNT):
        if mtu.packet_size < C_PROBE_SIZES[number] <= mtu.largest:
            return C_PROBE_SIZES[number]
    return mtu.largest if mtu.largest > mtu.packet_size else 0


cdef void mtu_end(Mtu* mtu, double now) noexcept nogil:
    mtu.probe_size = 0
    mtu.attempts = 0
    mtu.counter = -1
    mtu.is_verifying = False
    mtu.due_at = now + C_RAISE_INTERVAL if mtu_next_size(mtu) else <double>INFINITY


cdef void mtu_begin(Mtu* mtu, uint32_t size, double now) noexcept nogil:
    mtu.probe_size = size
    mtu.attempts = 0
    mtu.counter = -1
    mtu.is_verifying = False
    mtu.due_at = now
    if size == 0:
        mtu_end(mtu, now)


cdef void mtu_init(Mtu* mtu, uint32_t packet_size, uint32_t largest, double now) noexcept nogil:
    memset(mtu, 0, sizeof(Mtu))
    mtu.packet_size = packet_size
    mtu.largest = largest
    mtu_begin(mtu, mtu_next_size(mtu), now)


cdef inline uint32_t mtu_attempt_limit(const Mtu* mtu) noexcept nogil:
    return C_VERIFY_ATTEMPTS if mtu.is_verifying else C_PROBE_ATTEMPTS


cdef inline double mtu_probe_due_at(const Mtu* mtu) noexcept nogil:
    if mtu.probe_size and mtu.attempts < mtu_attempt_limit(mtu):
        return mtu.due_at
    return <double>INFINITY


cdef inline void mtu_on_probe_sent(Mtu* mtu, int64_t counter, double timeout, double now) noexcept nogil:
    mtu.counter = counter
    mtu.sent_at = now
    mtu.attempts += 1
    mtu.due_at = now + larger(timeout, C_PROBE_TIMEOUT_FLOOR)


cdef bint mtu_on_timer(Mtu* mtu, double now) noexcept nogil:
    cdef bint has_shrunk
    if now < mtu.due_at:
        return False
    if mtu.probe_size == 0:
        mtu_begin(mtu, mtu_next_size(mtu), now)
        return False
    if mtu.attempts < mtu_attempt_limit(mtu):
        return False
    has_shrunk = (
        mtu.is_verifying and mtu.probe_size == mtu.packet_size
        and mtu.packet_size > C_MIN_PACKET_SIZE
    )
    if has_shrunk:
        mtu.packet_size = C_MIN_PACKET_SIZE
    mtu_end(mtu, now)
    return has_shrunk


cdef bint mtu_on_acked(Mtu* mtu, int64_t counter, double now) noexcept nogil:
    cdef uint32_t size = mtu.probe_size
    cdef bint is_larger
    if counter != mtu.counter:
        return False
    if mtu.is_verifying and size == C_MIN_PACKET_SIZE and size < mtu.packet_size:
        mtu_begin(mtu, mtu.packet_size, now)
        mtu.is_verifying = True
        return False
    is_larger = size > mtu.packet_size
    if is_larger:
        mtu.packet_size = size
    mtu_begin(mtu, 0 if mtu.is_verifying else mtu_next_size(mtu), now)
    return is_larger


cdef inline void mtu_verify(Mtu* mtu, double now) noexcept nogil:
    if mtu.packet_size > C_MIN_PACKET_SIZE and not mtu.is_verifying:
        mtu_begin(mtu, C_MIN_PACKET_SIZE, now)
        mtu.is_verifying = True


cdef class PathMtu:
    cdef Mtu mtu

    def __cinit__(self, uint32_t packet_size, uint32_t largest_packet_size, double now):
        mtu_init(&self.mtu, packet_size, largest_packet_size, now)

    @property
    def packet_size(self):
        return self.mtu.packet_size

    @property
    def probe_size(self):
        return self.mtu.probe_size

    @property
    def due_at(self):
        return self.mtu.due_at

    def probe_due_at(self):
        return mtu_probe_due_at(&self.mtu)

    def on_probe_sent(self, int64_t counter, double timeout, double now):
        mtu_on_probe_sent(&self.mtu, counter, timeout, now)

    def on_timer(self, double now):
        return mtu_on_timer(&self.mtu, now)

    def on_acked(self, int64_t counter, double now):
        return mtu_on_acked(&self.mtu, counter, now)

    def verify(self, double now):
        mtu_verify(&self.mtu, now)
