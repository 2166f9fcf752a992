# PacketEngine: the class that Python sees. It converts, locks, and holds payload memory.
#
# Between _lock and _unlock no Python object is made or dropped but bytes: a garbage collection in
# between could run a finaliser that calls the engine again.

cdef enum:
    OPEN_DONE = 0
    OPEN_TAKEN = 1
    OPEN_NO_MEMORY = 2


cdef class PacketEngine:
    cdef EngineState state
    cdef Loops loops
    cdef int burst_size
    cdef dict _outgoing_pins  # buffer id -> (peer, prefix, _Pin of the body)
    cdef dict _incoming_pins  # buffer id -> (peer, _Pin of the destination)
    cdef _Addresses _addresses

    def __cinit__(
        self, *, int burst_size=174, int64_t receive_capacity=1 << 20,
        double keepalive_interval=0.0, double strangers_per_second=0.0,
    ):
        cdef int number
        if burst_size < 1:
            raise ValueError(f"burst_size must be at least 1, not {burst_size}")
        memset(&self.state, 0, sizeof(EngineState))
        memset(&self.loops, 0, sizeof(Loops))
        for number in range(2):
            self.loops.event_fds[number] = -1
            self.loops.send_fds[number] = -1
            self.loops.receive_fds[number] = -1
        self.state.lock = PyThread_allocate_lock()
        if self.state.lock == NULL:
            raise MemoryError
        self.state.receive_capacity = receive_capacity
        self.state.keepalive_interval = keepalive_interval
        self.state.strangers_per_second = strangers_per_second
        self.state.stranger_tokens = strangers_per_second
        self.state.turn_left = C_TURN_PACKETS
        self.burst_size = burst_size
        self._outgoing_pins = {}
        self._incoming_pins = {}
        self._addresses = _Addresses()

    def __dealloc__(self):
        engine_free(&self.state)
        cc_signal_close(self.loops.event_fds)
        cc_signal_close(self.loops.send_fds)
        cc_signal_close(self.loops.receive_fds)
        if self.state.lock != NULL:
            PyThread_free_lock(self.state.lock)

    cdef inline void _lock(self) noexcept:
        # Never hold the lock while waiting for the GIL (a busy Python thread would stall the
        # loops), nor the GIL while waiting for the lock.
        while not PyThread_acquire_lock(self.state.lock, 0):
            with nogil:
                lock_engine(&self.state)
                unlock_engine(&self.state)

    cdef inline void _unlock(self) noexcept:
        unlock_engine(&self.state)

    # Peers

    def allow_address(self, address):
        cdef PeerAddress packed
        cdef bint has_memory
        self._addresses.load(address, &packed, True)
        self._lock()
        has_memory = engine_allow(&self.state, &packed)
        self._unlock()
        if not has_memory:
            raise MemoryError

    def disallow_address(self, address):
        cdef PeerAddress packed
        self._addresses.load(address, &packed, False)
        self._lock()
        engine_disallow(&self.state, &packed)
        self._unlock()

    def connect_peer(
        self, int64_t peer, address, *, uint32_t local_session, uint32_t remote_session,
        int64_t packet_size=C_MIN_PACKET_SIZE, int64_t largest_packet_size=0, double now,
    ):
        cdef PeerAddress packed
        cdef PeerFlow* flow
        cdef PeerFlow* owner
        cdef PeerFlow* old
        cdef int32_t owner_index
        cdef int status
        if not 0 <= peer < C_MAX_PEERS:
            raise ValueError(f"a peer index must be 0 to {C_MAX_PEERS - 1}, not {peer}")
        if not C_MIN_PACKET_SIZE <= packet_size <= C_MAX_PACKET_SIZE:
            raise ValueError(
                f"packet_size must be {C_MIN_PACKET_SIZE} to {C_MAX_PACKET_SIZE}, not {packet_size}"
            )
        if largest_packet_size > C_MAX_PACKET_SIZE:
            raise ValueError(
                f"largest_packet_size is at most {C_MAX_PACKET_SIZE}, not {largest_packet_size}"
            )
        self._addresses.load(address, &packed, True)
        flow = flow_new(
            <int32_t>peer, &packed, local_session, remote_session, <uint32_t>packet_size,
            <uint32_t>(largest_packet_size if largest_packet_size > 0 else 0),
            self.state.keepalive_interval, now,
        )
        if flow == NULL:
            raise MemoryError
        self._lock()
        owner = engine_find_session(&self.state, local_session)
        if owner != NULL and owner.index != peer:
            owner_index = owner.index
            status = OPEN_TAKEN
        else:
            owner_index = 0
            old = engine_find_flow(&self.state, <int32_t>peer)
            if old != NULL:
                engine_remove_flow(&self.state, old)
            status = OPEN_DONE if engine_add_flow(&self.state, flow) else OPEN_NO_MEMORY
        self._unlock()
        if status != OPEN_TAKEN:
            self._drop_pins(peer)
        if status != OPEN_DONE:
            flow_free(flow)
        if status == OPEN_TAKEN:
            raise ValueError(f"session {local_session} belongs to peer {owner_index}")
        if status == OPEN_NO_MEMORY:
            raise MemoryError

    def disconnect_peer(self, int32_t peer):
        cdef PeerFlow* flow
        self._lock()
        flow = engine_find_flow(&self.state, peer)
        if flow != NULL:
            engine_remove_flow(&self.state, flow)
        self._unlock()
        self._drop_pins(peer)

    cdef _drop_pins(self, int64_t peer):
        with nogil:
            loop_wait_for_burst(&self.state, &self.loops)
        for pins in (self._outgoing_pins, self._incoming_pins):
            for buffer_id in [key for key, pin in pins.items() if pin[0] == peer]:
                del pins[buffer_id]

    # Messages

    def send_hello(self, address, bytes payload not None):
        cdef PeerAddress packed
        check_message_size(payload)
        self._addresses.load(address, &packed, True)
        self._lock()
        queue_push(
            &self.state.hellos, &packed, <const uint8_t*>PyBytes_AS_STRING(payload),
            <uint32_t>len(payload),
        )
        loop_wake_sender(&self.loops)
        self._unlock()

    def send_message(self, int32_t peer, bytes payload not None):
        cdef PeerFlow* flow
        cdef bint is_queued = False
        check_message_size(payload)
        self._lock()
        flow = engine_find_flow(&self.state, peer)
        if flow != NULL:
            is_queued = queue_push(
                &flow.messages, &flow.address, <const uint8_t*>PyBytes_AS_STRING(payload),
                <uint32_t>len(payload),
            )
            loop_wake_sender(&self.loops)
        self._unlock()
        return is_queued

    def expect_stun(self, bytes transaction_id not None):
        cdef bint is_expected
        if len(transaction_id) != C_STUN_ID_SIZE:
            raise ValueError(
                f"a transaction id has {C_STUN_ID_SIZE} bytes, not {len(transaction_id)}"
            )
        self._lock()
        is_expected = stun_expect(
            &self.state.stun, <const uint8_t*>PyBytes_AS_STRING(transaction_id)
        )
        self._unlock()
        if not is_expected:
            raise ValueError(f"{C_MAX_STUN_TRANSACTIONS} transactions are waited for already")

    def forget_stun(self, bytes transaction_id not None):
        if len(transaction_id) != C_STUN_ID_SIZE:
            return
        self._lock()
        stun_forget(&self.state.stun, <const uint8_t*>PyBytes_AS_STRING(transaction_id))
        self._unlock()

    # Buffers

    def open_outgoing(
        self, int32_t peer, uint64_t buffer_id, bytes prefix not None, body, *, int64_t chunk_size
    ):
        cdef _Pin pin = _Pin(memoryview(body).cast("B"), False)
        cdef uint64_t size = len(prefix) + pin.view.len
        cdef OutgoingBuffer* buffer
        cdef PeerFlow* flow
        check_layout(size, chunk_size, self._largest_chunk(peer))
        if buffer_id in self._outgoing_pins:
            raise ValueError(f"buffer {buffer_id} is being sent already")
        buffer = outgoing_new(
            buffer_id, <const uint8_t*>PyBytes_AS_STRING(prefix), len(prefix),
            <const uint8_t*>pin.view.buf, size, chunk_size,
        )
        if buffer == NULL:
            raise MemoryError
        self._outgoing_pins[buffer_id] = (peer, prefix, pin)
        self._lock()
        flow = engine_find_flow(&self.state, peer)
        if flow != NULL:
            engine_link_outgoing(&self.state, flow, buffer, NULL)
        loop_wake_sender(&self.loops)
        loop_signal_events(&self.state, &self.loops)
        self._unlock()
        if flow == NULL:
            outgoing_free(buffer)
            self._outgoing_pins.pop(buffer_id, None)
            raise ValueError(f"peer {peer} is not connected")

    def open_relay(
        self, int32_t peer, uint64_t buffer_id, uint64_t source_id, *, int64_t chunk_size
    ):
        cdef int64_t largest_chunk = self._largest_chunk(peer)
        cdef _Pin pin = self._incoming_pins.get(source_id, (None, None))[1]
        cdef IncomingBuffer* source
        cdef OutgoingBuffer* buffer
        cdef PeerFlow* flow
        cdef uint64_t size = 0
        self._lock()
        source = engine_find_incoming(&self.state, source_id) if pin is not None else NULL
        if source != NULL:
            size = source.size
        self._unlock()
        if source == NULL:
            raise ValueError(f"buffer {source_id} is not being received")
        check_layout(size, chunk_size, largest_chunk)
        if buffer_id in self._outgoing_pins:
            raise ValueError(f"buffer {buffer_id} is being sent already")
        buffer = outgoing_new(
            buffer_id, NULL, 0, <const uint8_t*>pin.view.buf, size, chunk_size
        )
        if buffer == NULL:
            raise MemoryError
        self._outgoing_pins[buffer_id] = (peer, b"", pin)
        self._lock()
        source = engine_find_incoming(&self.state, source_id)
        flow = engine_find_flow(&self.state, peer)
        if flow != NULL and source != NULL:
            engine_link_outgoing(&self.state, flow, buffer, source)
        loop_wake_sender(&self.loops)
        loop_signal_events(&self.state, &self.loops)
        self._unlock()
        if flow == NULL or source == NULL:
            outgoing_free(buffer)
            self._outgoing_pins.pop(buffer_id, None)
            raise ValueError(f"peer {peer} or buffer {source_id} went away")

    def close_outgoing(self, uint64_t buffer_id):
        cdef OutgoingBuffer* buffer
        self._lock()
        buffer = engine_find_outgoing(&self.state, buffer_id)
        if buffer != NULL:
            flow_silence(buffer.flow, buffer)
            engine_unlink_outgoing(&self.state, buffer)
            loop_wake_sender(&self.loops)
        self._unlock()
        with nogil:
            loop_wait_for_burst(&self.state, &self.loops)
        self._outgoing_pins.pop(buffer_id, None)

    def open_incoming(
        self, int32_t peer, uint64_t buffer_id, destination, *, int64_t size, int64_t chunk_size
    ):
        view = memoryview(destination).cast("B")
        if view.readonly or len(view) < size:
            raise ValueError(f"the destination of {size} bytes is read-only or too small")
        if size < 0:
            raise ValueError(f"a buffer of {size} bytes cannot travel in chunks of {chunk_size}")
        cdef _Pin pin = _Pin(view, True)
        cdef IncomingBuffer* buffer
        cdef PeerFlow* flow
        self._largest_chunk(peer)
        check_layout(size, chunk_size, <int64_t>chunk_size_of(C_MAX_PACKET_SIZE))
        if buffer_id in self._incoming_pins:
            raise ValueError(f"buffer {buffer_id} is being received already")
        buffer = <IncomingBuffer*>calloc(1, sizeof(IncomingBuffer))
        if buffer == NULL or not bitmap_init(
            &buffer.received, <uint32_t>chunk_count_of(size, <uint32_t>chunk_size)
        ):
            free(buffer)
            raise MemoryError
        buffer.buffer_id = buffer_id
        buffer.chunk_size = <uint32_t>chunk_size
        buffer.size = size
        buffer.destination = <uint8_t*>pin.view.buf
        self._incoming_pins[buffer_id] = (peer, pin)
        self._lock()
        flow = engine_find_flow(&self.state, peer)
        if flow != NULL:
            engine_link_incoming(&self.state, flow, buffer)
        loop_signal_events(&self.state, &self.loops)
        self._unlock()
        if flow == NULL:
            incoming_free(buffer)
            self._incoming_pins.pop(buffer_id, None)
            raise ValueError(f"peer {peer} is not connected")

    def close_incoming(self, uint64_t buffer_id):
        cdef IncomingBuffer* buffer
        self._lock()
        buffer = engine_find_incoming(&self.state, buffer_id)
        if buffer != NULL:
            engine_unlink_incoming(buffer)
        self._unlock()
        self._incoming_pins.pop(buffer_id, None)

    cdef int64_t _largest_chunk(self, int32_t peer) except -1:
        cdef PeerFlow* flow
        cdef int64_t largest = -1
        self._lock()
        flow = engine_find_flow(&self.state, peer)
        if flow != NULL:
            largest = chunk_size_of(flow.mtu.packet_size)
        self._unlock()
        if largest < 0:
            raise ValueError(f"peer {peer} is not connected")
        return largest

    # Packets

    def receive_packet(self, bytes packet not None, address, double now):
        cdef PeerAddress packed
        self._addresses.load(address, &packed, False)
        self._lock()
        engine_receive(
            &self.state, <const uint8_t*>PyBytes_AS_STRING(packet), len(packet), &packed, now
        )
        loop_signal_events(&self.state, &self.loops)
        self._unlock()

    def packets_to_send(self, double now, *, int limit=0):
        cdef SendCursor cursor = SendCursor(STAGE_HELLOS, STAGE_END, 0)
        cdef uint8_t head[C_HEAD_SIZE]
        cdef OutPacket out
        cdef bytes packet
        cdef list packets = []
        if limit <= 0:
            limit = self.burst_size
        out.head = head
        self._lock()
        engine_on_timer(&self.state, now)
        loop_signal_events(&self.state, &self.loops)
        self._unlock()
        while len(packets) < limit:
            packet = None
            self._lock()
            try:
                if engine_next_packet(&self.state, &cursor, &out, now):
                    packet = join_packet(&out)
            finally:
                self._unlock()
            if packet is None:
                break
            packets.append((self._addresses.name(&out.address), packet))
        return packets

    def next_timer(self):
        cdef double due
        self._lock()
        due = smaller(engine_send_due_at(&self.state), engine_sack_due_at(&self.state))
        self._unlock()
        return None if due == C_NEVER else due

    # Events and numbers

    def take_events(self):
        cdef Event* events
        cdef uint32_t count
        cdef uint32_t number
        cdef list taken = []
        self._lock()
        events = self.state.events
        count = self.state.event_count
        self.state.events = NULL
        self.state.event_count = 0
        self.state.event_capacity = 0
        self.state.event_bytes = 0
        self.state.stun.waiting = 0
        self.loops.events_signalled = 0
        self._unlock()
        try:
            for number in range(count):
                taken.append(self._event(&events[number]))
        finally:
            for number in range(count):
                free(events[number].payload)
            free(events)
        return taken

    cdef tuple _event(self, const Event* event):
        if event.code == C_EVENT_HELLO or event.code == C_EVENT_STUN:
            return event.code, self._addresses.name(&event.address), event.payload[:event.size]
        if event.code == C_EVENT_MESSAGE:
            return event.code, event.peer, event.payload[:event.size]
        return event.code, event.peer, event.buffer_id  # or, in its place, the packet size

    def peer_stats(self, int32_t peer):
        cdef PeerFlow* flow
        cdef PeerFlow copy
        memset(&copy, 0, sizeof(PeerFlow))
        self._lock()
        flow = engine_find_flow(&self.state, peer)
        if flow != NULL:
            copy = flow[0]
        self._unlock()
        if flow == NULL:
            raise ValueError(f"peer {peer} is not connected")
        return flow_numbers(&copy)

    def stats(self):
        cdef uint64_t counters[COUNTERS_END]
        self._lock()
        memcpy(counters, self.state.counters, sizeof(counters))
        self._unlock()
        return {name: counters[<int>number] for number, name in enumerate(COUNTERS)}

    # Loops

    cdef int _open_signals(self) except -1:
        cdef int error = 0
        if self.loops.event_fds[0] < 0:
            error = cc_signal_open(self.loops.event_fds)
        if error == 0 and self.loops.send_fds[0] < 0:
            error = cc_signal_open(self.loops.send_fds)
        if error == 0 and self.loops.receive_fds[0] < 0:
            error = cc_signal_open(self.loops.receive_fds)
        if error:
            raise OSError(-error, "no pipe for the engine's wake-ups")
        return 0

    @property
    def event_fd(self):
        self._open_signals()
        return self.loops.event_fds[0]

    def clear_event_fd(self):
        cc_signal_clear(self.loops.event_fds)

    def receive_loop(self, int fd, *, bint use_gro=True, bint use_mmsg=True):
        cdef int error
        self._open_signals()
        with nogil:
            error = loop_receive(&self.state, &self.loops, fd, use_gro, use_mmsg)
        if error:
            raise OSError(error, "the receive loop cannot use its socket")

    def send_loop(self, int fd, *, bint use_gso=True, bint use_mmsg=True):
        cdef int error
        self._open_signals()
        with nogil:
            error = loop_send(&self.state, &self.loops, fd, self.burst_size, use_gso, use_mmsg)
        if error:
            raise OSError(error, "the send loop cannot use its socket")

    def stop_loops(self):
        self.loops.stop_requested = 1
        if self.loops.send_fds[1] >= 0:
            cc_signal_set(self.loops.send_fds)
            cc_signal_set(self.loops.receive_fds)

    def close_loops(self):
        cc_signal_close(self.loops.event_fds)
        cc_signal_close(self.loops.send_fds)
        cc_signal_close(self.loops.receive_fds)

    def loop_stats(self):
        return {
            "receive_calls": self.loops.receive_calls,
            "send_calls": self.loops.send_calls,
            "send_errors": self.loops.send_errors,
            "receive_errors": self.loops.receive_errors,
            "socket_full": self.loops.socket_full,
        }
