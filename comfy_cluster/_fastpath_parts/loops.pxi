# The receive and send loops: from entry to return they run without the GIL.
#
# Each loop is one thread. The lock of the engine is held while packets are placed or chosen, never
# during a system call. While a burst is in the kernel its payload is read from source memory, so
# `loop_wait_for_burst` lets a closing thread wait until that memory is no longer touched.

cdef enum:
    C_RECEIVE_SLOTS = 32       # of 64 KiB each: with GRO one slot holds some 45 packets
    C_SACK_BURST = 64
    C_MAX_GSO_SEGMENTS = 64    # UDP_MAX_SEGMENTS of the kernels before 6.9
    C_MAX_GSO_BYTES = 65000    # below the largest IP packet, whatever the headers
    C_LAST_WAITS = 5           # of C_STOP_CHECK_INTERVAL, for a full socket after the stop

cdef double C_ERROR_PAUSE = 0.001  # seconds: an error that stays must not spin
cdef double C_STOP_CHECK_INTERVAL = 0.01  # seconds: a full socket must not delay the end for long

cdef struct Loops:
    volatile int stop_requested
    int sender_waiting
    double sender_due_at  # while it waits: until when at most
    int is_sending
    uint64_t burst_number
    int events_signalled
    int event_fds[2]
    int send_fds[2]
    int receive_fds[2]
    uint64_t receive_calls
    uint64_t send_calls
    uint64_t send_errors
    uint64_t receive_errors
    uint64_t socket_full

cdef struct SendArena:
    CcArena calls
    OutPacket* packets
    CcOut* outs
    iovec* iov
    uint8_t* heads
    int burst_size


cdef inline void lock_engine(EngineState* engine) noexcept nogil:
    PyThread_acquire_lock(engine.lock, 1)


cdef inline void unlock_engine(EngineState* engine) noexcept nogil:
    PyThread_release_lock(engine.lock)


cdef inline void loop_signal_events(EngineState* engine, Loops* loops) noexcept nogil:
    # Under the lock.
    if engine.event_count and not loops.events_signalled and loops.event_fds[1] >= 0:
        loops.events_signalled = 1
        cc_signal_set(loops.event_fds)


cdef inline void loop_wake_sender(Loops* loops) noexcept nogil:
    # Under the lock.
    if loops.sender_waiting:
        loops.sender_waiting = 0
        cc_signal_set(loops.send_fds)


cdef void loop_wait_for_burst(EngineState* engine, Loops* loops) noexcept nogil:
    # Not under the lock: returns once a burst that is in the kernel now has left it.
    cdef uint64_t burst_number
    cdef bint is_sending
    lock_engine(engine)
    burst_number = loops.burst_number
    is_sending = loops.is_sending
    unlock_engine(engine)
    while is_sending:
        cc_wait(-1, 0, -1, 2e-5)
        lock_engine(engine)
        is_sending = loops.is_sending and loops.burst_number == burst_number
        unlock_engine(engine)


cdef bint send_arena_init(SendArena* arena, int burst_size) noexcept nogil:
    memset(arena, 0, sizeof(SendArena))
    arena.burst_size = burst_size
    arena.packets = <OutPacket*>calloc(burst_size, sizeof(OutPacket))
    arena.outs = <CcOut*>calloc(burst_size, sizeof(CcOut))
    arena.iov = <iovec*>calloc(3 * burst_size, sizeof(iovec))
    arena.heads = <uint8_t*>malloc(<size_t>burst_size * C_HEAD_SIZE)
    if (
        arena.packets == NULL or arena.outs == NULL or arena.iov == NULL or arena.heads == NULL
        or cc_arena_init(&arena.calls, burst_size, 0) != 0
    ):
        send_arena_free(arena)
        return False
    return True


cdef void send_arena_free(SendArena* arena) noexcept nogil:
    free(arena.packets)
    free(arena.outs)
    free(arena.iov)
    free(arena.heads)
    cc_arena_free(&arena.calls)


cdef int loop_choose_packets(
    EngineState* engine, SendArena* arena, int first_stage, int end_stage, double now
) noexcept nogil:
    # Under the lock. Fill `arena.packets`; return how many.
    cdef SendCursor cursor = SendCursor(first_stage, end_stage, 0)
    cdef int count = 0
    while count < arena.burst_size:
        arena.packets[count].head = arena.heads + <size_t>count * C_HEAD_SIZE
        if not engine_next_packet(engine, &cursor, &arena.packets[count], now):
            break
        count += 1
    return count


cdef inline size_t packet_to_iov(const OutPacket* packet, iovec* iov) noexcept nogil:
    cdef size_t count = 1
    cdef int part
    iov[0].iov_base = packet.head
    iov[0].iov_len = packet.head_size
    for part in range(2):
        if packet.part_sizes[part]:
            iov[count].iov_base = <void*>packet.parts[part]
            iov[count].iov_len = packet.part_sizes[part]
            count += 1
    return count


cdef int loop_group_packets(SendArena* arena, int packet_count, bint use_gso) noexcept nogil:
    # Turn packets into calls: with GSO, neighbours of one size to one peer become one call, which
    # a smaller packet may end (the kernel cuts at segment_size and sends the rest as it is).
    cdef int calls = 0
    cdef int number
    cdef size_t iov_used = 0
    cdef size_t added
    cdef uint32_t group_bytes = 0
    cdef int group_packets = 0
    cdef bint is_open = False
    cdef OutPacket* packet
    cdef OutPacket* first = NULL
    cdef CcOut* out = NULL
    for number in range(packet_count):
        packet = &arena.packets[number]
        added = packet_to_iov(packet, arena.iov + iov_used)
        if (
            is_open and not packet.is_alone and packet.size <= first.size and group_packets < C_MAX_GSO_SEGMENTS
            and group_bytes + packet.size <= C_MAX_GSO_BYTES
            and address_equal(&packet.address, &first.address)
        ):
            out.iov_count += added
            out.segment_size = <uint16_t>first.size
            group_bytes += packet.size
            group_packets += 1
            is_open = packet.size == first.size
        else:
            first = packet
            out = &arena.outs[calls]
            out.iov = arena.iov + iov_used
            out.iov_count = added
            out.ip = packet.address.ip
            out.port = packet.address.port
            out.segment_size = 0
            calls += 1
            group_bytes = packet.size
            group_packets = 1
            is_open = use_gso and not packet.is_alone
        iov_used += added
    return calls


cdef int loop_send_calls(
    int fd, int family, SendArena* arena, int call_count, Loops* loops, bint* use_gso, bint use_mmsg
) noexcept nogil:
    # Hand all calls to the kernel. Returns 0, or the errno of a socket that is beyond use.
    # A packet that the kernel refuses is as lost as one the network dropped: it is sent again.
    # After the stop too what was chosen leaves, as it may be a GOODBYE.
    cdef int done = 0
    cdef int last_waits = 0
    cdef int sent
    while done < call_count:
        loops.send_calls += 1
        sent = cc_send_burst(fd, family, &arena.calls, arena.outs + done, call_count - done, use_mmsg)
        if sent >= 0:
            done += sent
        elif cc_is_fatal(-sent):
            return -sent
        elif cc_is_full(-sent):
            loops.socket_full += 1
            last_waits += loops.stop_requested
            if last_waits > C_LAST_WAITS:
                return 0
            if cc_is_writable_when_full(-sent):
                cc_wait(-1, 0, -1, C_ERROR_PAUSE)
            else:
                cc_wait(fd, 1, -1, C_STOP_CHECK_INTERVAL)
        else:
            loops.send_errors += 1
            if arena.outs[done].segment_size and cc_is_gso_refusal(-sent):
                use_gso[0] = False
            done += 1
    return 0


cdef int loop_send_sacks(
    EngineState* engine, Loops* loops, int fd, int family, SendArena* arena, double now,
    bint use_mmsg
) noexcept nogil:
    # SACKs never wait for the socket: a later one tells the same.
    cdef int count
    cdef int sent
    lock_engine(engine)
    count = loop_choose_packets(engine, arena, STAGE_SACKS, STAGE_CHUNKS, now)
    unlock_engine(engine)
    count = loop_group_packets(arena, count, False)
    if count == 0:
        return 0
    loops.send_calls += 1
    sent = cc_send_burst(fd, family, &arena.calls, arena.outs, count, use_mmsg)
    if sent < 0 and cc_is_fatal(-sent):
        return -sent
    if sent < count:
        loops.socket_full += 1
    return 0


cdef void loop_receive_slot(
    EngineState* engine, Loops* loops, const CcIn* slot, double now
) noexcept nogil:
    # One slot under one hold of the lock: at most 64 KiB of copying.
    cdef PeerAddress address
    cdef size_t offset = 0
    cdef size_t size
    memcpy(address.ip, slot.ip, 16)
    address.port = slot.port
    lock_engine(engine)
    if slot.size == 0:
        engine_receive(engine, slot.data, 0, &address, now)
    while offset < slot.size:
        size = slot.size - offset
        if size > slot.segment_size:
            size = slot.segment_size
        engine_receive(engine, slot.data + offset, size, &address, now)
        offset += size
    if loops.sender_waiting and engine_send_due_at(engine) < loops.sender_due_at:
        loop_wake_sender(loops)
    loop_signal_events(engine, loops)
    unlock_engine(engine)


cdef int loop_receive(
    EngineState* engine, Loops* loops, int fd, bint use_gro, bint use_mmsg
) noexcept nogil:
    cdef CcArena arena
    cdef SendArena sack_arena
    cdef int family = cc_socket_family(fd)
    cdef int count
    cdef int number
    cdef int error = 0
    cdef double now
    cdef double due
    if cc_arena_init(&arena, C_RECEIVE_SLOTS, 1) != 0:
        return 12  # ENOMEM
    if not send_arena_init(&sack_arena, C_SACK_BURST):
        cc_arena_free(&arena)
        return 12
    if use_gro:
        cc_enable_gro(fd)
    while error == 0 and not loops.stop_requested:
        count = cc_recv_burst(fd, &arena, use_mmsg)
        loops.receive_calls += 1
        now = cc_now()
        if count < 0 and not cc_is_full(-count):
            loops.receive_errors += 1
            if cc_is_fatal(-count):
                error = -count
            else:
                cc_wait(-1, 0, loops.receive_fds[0], C_ERROR_PAUSE)
            continue
        for number in range(count):
            loop_receive_slot(engine, loops, &arena.in_[number], now)
        error = loop_send_sacks(engine, loops, fd, family, &sack_arena, now, use_mmsg)
        if count <= 0 and error == 0:
            lock_engine(engine)
            due = engine_sack_due_at(engine)
            unlock_engine(engine)
            cc_wait(fd, 0, loops.receive_fds[0], -1.0 if due == C_NEVER else larger(due - now, 0.0))
    send_arena_free(&sack_arena)
    cc_arena_free(&arena)
    return error


cdef int loop_send(
    EngineState* engine, Loops* loops, int fd, int burst_size, bint use_gso, bint use_mmsg
) noexcept nogil:
    cdef SendArena arena
    cdef int family = cc_socket_family(fd)
    cdef int count
    cdef int error = 0
    cdef double now
    cdef double due = C_NEVER
    use_gso = use_gso and cc_has_gso(fd)
    if not send_arena_init(&arena, burst_size):
        return 12  # ENOMEM
    while error == 0 and not loops.stop_requested:
        now = cc_now()
        lock_engine(engine)
        engine_on_timer(engine, now)
        loop_signal_events(engine, loops)
        count = loop_choose_packets(engine, &arena, STAGE_HELLOS, STAGE_SACKS, now)
        if count == 0:
            count = loop_choose_packets(engine, &arena, STAGE_CHUNKS, STAGE_END, now)
        if count:
            loops.is_sending = 1
            loops.burst_number += 1
        else:
            due = engine_send_due_at(engine)
            loops.sender_waiting = 1
            loops.sender_due_at = due
        unlock_engine(engine)
        if count:
            count = loop_group_packets(&arena, count, use_gso)
            error = loop_send_calls(fd, family, &arena, count, loops, &use_gso, use_mmsg)
            lock_engine(engine)
            loops.is_sending = 0
            unlock_engine(engine)
        else:
            if due > now:
                cc_wait(-1, 0, loops.send_fds[0], -1.0 if due == C_NEVER else due - now)
            cc_signal_clear(loops.send_fds)
    send_arena_free(&arena)
    return error
