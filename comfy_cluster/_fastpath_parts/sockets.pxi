# System calls of the loops: bursts of packets in and out, waiting, waking, the clock.
#
# recvmmsg and sendmmsg with UDP_GRO and UDP_SEGMENT where the kernel has them (Linux 4.18 and 5.0),
# recvmsg and sendmsg where not (macOS); on other systems there are no loops, and transport/ drives
# the engine from Python threads.

cdef extern from * nogil:
    """
    #if defined(__linux__) || defined(__APPLE__)
    #define CC_HAS_LOOPS 1
    #include <errno.h>
    #include <fcntl.h>
    #include <netinet/in.h>
    #include <poll.h>
    #include <sys/socket.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>
    #else
    #define CC_HAS_LOOPS 0
    struct iovec { void *iov_base; size_t iov_len; };
    #endif
    #if defined(__linux__)
    #define CC_HAS_MMSG 1
    #ifndef SOL_UDP
    #define SOL_UDP 17
    #endif
    #ifndef UDP_SEGMENT
    #define UDP_SEGMENT 103
    #endif
    #ifndef UDP_GRO
    #define UDP_GRO 104
    #endif
    #else
    #define CC_HAS_MMSG 0
    #endif

    #include <stdint.h>
    #include <stdlib.h>
    #include <string.h>

    /* One sendmsg: one packet, or with segment_size several of that size (the last may be less). */
    typedef struct {
        struct iovec *iov;
        size_t iov_count;
        const uint8_t *ip;
        uint16_t port;
        uint16_t segment_size;
    } CcOut;

    /* One recvmsg: one packet, or several of segment_size bytes. */
    typedef struct {
        uint8_t *data;
        size_t size;
        size_t segment_size;
        uint8_t ip[16];
        uint16_t port;
    } CcIn;

    #define CC_SLOT_SIZE 65536

    #if CC_HAS_LOOPS

    #if !CC_HAS_MMSG
    struct mmsghdr { struct msghdr msg_hdr; unsigned int msg_len; };
    #endif

    typedef union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } CcAddress;

    typedef union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int))];
    } CcControl;

    typedef struct {
        int slot_count;
        struct mmsghdr *headers;
        struct iovec *iov;
        CcAddress *addresses;
        CcControl *controls;
        uint8_t *memory;
        CcIn *in;
    } CcArena;

    static void cc_arena_free(CcArena *arena) {
        free(arena->headers);
        free(arena->iov);
        free(arena->addresses);
        free(arena->controls);
        free(arena->memory);
        free(arena->in);
    }

    static int cc_arena_init(CcArena *arena, int slot_count, int with_memory) {
        memset(arena, 0, sizeof(*arena));
        arena->slot_count = slot_count;
        arena->headers = calloc(slot_count, sizeof(*arena->headers));
        arena->iov = calloc(slot_count, sizeof(*arena->iov));
        arena->addresses = calloc(slot_count, sizeof(*arena->addresses));
        arena->controls = calloc(slot_count, sizeof(*arena->controls));
        arena->in = calloc(slot_count, sizeof(*arena->in));
        arena->memory = with_memory ? malloc((size_t)slot_count * CC_SLOT_SIZE) : NULL;
        if (!arena->headers || !arena->iov || !arena->addresses || !arena->controls || !arena->in
            || (with_memory && !arena->memory)) {
            cc_arena_free(arena);
            return -1;
        }
        return 0;
    }

    static socklen_t cc_pack_address(CcAddress *to, int family, const uint8_t *ip, uint16_t port) {
        memset(to, 0, sizeof(*to));
        if (family == AF_INET) {
            to->v4.sin_family = AF_INET;
            to->v4.sin_port = htons(port);
            memcpy(&to->v4.sin_addr, ip + 12, 4);
            return sizeof(to->v4);
        }
        to->v6.sin6_family = AF_INET6;
        to->v6.sin6_port = htons(port);
        memcpy(&to->v6.sin6_addr, ip, 16);
        return sizeof(to->v6);
    }

    static void cc_parse_address(const CcAddress *from, CcIn *in) {
        if (from->any.sa_family == AF_INET) {
            memset(in->ip, 0, 10);
            in->ip[10] = in->ip[11] = 0xFF;
            memcpy(in->ip + 12, &from->v4.sin_addr, 4);
            in->port = ntohs(from->v4.sin_port);
        } else {
            memcpy(in->ip, &from->v6.sin6_addr, 16);
            in->port = ntohs(from->v6.sin6_port);
        }
    }

    static int cc_socket_family(int fd) {
        CcAddress address;
        socklen_t size = sizeof(address);
        if (getsockname(fd, &address.any, &size) != 0) return -1;
        return address.any.sa_family;
    }

    static int cc_enable_gro(int fd) {
    #if CC_HAS_MMSG
        int on = 1;
        return setsockopt(fd, SOL_UDP, UDP_GRO, &on, sizeof(on)) == 0;
    #else
        (void)fd;
        return 0;
    #endif
    }

    static int cc_has_gso(int fd) {
    #if CC_HAS_MMSG
        int value;
        socklen_t size = sizeof(value);
        return getsockopt(fd, SOL_UDP, UDP_SEGMENT, &value, &size) == 0;
    #else
        (void)fd;
        return 0;
    #endif
    }

    /* Receive what is there, without waiting. Returns the number of slots filled, or -errno. */
    static int cc_recv_burst(int fd, CcArena *arena, int use_mmsg) {
        int count = 0;
        for (int i = 0; i < arena->slot_count; i++) {
            struct msghdr *header = &arena->headers[i].msg_hdr;
            arena->iov[i].iov_base = arena->memory + (size_t)i * CC_SLOT_SIZE;
            arena->iov[i].iov_len = CC_SLOT_SIZE;
            header->msg_name = &arena->addresses[i];
            header->msg_namelen = sizeof(arena->addresses[i]);
            header->msg_iov = &arena->iov[i];
            header->msg_iovlen = 1;
            header->msg_control = &arena->controls[i];
            header->msg_controllen = sizeof(arena->controls[i]);
            header->msg_flags = 0;
        }
    #if CC_HAS_MMSG
        if (use_mmsg) {
            do {
                count = recvmmsg(fd, arena->headers, arena->slot_count, MSG_DONTWAIT, NULL);
            } while (count < 0 && errno == EINTR);
            if (count < 0) return -errno;
        } else
    #else
        (void)use_mmsg;
    #endif
        {
            while (count < arena->slot_count) {
                ssize_t size = recvmsg(fd, &arena->headers[count].msg_hdr, MSG_DONTWAIT);
                if (size < 0 && errno == EINTR) continue;
                if (size < 0 && count == 0) return -errno;
                if (size < 0) break;
                arena->headers[count++].msg_len = (unsigned int)size;
            }
        }
        for (int i = 0; i < count; i++) {
            CcIn *in = &arena->in[i];
            in->data = arena->memory + (size_t)i * CC_SLOT_SIZE;
            in->size = arena->headers[i].msg_len;
            in->segment_size = in->size;
            cc_parse_address(&arena->addresses[i], in);
    #if CC_HAS_MMSG
            struct msghdr *header = &arena->headers[i].msg_hdr;
            for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
                int size = 0;
                if (c->cmsg_level != SOL_UDP || c->cmsg_type != UDP_GRO) continue;
                memcpy(&size, CMSG_DATA(c), sizeof(size));
                if (size > 0) in->segment_size = (size_t)size;
            }
    #endif
        }
        return count;
    }

    /* Send without waiting. Returns how many went, or -errno of the first, which did not. */
    static int cc_send_burst(int fd, int family, CcArena *arena, CcOut *outs, int count, int use_mmsg) {
        int sent = 0;
        if (count > arena->slot_count) count = arena->slot_count;
        for (int i = 0; i < count; i++) {
            struct msghdr *header = &arena->headers[i].msg_hdr;
            memset(header, 0, sizeof(*header));
            header->msg_namelen = cc_pack_address(&arena->addresses[i], family, outs[i].ip, outs[i].port);
            header->msg_name = &arena->addresses[i];
            header->msg_iov = outs[i].iov;
            header->msg_iovlen = outs[i].iov_count;
    #if CC_HAS_MMSG
            if (outs[i].segment_size) {
                memset(&arena->controls[i], 0, sizeof(arena->controls[i]));
                header->msg_control = &arena->controls[i];
                header->msg_controllen = CMSG_SPACE(sizeof(uint16_t));
                struct cmsghdr *c = CMSG_FIRSTHDR(header);
                c->cmsg_level = SOL_UDP;
                c->cmsg_type = UDP_SEGMENT;
                c->cmsg_len = CMSG_LEN(sizeof(uint16_t));
                memcpy(CMSG_DATA(c), &outs[i].segment_size, sizeof(uint16_t));
            }
    #endif
        }
    #if CC_HAS_MMSG
        if (use_mmsg) {
            do {
                sent = sendmmsg(fd, arena->headers, count, MSG_DONTWAIT);
            } while (sent < 0 && errno == EINTR);
            return sent < 0 ? -errno : sent;
        }
    #else
        (void)use_mmsg;
    #endif
        while (sent < count) {
            ssize_t size = sendmsg(fd, &arena->headers[sent].msg_hdr, MSG_DONTWAIT);
            if (size < 0 && errno == EINTR) continue;
            if (size < 0) return sent ? sent : -errno;
            sent++;
        }
        return sent;
    }

    /* Errors after which the socket will never work again; all others are the path's, and pass. */
    static int cc_is_fatal(int error) {
        return error == EBADF || error == ENOTSOCK || error == EFAULT || error == EOPNOTSUPP;
    }

    static int cc_is_full(int error) {
        return error == EAGAIN || error == EWOULDBLOCK || error == ENOBUFS;
    }

    /* ENOBUFS: a queue below the socket is full, while poll() calls the socket itself writable. */
    static int cc_is_writable_when_full(int error) { return error == ENOBUFS; }

    /* EIO: the device cannot do UDP_SEGMENT (no checksum offload); EINVAL: nor this kernel. */
    static int cc_is_gso_refusal(int error) { return error == EIO || error == EINVAL; }

    /* Wait until `fd` is ready for `events` or `wake_fd` is readable; seconds < 0: for ever. */
    static void cc_wait(int fd, int for_write, int wake_fd, double seconds) {
        struct pollfd fds[2];
        fds[0].fd = fd;
        fds[0].events = for_write ? POLLOUT : POLLIN;
        fds[1].fd = wake_fd;
        fds[1].events = POLLIN;
    #if CC_HAS_MMSG
        struct timespec timeout;
        if (seconds > 3600.0) seconds = 3600.0;
        timeout.tv_sec = (time_t)seconds;
        timeout.tv_nsec = (long)((seconds - (double)timeout.tv_sec) * 1e9);
        (void)ppoll(fds, 2, seconds < 0 ? NULL : &timeout, NULL);
    #else
        (void)poll(fds, 2, seconds < 0 ? -1 : seconds > 3600.0 ? 3600000 : (int)(seconds * 1e3 + 0.999));
    #endif
    }

    /* A pipe both ends of which never block: fds[0] is readable once something was signalled. */
    static int cc_signal_open(int fds[2]) {
        if (pipe(fds) != 0) return -errno;
        for (int i = 0; i < 2; i++) {
            fcntl(fds[i], F_SETFD, FD_CLOEXEC);
            fcntl(fds[i], F_SETFL, O_NONBLOCK);
        }
        return 0;
    }

    static void cc_signal_set(const int fds[2]) {
        ssize_t ignored = write(fds[1], "", 1);
        (void)ignored;
    }

    static void cc_signal_clear(const int fds[2]) {
        char sink[64];
        while (read(fds[0], sink, sizeof(sink)) == (ssize_t)sizeof(sink)) {}
    }

    static void cc_signal_close(int fds[2]) {
        for (int i = 0; i < 2; i++) {
            if (fds[i] >= 0) close(fds[i]);
            fds[i] = -1;
        }
    }

    static double cc_now(void) {
        struct timespec now;
    #if defined(__APPLE__)
        clock_gettime(CLOCK_UPTIME_RAW, &now); /* what time.monotonic() reads there */
    #else
        clock_gettime(CLOCK_MONOTONIC, &now);
    #endif
        return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
    }

    #else /* no loops on this system: never called */

    typedef struct { int slot_count; CcIn *in; } CcArena;
    static int cc_arena_init(CcArena *a, int n, int m) { (void)a; (void)n; (void)m; return -1; }
    static void cc_arena_free(CcArena *a) { (void)a; }
    static int cc_socket_family(int fd) { (void)fd; return -1; }
    static int cc_enable_gro(int fd) { (void)fd; return 0; }
    static int cc_has_gso(int fd) { (void)fd; return 0; }
    static int cc_recv_burst(int fd, CcArena *a, int m) { (void)fd; (void)a; (void)m; return -1; }
    static int cc_send_burst(int fd, int f, CcArena *a, CcOut *o, int n, int m) {
        (void)fd; (void)f; (void)a; (void)o; (void)n; (void)m; return -1;
    }
    static int cc_is_fatal(int e) { (void)e; return 1; }
    static int cc_is_full(int e) { (void)e; return 0; }
    static int cc_is_writable_when_full(int e) { (void)e; return 0; }
    static int cc_is_gso_refusal(int e) { (void)e; return 0; }
    static void cc_wait(int fd, int w, int k, double s) { (void)fd; (void)w; (void)k; (void)s; }
    static int cc_signal_open(int fds[2]) { fds[0] = fds[1] = -1; return -1; }
    static void cc_signal_set(const int fds[2]) { (void)fds; }
    static void cc_signal_clear(const int fds[2]) { (void)fds; }
    static void cc_signal_close(int fds[2]) { (void)fds; }
    static double cc_now(void) { return 0.0; }

    #endif
    """
    const int CC_HAS_LOOPS

    struct iovec:
        void* iov_base
        size_t iov_len

    ctypedef struct CcOut:
        iovec* iov
        size_t iov_count
        const uint8_t* ip
        uint16_t port
        uint16_t segment_size

    ctypedef struct CcIn:
        uint8_t* data
        size_t size
        size_t segment_size
        uint8_t ip[16]
        uint16_t port

    ctypedef struct CcArena:
        int slot_count
        CcIn* in_ "in"

    int cc_arena_init(CcArena* arena, int slot_count, int with_memory)
    void cc_arena_free(CcArena* arena)
    int cc_socket_family(int fd)
    int cc_enable_gro(int fd)
    int cc_has_gso(int fd)
    int cc_recv_burst(int fd, CcArena* arena, int use_mmsg)
    int cc_send_burst(int fd, int family, CcArena* arena, CcOut* outs, int count, int use_mmsg)
    int cc_is_fatal(int error)
    int cc_is_full(int error)
    int cc_is_writable_when_full(int error)
    int cc_is_gso_refusal(int error)
    void cc_wait(int fd, int for_write, int wake_fd, double seconds)
    int cc_signal_open(int* fds)
    void cc_signal_set(const int* fds)
    void cc_signal_clear(const int* fds)
    void cc_signal_close(int* fds)
    double cc_now()

HAS_LOOPS = bool(CC_HAS_LOOPS)
