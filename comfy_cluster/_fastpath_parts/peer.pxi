# The flow of packets to and from one peer: the compiled half of _fastpath_py/peer.py, which explains
# how it works.

cdef enum:
    C_SACK_CHUNKS = 2
    C_SACK_BYTES = 14400
    C_SACK_EARLY_CHUNKS = 100
    C_PROBE_PACKETS = 2
    C_PERSISTENT_PROBES = 3
    C_INITIAL_RECEIVE_WINDOW = 262144
    C_MINIMUM_RECEIVE_WINDOW = 65536
    C_MESSAGE_QUEUE_LIMIT = 1024
    C_KEEPALIVE_LIMIT = 60

cdef double C_MAX_ACK_DELAY = 0.001
cdef double C_ACK_DELAY_LIMIT = 0.025
cdef double C_MAX_PROBE_INTERVAL = 1.0
cdef double C_NEVER = <double>INFINITY

cdef struct PeerAddress:
    uint8_t ip[16]  # IPv4 as ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2)
    uint16_t port

cdef struct LostChunk:
    OutgoingBuffer* buffer
    uint32_t chunk_index

cdef struct LostQueue:
    LostChunk* items
    uint64_t capacity  # a power of two
    uint64_t first
    uint64_t end

cdef struct QueuedMessage:
    QueuedMessage* next
    PeerAddress address  # of a HELLO; messages go to their peer's
    uint32_t size
    uint8_t payload[1]

cdef struct MessageQueue:
    QueuedMessage* head
    QueuedMessage* tail
    uint32_t count

cdef struct PeerFlow:
    int32_t index
    PeerAddress address
    uint32_t local_session
    uint32_t remote_session
    Mtu mtu
    Rtt rtt
    Congestion congestion
    PacerState pacer
    SentPackets sent
    History history
    int64_t receive_window
    MessageQueue messages
    OutgoingBuffer* sending_head
    OutgoingBuffer* sending_tail
    LostQueue lost
    IncomingBuffer* incoming
    uint32_t incomplete_count
    double loss_at
    double probe_at
    double sack_at
    double largest_received_at
    double keepalive_interval
    uint32_t keepalives_left
    double last_sent_at
    double reordering
    uint32_t probe_count
    double last_chunk_sent_at
    int64_t largest_acked
    int64_t largest_sack
    uint32_t chunks_since_sack
    uint64_t bytes_since_sack
    int64_t newly_acked     # of the SACK at hand
    double newest_sent_at
    double last_received_at
    uint64_t packets_sent
    uint64_t packets_received
    uint64_t bytes_sent
    uint64_t bytes_received
    uint64_t chunks_sent
    uint64_t chunks_retransmitted
    uint64_t bytes_retransmitted
    uint64_t chunks_received
    uint64_t chunks_duplicate
    uint64_t packets_lost
    uint64_t spurious_losses
    uint64_t probes_sent
    uint64_t sacks_sent
    uint64_t sacks_received


cdef inline bint address_equal(const PeerAddress* a, const PeerAddress* b) noexcept nogil:
    return a.port == b.port and memcmp(a.ip, b.ip, 16) == 0


cdef bint queue_push(
    MessageQueue* queue, const PeerAddress* address, const uint8_t* payload, uint32_t size
) noexcept nogil:
    cdef QueuedMessage* message
    if queue.count >= C_MESSAGE_QUEUE_LIMIT:
        return False
    message = <QueuedMessage*>malloc(sizeof(QueuedMessage) + size)
    if message == NULL:
        return False
    message.next = NULL
    message.address = address[0]
    message.size = size
    memcpy(message.payload, payload, size)
    if queue.tail == NULL:
        queue.head = message
    else:
        queue.tail.next = message
    queue.tail = message
    queue.count += 1
    return True


cdef inline QueuedMessage* queue_pop(MessageQueue* queue) noexcept nogil:
    # The caller frees what it gets; the queue is not empty.
    cdef QueuedMessage* message = queue.head
    queue.head = message.next
    if queue.head == NULL:
        queue.tail = NULL
    queue.count -= 1
    return message


cdef inline void queue_clear(MessageQueue* queue) noexcept nogil:
    while queue.head != NULL:
        free(queue_pop(queue))


cdef inline LostChunk* lost_at_position(LostQueue* queue, uint64_t position) noexcept nogil:
    return &queue.items[position & (queue.capacity - 1)]


cdef bint lost_reserve(LostQueue* queue) noexcept nogil:
    # Make room for one more before it is needed: a lost chunk must never be forgotten.
    cdef LostChunk* items
    cdef uint64_t capacity
    cdef uint64_t number
    if queue.end - queue.first < queue.capacity:
        return True
    capacity = 2 * queue.capacity if queue.capacity else 64
    items = <LostChunk*>malloc(capacity * sizeof(LostChunk))
    if items == NULL:
        return False
    for number in range(queue.end - queue.first):
        items[number] = lost_at_position(queue, queue.first + number)[0]
    free(queue.items)
    queue.items = items
    queue.end -= queue.first
    queue.first = 0
    queue.capacity = capacity
    return True


cdef void lost_forget_buffer(LostQueue* queue, OutgoingBuffer* buffer) noexcept nogil:
    cdef uint64_t position = queue.first
    cdef uint64_t kept = queue.first
    while position < queue.end:
        if lost_at_position(queue, position).buffer != buffer:
            lost_at_position(queue, kept)[0] = lost_at_position(queue, position)[0]
            kept += 1
        position += 1
    queue.end = kept


cdef PeerFlow* flow_new(
    int32_t index, const PeerAddress* address, uint32_t local_session, uint32_t remote_session,
    uint32_t packet_size, uint32_t largest_packet_size, double keepalive_interval, double now
) noexcept nogil:
    cdef PeerFlow* flow = <PeerFlow*>calloc(1, sizeof(PeerFlow))
    if flow == NULL:
        return NULL
    if not sent_init(&flow.sent):
        free(flow)
        return NULL
    flow.index = index
    flow.address = address[0]
    flow.local_session = local_session
    flow.remote_session = remote_session
    mtu_init(&flow.mtu, packet_size, largest_packet_size, now)
    rtt_init(&flow.rtt)
    congestion_init(&flow.congestion, packet_size, <uint32_t>index)
    pacer_init(&flow.pacer, packet_size)
    history_init(&flow.history)
    flow.receive_window = C_INITIAL_RECEIVE_WINDOW
    flow.loss_at = C_NEVER
    flow.probe_at = C_NEVER
    flow.sack_at = C_NEVER
    flow.keepalive_interval = keepalive_interval
    flow.keepalives_left = C_KEEPALIVE_LIMIT
    flow.last_sent_at = now
    flow.largest_acked = -1
    flow.largest_sack = -1
    flow.last_received_at = now
    return flow


cdef void flow_free(PeerFlow* flow) noexcept nogil:
    queue_clear(&flow.messages)
    free(flow.sent.entries)
    free(flow.lost.items)
    free(flow)


# Receiving chunks

cdef inline void flow_on_counter_accepted(PeerFlow* flow, int64_t counter, double now) noexcept nogil:
    if counter > flow.history.largest:
        flow.largest_received_at = now
    history_add(&flow.history, counter)


cdef inline void flow_on_chunk_accepted(
    PeerFlow* flow, int64_t counter, uint32_t size, bint is_complete, double now
) noexcept nogil:
    cdef bint in_order = counter == flow.history.largest + 1
    cdef bint is_enough
    flow_on_counter_accepted(flow, counter, now)
    flow.chunks_since_sack += 1
    flow.bytes_since_sack += size
    is_enough = flow.chunks_since_sack >= C_SACK_CHUNKS and (
        flow.bytes_since_sack >= C_SACK_BYTES or flow.chunks_received < C_SACK_EARLY_CHUNKS
    )
    if is_complete or not in_order or is_enough:
        flow.sack_at = now
    else:
        flow.sack_at = smaller(flow.sack_at, now + C_MAX_ACK_DELAY)


cdef inline double flow_sack_due_at(const PeerFlow* flow) noexcept nogil:
    if flow.keepalive_interval == 0.0 or flow.keepalives_left == 0 or flow.history.largest < 0:
        return flow.sack_at
    return smaller(flow.sack_at, flow.last_sent_at + flow.keepalive_interval)


cdef inline IncomingBuffer* flow_find_incoming(PeerFlow* flow, uint64_t buffer_id) noexcept nogil:
    # Moves what it finds to the front: the next chunk is most likely of the same buffer.
    cdef IncomingBuffer* previous = NULL
    cdef IncomingBuffer* buffer = flow.incoming
    while buffer != NULL and buffer.buffer_id != buffer_id:
        previous = buffer
        buffer = buffer.next_open
    if buffer != NULL and previous != NULL:
        previous.next_open = buffer.next_open
        buffer.next_open = flow.incoming
        flow.incoming = buffer
    return buffer


# Sending chunks

cdef inline int64_t flow_window(const PeerFlow* flow) noexcept nogil:
    cdef int64_t window = congestion_window(&flow.congestion)
    cdef int64_t receivable = flow.receive_window + congestion_underway(&flow.congestion)
    return window if window < receivable else receivable


cdef inline bint flow_can_send_chunk(const PeerFlow* flow) noexcept nogil:
    cdef int64_t flight = flow.sent.bytes_in_flight
    if not sent_has_room(&flow.sent):
        return False
    return flight == 0 or flight + flow.mtu.packet_size <= flow_window(flow)


cdef inline bint flow_has_chunks(PeerFlow* flow) noexcept nogil:
    cdef LostChunk* item
    while flow.lost.first < flow.lost.end:
        item = lost_at_position(&flow.lost, flow.lost.first)
        if not bitmap_has(&item.buffer.acked, item.chunk_index):
            return True
        flow.lost.first += 1
    return flow.sending_head != NULL


cdef inline void flow_refill_pacer(PeerFlow* flow, double now) noexcept nogil:
    if flow.rtt.latest <= 0.0:
        pacer_refill(&flow.pacer, now, 0.0)
        return
    pacer_refill(
        &flow.pacer, now, congestion_pacing_rate(&flow.congestion, flow.rtt.smoothed)
    )


cdef inline void flow_append_sending(PeerFlow* flow, OutgoingBuffer* buffer) noexcept nogil:
    buffer.next_sending = NULL
    if flow.sending_tail == NULL:
        flow.sending_head = buffer
    else:
        flow.sending_tail.next_sending = buffer
    flow.sending_tail = buffer


cdef inline OutgoingBuffer* flow_pop_sending(PeerFlow* flow) noexcept nogil:
    cdef OutgoingBuffer* buffer = flow.sending_head
    flow.sending_head = buffer.next_sending
    if flow.sending_head == NULL:
        flow.sending_tail = NULL
    return buffer


cdef void flow_remove_sending(PeerFlow* flow, OutgoingBuffer* buffer) noexcept nogil:
    cdef OutgoingBuffer* each
    cdef OutgoingBuffer* rest = flow.sending_head
    flow.sending_head = NULL
    flow.sending_tail = NULL
    while rest != NULL:
        each = rest
        rest = rest.next_sending
        if each != buffer:
            flow_append_sending(flow, each)


cdef inline OutgoingBuffer* flow_next_chunk(PeerFlow* flow, uint32_t* chunk_index) noexcept nogil:
    cdef LostChunk* item
    cdef OutgoingBuffer* buffer
    if flow.lost.first < flow.lost.end:
        item = lost_at_position(&flow.lost, flow.lost.first)
        flow.lost.first += 1
        flow.chunks_retransmitted += 1
        flow.bytes_retransmitted += outgoing_chunk_length(item.buffer, item.chunk_index)
        chunk_index[0] = item.chunk_index
        return item.buffer
    buffer = flow.sending_head
    chunk_index[0] = buffer.next_chunk
    buffer.next_chunk += 1
    if not outgoing_has_unsent(buffer):
        flow_pop_sending(flow)
    return buffer


cdef inline void flow_on_source_progress(
    PeerFlow* flow, OutgoingBuffer* buffer, uint64_t size
) noexcept nogil:
    cdef bint was_waiting = not outgoing_has_unsent(buffer)
    buffer.available_chunks = <uint32_t>(size // buffer.chunk_size)
    if size == buffer.size:
        buffer.available_chunks = buffer.acked.chunk_count
    if was_waiting and outgoing_has_unsent(buffer):
        flow_append_sending(flow, buffer)


cdef inline void flow_end_turn(PeerFlow* flow) noexcept nogil:
    cdef OutgoingBuffer* first = flow.sending_head
    cdef OutgoingBuffer* each = first
    while each != NULL and outgoing_bytes_left(each) >= outgoing_bytes_left(first):
        each = each.next_sending
    if each != NULL:
        flow_append_sending(flow, flow_pop_sending(flow))


# Losses and timers

cdef inline void flow_on_packet_lost(PeerFlow* flow, SentEntry* entry) noexcept nogil:
    cdef LostChunk* item
    if not lost_reserve(&flow.lost):
        return  # out of memory: the packet stays in flight, and is looked at again later
    flow.packets_lost += 1
    sent_on_lost(&flow.sent, entry)
    if not bitmap_has(&entry.buffer.acked, entry.chunk_index):
        item = lost_at_position(&flow.lost, flow.lost.end)
        item.buffer = entry.buffer
        item.chunk_index = entry.chunk_index
        flow.lost.end += 1


cdef inline uint64_t flow_take_counter(PeerFlow* flow) noexcept nogil:
    if sent_is_full(&flow.sent):
        flow_on_packet_lost(flow, sent_first_in_flight(&flow.sent))
    return sent_take_counter(&flow.sent)


cdef inline void flow_set_probe_timer(PeerFlow* flow) noexcept nogil:
    cdef double timeout
    cdef double interval
    if flow.sent.bytes_in_flight == 0 or flow.loss_at != C_NEVER:
        flow.probe_at = C_NEVER
        return
    timeout = rtt_retransmit_timeout(&flow.rtt)
    interval = timeout + C_MAX_ACK_DELAY
    interval = interval * <double>(<uint64_t>1 << (flow.probe_count if flow.probe_count < 16 else 16))
    flow.probe_at = flow.last_chunk_sent_at + larger(smaller(interval, C_MAX_PROBE_INTERVAL), timeout)


cdef void flow_detect_losses(PeerFlow* flow, double now) noexcept nogil:
    cdef double loss_delay = rtt_loss_delay(&flow.rtt, flow.reordering)
    cdef double newest_lost_at = 0.0
    cdef int64_t lost = 0
    cdef SentEntry* entry
    cdef uint64_t lost_before
    flow.loss_at = C_NEVER
    while True:
        entry = sent_first_in_flight(&flow.sent)
        if entry == NULL or <int64_t>entry.counter >= flow.largest_acked:
            break
        if entry.sent_at + loss_delay > now:
            flow.loss_at = entry.sent_at + loss_delay
            break
        newest_lost_at = entry.sent_at
        lost += entry.size
        lost_before = flow.packets_lost
        flow_on_packet_lost(flow, entry)
        if flow.packets_lost == lost_before:
            break
    if lost:
        congestion_on_lost(&flow.congestion, lost, newest_lost_at, flow.rtt.latest, now)


cdef inline void flow_on_packet_size_changed(PeerFlow* flow) noexcept nogil:
    congestion_set_packet_size(&flow.congestion, flow.mtu.packet_size)
    flow.pacer.packet_size = flow.mtu.packet_size


cdef void flow_probe(PeerFlow* flow, double now) noexcept nogil:
    cdef SentEntry* entry
    cdef bint is_persistent
    cdef int left
    flow.probe_count += 1
    flow.probes_sent += 1
    is_persistent = flow.probe_count == C_PERSISTENT_PROBES
    left = C_MAX_CAPACITY if is_persistent else C_PROBE_PACKETS
    entry = sent_first_in_flight(&flow.sent)
    while entry != NULL and left > 0:
        flow_on_packet_lost(flow, entry)
        entry = sent_first_in_flight(&flow.sent)
        left -= 1
    if is_persistent:
        congestion_on_persistent_loss(&flow.congestion)
    if flow.probe_count >= C_PERSISTENT_PROBES:
        mtu_verify(&flow.mtu, now)
    flow_set_probe_timer(flow)


cdef inline void flow_on_timer(PeerFlow* flow, double now) noexcept nogil:
    if mtu_on_timer(&flow.mtu, now):
        flow_on_packet_size_changed(flow)
    if now >= flow.loss_at:
        flow_detect_losses(flow, now)
        flow_set_probe_timer(flow)
    elif now >= flow.probe_at:
        flow_probe(flow, now)


cdef inline void flow_on_chunk_sent(
    PeerFlow* flow, uint64_t counter, OutgoingBuffer* buffer, uint32_t chunk_index,
    uint32_t size, double now
) noexcept nogil:
    if flow.sent.bytes_in_flight == 0:
        congestion_on_restart(&flow.congestion, now)
    sent_put(&flow.sent, counter, buffer, chunk_index, size, now)
    flow.pacer.tokens -= size
    flow.chunks_sent += 1
    flow.last_chunk_sent_at = now
    flow_set_probe_timer(flow)


# SACKs from the peer

cdef inline OutgoingBuffer* flow_on_packet_acked(
    PeerFlow* flow, SentEntry* entry, double now
) noexcept nogil:
    # Returns the buffer when this packet completed it.
    cdef OutgoingBuffer* buffer = entry.buffer
    flow.probe_count = 0
    flow.newly_acked += entry.size
    flow.newest_sent_at = larger(flow.newest_sent_at, entry.sent_at)
    if entry.state == C_LOST:
        flow.spurious_losses += 1
        flow.reordering = larger(flow.reordering, now - entry.sent_at - flow.rtt.smoothed)
    sent_on_acked(&flow.sent, entry)
    if bitmap_add(&buffer.acked, entry.chunk_index) and bitmap_is_complete(&buffer.acked):
        return buffer
    return NULL


cdef void flow_silence(PeerFlow* flow, OutgoingBuffer* buffer) noexcept nogil:
    buffer.next_chunk = buffer.acked.chunk_count
    flow_remove_sending(flow, buffer)
    lost_forget_buffer(&flow.lost, buffer)
    sent_forget_buffer(&flow.sent, buffer)
    flow_set_probe_timer(flow)
