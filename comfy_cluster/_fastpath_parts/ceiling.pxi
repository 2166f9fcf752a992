# The raw ceiling: memory to memory by UDP_SEGMENT and UDP_GRO, with no protocol. For benchmarks.
#
# Sends straight from the source and receives straight into the destination, as the kernel's fastest
# UDP path allows. What it leaves out: headers, acknowledgements of packets, reordering, loss
# recovery, pacing. Bytes are placed in the order of their arrival; bytes that were lost stay lost,
# and are reported. The one thing it keeps is a credit, because without it the sender overruns the
# receive buffer and the figure means nothing: the receiver tells how many bytes it has each quarter
# of a window, and the sender never has more than a window on its way.
#
# Both sockets are connected to each other. A round's messages carry its nonce, so that what an
# earlier round left in the sockets is not taken for this one's.

cdef extern from * nogil:
    """
    #if CC_HAS_MMSG

    #define CC_CEILING_STALL 0.25    /* seconds without a credit: what is on its way is lost */
    #define CC_CEILING_REPEAT 0.05   /* seconds until the receiver says again that it is ready */
    #define CC_CEILING_BURST 65000   /* bytes of one call, below the largest IP packet */
    #define CC_CEILING_SEGMENTS 64   /* UDP_MAX_SEGMENTS of the kernels before 6.9 */

    typedef struct { uint64_t nonce; uint64_t count; } CcCredit;

    typedef struct {
        uint64_t bytes;  /* sender: confirmed by the receiver; receiver: received */
        uint64_t calls;  /* system calls */
    } CcCeiling;

    static int cc_ceiling_send_credit(int fd, uint64_t nonce, uint64_t count, CcCeiling *result) {
        CcCredit credit = { nonce, count };
        result->calls++;
        if (send(fd, &credit, sizeof(credit), MSG_DONTWAIT) >= 0) return 0;
        /* ECONNREFUSED: the sender is not there yet; a credit that is lost is said again. */
        return cc_is_fatal(errno) ? -errno : 0;
    }

    /* Take in all credits that wait. 1: one of this round was among them, 0: none, or -errno. */
    static int cc_ceiling_take_credits(int fd, uint64_t nonce, CcCeiling *result) {
        CcCredit credit;
        int found = 0;
        for (;;) {
            ssize_t size = recv(fd, &credit, sizeof(credit), MSG_DONTWAIT);
            result->calls++;
            if (size < 0 && errno == EINTR) continue;
            if (size < 0) return cc_is_fatal(errno) ? -errno : found;
            if (size != (ssize_t)sizeof(credit) || credit.nonce != nonce) continue;
            if (credit.count >= result->bytes) result->bytes = credit.count;
            found = 1;
        }
    }

    /* Wait for a credit of this round: 1, or 0 when `seconds` passed without one, or -errno. */
    static int cc_ceiling_wait_credit(int fd, uint64_t nonce, double seconds, CcCeiling *result) {
        double end = cc_now() + seconds;
        for (;;) {
            int found = cc_ceiling_take_credits(fd, nonce, result);
            double now = cc_now();
            if (found != 0 || now >= end) return found;
            cc_wait(fd, 0, -1, end - now);
            result->calls++;
        }
    }

    static int cc_ceiling_send(
        int fd, const uint8_t *data, size_t size, int segment_size, size_t window, uint64_t nonce,
        double timeout, CcCeiling *result
    ) {
        size_t burst = CC_CEILING_BURST / segment_size * segment_size;
        size_t sent = 0, written_off = 0;
        int found;
        memset(result, 0, sizeof(*result));
        if (burst > (size_t)segment_size * CC_CEILING_SEGMENTS) {
            burst = (size_t)segment_size * CC_CEILING_SEGMENTS;
        }
        if (burst == 0) burst = (size_t)segment_size; /* one packet above CC_CEILING_BURST */
        if (setsockopt(fd, SOL_UDP, UDP_SEGMENT, &segment_size, sizeof(segment_size)) != 0) {
            return -errno;
        }
        found = cc_ceiling_wait_credit(fd, nonce, timeout, result);
        if (found <= 0) return found < 0 ? found : -ETIMEDOUT;
        while (sent < size) {
            size_t part = size - sent < burst ? size - sent : burst;
            while (sent + part > result->bytes + written_off + window) {
                found = cc_ceiling_wait_credit(fd, nonce, CC_CEILING_STALL, result);
                if (found < 0) return found;
                if (found == 0) written_off = sent - result->bytes;
            }
            result->calls++;
            if (send(fd, data + sent, part, MSG_DONTWAIT) >= 0) {
                sent += part;
            } else if (cc_is_full(errno)) {
                cc_wait(fd, 1, -1, 1e-3);
                result->calls++;
            } else if (errno != EINTR && errno != ECONNREFUSED) {
                return -errno;
            }
        }
        while (result->bytes < size) {
            found = cc_ceiling_wait_credit(fd, nonce, CC_CEILING_STALL, result);
            if (found < 0) return found;
            if (found > 0) continue;
            /* An empty packet says: that was all. Three times, because this one may be lost too. */
            for (int i = 0; i < 3; i++) (void)send(fd, data, 0, MSG_DONTWAIT);
            result->calls += 3;
            found = cc_ceiling_wait_credit(fd, nonce, CC_CEILING_STALL, result);
            return found < 0 ? found : 0;
        }
        return 0;
    }

    static int cc_ceiling_receive(
        int fd, uint8_t *data, size_t size, size_t window, uint64_t nonce, double timeout,
        CcCeiling *result
    ) {
        double end = cc_now() + timeout;
        size_t told = 0;
        uint8_t sink;
        int error;
        memset(result, 0, sizeof(*result));
        cc_enable_gro(fd);
        while (recv(fd, &sink, 1, MSG_DONTWAIT) >= 0 || errno == EINTR || errno == ECONNREFUSED) {}
        error = cc_ceiling_send_credit(fd, nonce, 0, result);
        while (error == 0 && result->bytes < size) {
            size_t room = size - result->bytes < CC_SLOT_SIZE ? size - result->bytes : CC_SLOT_SIZE;
            ssize_t got = recv(fd, data + result->bytes, room, MSG_DONTWAIT);
            result->calls++;
            if (got > 0) {
                result->bytes += (size_t)got;
                if (result->bytes - told >= window / 4 || result->bytes == size) {
                    told = result->bytes;
                    error = cc_ceiling_send_credit(fd, nonce, told, result);
                }
            } else if (got == 0) {
                return cc_ceiling_send_credit(fd, nonce, result->bytes, result);
            } else if (cc_is_full(errno)) {
                double now = cc_now();
                double left = end - now;
                if (left <= 0.0) return -ETIMEDOUT;
                if (result->bytes == 0 && left > CC_CEILING_REPEAT) left = CC_CEILING_REPEAT;
                cc_wait(fd, 0, -1, left);
                result->calls++;
                if (result->bytes == 0 && cc_now() - now >= CC_CEILING_REPEAT) {
                    error = cc_ceiling_send_credit(fd, nonce, 0, result);
                }
            } else if (cc_is_fatal(errno)) {
                return -errno;
            }
        }
        return error;
    }

    #else

    typedef struct { uint64_t bytes; uint64_t calls; } CcCeiling;
    static int cc_ceiling_send(
        int fd, const uint8_t *d, size_t s, int g, size_t w, uint64_t n, double t, CcCeiling *r
    ) {
        (void)fd; (void)d; (void)s; (void)g; (void)w; (void)n; (void)t; (void)r; return -ENOSYS;
    }
    static int cc_ceiling_receive(
        int fd, uint8_t *d, size_t s, size_t w, uint64_t n, double t, CcCeiling *r
    ) {
        (void)fd; (void)d; (void)s; (void)w; (void)n; (void)t; (void)r; return -ENOSYS;
    }

    #endif
    """
    const int CC_HAS_MMSG

    ctypedef struct CcCeiling:
        uint64_t bytes
        uint64_t calls

    int cc_ceiling_send(
        int fd, const uint8_t* data, size_t size, int segment_size, size_t window, uint64_t nonce,
        double timeout, CcCeiling* result
    )
    int cc_ceiling_receive(
        int fd, uint8_t* data, size_t size, size_t window, uint64_t nonce, double timeout,
        CcCeiling* result
    )

HAS_CEILING = bool(CC_HAS_MMSG)


def ceiling_send(
    int fd, source, *, int segment_size, size_t window, uint64_t nonce, double timeout
):
    cdef _Pin pin = _Pin(memoryview(source).cast("B"), False)
    cdef CcCeiling result
    cdef int error
    if not C_MIN_PACKET_SIZE <= segment_size <= C_MAX_PACKET_SIZE:
        raise ValueError(
            f"segment_size must be {C_MIN_PACKET_SIZE} to {C_MAX_PACKET_SIZE}, not {segment_size}"
        )
    check_ceiling_window(window)
    with nogil:
        error = cc_ceiling_send(
            fd, <const uint8_t*>pin.view.buf, pin.view.len, segment_size, window, nonce, timeout,
            &result,
        )
    raise_ceiling_error(error)
    return {"bytes": result.bytes, "calls": result.calls}


def ceiling_receive(int fd, destination, *, size_t window, uint64_t nonce, double timeout):
    cdef _Pin pin = _Pin(memoryview(destination).cast("B"), True)
    cdef CcCeiling result
    cdef int error
    check_ceiling_window(window)
    with nogil:
        error = cc_ceiling_receive(
            fd, <uint8_t*>pin.view.buf, pin.view.len, window, nonce, timeout, &result
        )
    raise_ceiling_error(error)
    return {"bytes": result.bytes, "calls": result.calls}


cdef check_ceiling_window(size_t window):
    # A burst must fit, or the sender waits for ever for room.
    if window < C_MAX_PACKET_SIZE:
        raise ValueError(f"window must be at least {C_MAX_PACKET_SIZE}, not {window}")


cdef raise_ceiling_error(int error):
    if error:
        raise OSError(-error, "the raw ceiling failed")
