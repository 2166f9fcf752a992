# Routing between peers, buffers and the layer above: the compiled half of _fastpath_py/engine.py.

cdef enum:
    C_EVENT_HELLO = 0
    C_EVENT_MESSAGE = 1
    C_EVENT_INCOMING_COMPLETE = 2
    C_EVENT_OUTGOING_ACKED = 3
    C_EVENT_BYTES_LIMIT = 4194304
    C_MAX_PEERS = 4096
    C_TURN_PACKETS = 32
    C_HEAD_SIZE = 1216  # a slot for headers, or for a whole control packet

    COUNT_MALFORMED = 0
    COUNT_UNKNOWN_ADDRESS = 1
    COUNT_UNKNOWN_SESSION = 2
    COUNT_WRONG_ADDRESS = 3
    COUNT_REPLAYED = 4
    COUNT_UNKNOWN_BUFFER = 5
    COUNT_BAD_CHUNK = 6
    COUNT_BAD_SACK = 7
    COUNT_MESSAGES_DROPPED = 8
    COUNTERS_END = 9

    # What a burst may hold, in the order in which it is produced.
    STAGE_HELLOS = 0
    STAGE_MESSAGES = 1
    STAGE_SACKS = 2
    STAGE_CHUNKS = 3
    STAGE_END = 4

EVENT_HELLO = C_EVENT_HELLO
EVENT_MESSAGE = C_EVENT_MESSAGE
EVENT_INCOMING_COMPLETE = C_EVENT_INCOMING_COMPLETE
EVENT_OUTGOING_ACKED = C_EVENT_OUTGOING_ACKED
MAX_PEERS = C_MAX_PEERS
COUNTERS = (
    "malformed",
    "unknown_address",
    "unknown_session",
    "wrong_address",
    "replayed",
    "unknown_buffer",
    "bad_chunk",
    "bad_sack",
    "messages_dropped",
)

cdef int64_t C_WINDOW_LIMIT = 0xFFFFFFFF  # the field of the SACK has 32 bits

cdef struct Event:
    int32_t code
    int32_t peer
    uint64_t buffer_id
    PeerAddress address
    uint8_t* payload
    uint32_t size

cdef struct EngineState:
    PyThread_type_lock lock
    int64_t receive_capacity
    double keepalive_interval
    PeerFlow** flows  # ascending by index
    uint32_t flow_count
    uint32_t flow_capacity
    PeerFlow* last_flow  # of the last packet received: most likely of the next one too
    PeerAddress* allowed
    uint32_t allowed_count
    uint32_t allowed_capacity
    OutgoingBuffer* outgoing
    MessageQueue hellos
    Event* events
    uint32_t event_count
    uint32_t event_capacity
    uint64_t event_bytes
    int32_t turn_peer
    int32_t turn_left
    uint64_t counters[COUNTERS_END]

# One packet on its way out: a head of our own, then payload still in its source memory.
cdef struct OutPacket:
    PeerAddress address
    uint8_t* head
    uint32_t head_size
    const uint8_t* parts[2]
    uint32_t part_sizes[2]
    uint32_t size

# Where a burst stands: which stage, and which flow within it.
cdef struct SendCursor:
    int stage
    int end_stage
    uint32_t flow_number


# Lookups

cdef inline PeerFlow* engine_find_flow(EngineState* engine, int32_t peer) noexcept nogil:
    cdef uint32_t number
    for number in range(engine.flow_count):
        if engine.flows[number].index == peer:
            return engine.flows[number]
    return NULL


cdef inline PeerFlow* engine_find_session(EngineState* engine, uint32_t session) noexcept nogil:
    cdef uint32_t number
    if engine.last_flow != NULL and engine.last_flow.local_session == session:
        return engine.last_flow
    for number in range(engine.flow_count):
        if engine.flows[number].local_session == session:
            engine.last_flow = engine.flows[number]
            return engine.last_flow
    return NULL


cdef inline OutgoingBuffer* engine_find_outgoing(EngineState* engine, uint64_t buffer_id) noexcept nogil:
    cdef OutgoingBuffer* buffer = engine.outgoing
    while buffer != NULL and buffer.buffer_id != buffer_id:
        buffer = buffer.next_open
    return buffer


cdef IncomingBuffer* engine_find_incoming(EngineState* engine, uint64_t buffer_id) noexcept nogil:
    cdef IncomingBuffer* buffer
    cdef uint32_t number
    for number in range(engine.flow_count):
        buffer = engine.flows[number].incoming
        while buffer != NULL:
            if buffer.buffer_id == buffer_id:
                return buffer
            buffer = buffer.next_open
    return NULL


# Opening and closing; all under the lock

cdef bint engine_add_flow(EngineState* engine, PeerFlow* flow) noexcept nogil:
    cdef PeerFlow** flows
    cdef uint32_t position
    if engine.flow_count == engine.flow_capacity:
        flows = <PeerFlow**>realloc(engine.flows, (engine.flow_capacity + 16) * sizeof(PeerFlow*))
        if flows == NULL:
            return False
        engine.flows = flows
        engine.flow_capacity += 16
    position = engine.flow_count
    while position > 0 and engine.flows[position - 1].index > flow.index:
        engine.flows[position] = engine.flows[position - 1]
        position -= 1
    engine.flows[position] = flow
    engine.flow_count += 1
    return True


cdef void engine_link_outgoing(
    EngineState* engine, PeerFlow* flow, OutgoingBuffer* buffer
) noexcept nogil:
    buffer.flow = flow
    buffer.next_open = engine.outgoing
    engine.outgoing = buffer
    if buffer.acked.chunk_count:
        flow_append_sending(flow, buffer)
    else:
        engine_add_event(engine, C_EVENT_OUTGOING_ACKED, flow.index, buffer.buffer_id)


cdef void engine_link_incoming(
    EngineState* engine, PeerFlow* flow, IncomingBuffer* buffer
) noexcept nogil:
    buffer.flow = flow
    buffer.next_open = flow.incoming
    flow.incoming = buffer
    if buffer.received.chunk_count:
        flow.incomplete_count += 1
    else:
        engine_add_event(engine, C_EVENT_INCOMING_COMPLETE, flow.index, buffer.buffer_id)


cdef void engine_unlink_outgoing(EngineState* engine, OutgoingBuffer* buffer) noexcept nogil:
    cdef OutgoingBuffer** link = &engine.outgoing
    while link[0] != buffer:
        link = &link[0].next_open
    link[0] = buffer.next_open
    outgoing_free(buffer)


cdef void engine_unlink_incoming(IncomingBuffer* buffer) noexcept nogil:
    cdef IncomingBuffer** link = &buffer.flow.incoming
    while link[0] != buffer:
        link = &link[0].next_open
    link[0] = buffer.next_open
    if not bitmap_is_complete(&buffer.received):
        buffer.flow.incomplete_count -= 1
    incoming_free(buffer)


cdef void engine_remove_flow(EngineState* engine, PeerFlow* flow) noexcept nogil:
    cdef OutgoingBuffer* buffer = engine.outgoing
    cdef OutgoingBuffer* following
    cdef uint32_t number = 0
    while buffer != NULL:
        following = buffer.next_open
        if buffer.flow == flow:
            engine_unlink_outgoing(engine, buffer)
        buffer = following
    while flow.incoming != NULL:
        engine_unlink_incoming(flow.incoming)
    while engine.flows[number] != flow:
        number += 1
    engine.flow_count -= 1
    while number < engine.flow_count:
        engine.flows[number] = engine.flows[number + 1]
        number += 1
    if engine.last_flow == flow:
        engine.last_flow = NULL
    flow_free(flow)


# Events

cdef Event* engine_add_event(EngineState* engine, int32_t code, int32_t peer, uint64_t buffer_id) noexcept nogil:
    cdef Event* events
    cdef uint32_t capacity
    if engine.event_count == engine.event_capacity:
        capacity = 2 * engine.event_capacity if engine.event_capacity else 64
        events = <Event*>realloc(engine.events, capacity * sizeof(Event))
        if events == NULL:
            return NULL
        engine.events = events
        engine.event_capacity = capacity
    cdef Event* event = &engine.events[engine.event_count]
    engine.event_count += 1
    event.code = code
    event.peer = peer
    event.buffer_id = buffer_id
    event.payload = NULL
    event.size = 0
    return event


cdef bint engine_add_message_event(
    EngineState* engine, int32_t code, int32_t peer, const PeerAddress* address,
    const uint8_t* payload, uint32_t size
) noexcept nogil:
    cdef Event* event
    cdef uint8_t* copy
    if engine.event_bytes + C_HEADER_SIZE + size > C_EVENT_BYTES_LIMIT:
        engine.counters[COUNT_MESSAGES_DROPPED] += 1
        return False
    copy = <uint8_t*>malloc(size + 1)
    event = engine_add_event(engine, code, peer, 0) if copy != NULL else NULL
    if event == NULL:
        free(copy)
        engine.counters[COUNT_MESSAGES_DROPPED] += 1
        return False
    memcpy(copy, payload, size)
    event.payload = copy
    event.size = size
    event.address = address[0]
    engine.event_bytes += C_HEADER_SIZE + size
    return True


# Packets in

cdef bint engine_receive_chunk(
    EngineState* engine, PeerFlow* flow, int64_t counter, const uint8_t* payload, size_t size,
    double now
) noexcept nogil:
    cdef ChunkHeader header
    cdef IncomingBuffer* buffer
    cdef int placed
    cdef bint is_complete
    if size < C_CHUNK_HEADER_SIZE:
        engine.counters[COUNT_MALFORMED] += 1
        return False
    chunk_header_parse(payload, &header)
    buffer = flow_find_incoming(flow, header.buffer_id)
    if buffer == NULL:
        engine.counters[COUNT_UNKNOWN_BUFFER] += 1
        return False
    placed = incoming_place(
        buffer, &header, payload + C_CHUNK_HEADER_SIZE, size - C_CHUNK_HEADER_SIZE
    )
    if placed < 0:
        engine.counters[COUNT_BAD_CHUNK] += 1
        return False
    is_complete = bitmap_is_complete(&buffer.received)
    if placed:
        flow.chunks_received += 1
        if is_complete:
            flow.incomplete_count -= 1
            engine_add_event(engine, C_EVENT_INCOMING_COMPLETE, flow.index, buffer.buffer_id)
    else:
        flow.chunks_duplicate += 1
    flow_on_chunk_accepted(flow, counter, is_complete, now)
    return True


cdef bint engine_receive_sack(
    EngineState* engine, PeerFlow* flow, int64_t counter, const uint8_t* payload, size_t size,
    double now
) noexcept nogil:
    cdef Sack sack
    cdef SentEntry* entry
    cdef OutgoingBuffer* completed
    cdef int64_t bytes_in_flight = flow.sent.bytes_in_flight
    cdef uint64_t base
    cdef uint64_t word
    cdef uint32_t number
    if not sack_parse(payload, size, &sack) or sack.largest >= flow.sent.next_counter:
        engine.counters[COUNT_BAD_SACK] += 1
        return False
    flow.sacks_received += 1
    if counter > flow.largest_sack:
        flow.largest_sack = counter
        flow.receive_window = sack.receive_window
        if flow.receive_window < C_MINIMUM_RECEIVE_WINDOW:
            flow.receive_window = C_MINIMUM_RECEIVE_WINDOW
    entry = sent_get(&flow.sent, sack.largest)
    if entry != NULL:  # called lost or not, else a path that became slow is never learned
        rtt_on_sample(
            &flow.rtt, now - entry.sent_at, smaller(sack.ack_delay_us * 1e-6, C_ACK_DELAY_LIMIT)
        )
    base = 64 * (sack.largest // 64 - sack.word_count + 1)
    for number in range(sack.word_count):
        word = sack.words[number]
        while word:
            entry = sent_get(&flow.sent, base + 64 * number + <uint64_t>lowest_bit(word))
            word &= word - 1
            if entry != NULL:
                completed = flow_on_packet_acked(flow, entry, bytes_in_flight, now)
                if completed != NULL:
                    engine_add_event(
                        engine, C_EVENT_OUTGOING_ACKED, flow.index, completed.buffer_id
                    )
    if <int64_t>sack.largest > flow.largest_acked:
        flow.largest_acked = sack.largest
    flow_detect_losses(flow, now)
    flow_set_probe_timer(flow)
    flow_on_counter_accepted(flow, counter, now)
    return True


cdef bint engine_receive_message(
    EngineState* engine, PeerFlow* flow, int64_t counter, const uint8_t* payload, size_t size,
    double now
) noexcept nogil:
    if size > C_MESSAGE_PAYLOAD_LIMIT:
        engine.counters[COUNT_MALFORMED] += 1
        return False
    if not engine_add_message_event(
        engine, C_EVENT_MESSAGE, flow.index, &flow.address, payload, <uint32_t>size
    ):
        return False
    flow_on_counter_accepted(flow, counter, now)
    return True


cdef void engine_receive_hello(
    EngineState* engine, uint32_t session, const uint8_t* packet, size_t size,
    const PeerAddress* address
) noexcept nogil:
    cdef uint32_t number
    if session != 0 or size > C_MIN_PACKET_SIZE:
        engine.counters[COUNT_MALFORMED] += 1
        return
    for number in range(engine.allowed_count):
        if address_equal(&engine.allowed[number], address):
            engine_add_message_event(
                engine, C_EVENT_HELLO, 0, address, packet + C_HEADER_SIZE,
                <uint32_t>(size - C_HEADER_SIZE)
            )
            return
    engine.counters[COUNT_UNKNOWN_ADDRESS] += 1


cdef void engine_receive(
    EngineState* engine, const uint8_t* packet, size_t size, const PeerAddress* address, double now
) noexcept nogil:
    cdef Header header
    cdef PeerFlow* flow
    cdef size_t opened = size
    cdef bint accepted
    if not header_parse(packet, size, &header):
        engine.counters[COUNT_MALFORMED] += 1
        return
    if header.kind == C_KIND_HELLO:
        engine_receive_hello(engine, header.session, packet, size, address)
        return
    flow = engine_find_session(engine, header.session)
    if flow == NULL:
        engine.counters[COUNT_UNKNOWN_SESSION] += 1
        return
    if not address_equal(&flow.address, address):
        engine.counters[COUNT_WRONG_ADDRESS] += 1
        return
    if not history_is_new(&flow.history, <int64_t>header.counter):
        engine.counters[COUNT_REPLAYED] += 1
        return
    if not packet_open(packet, &opened):
        return
    if header.kind == C_KIND_CHUNK:
        accepted = engine_receive_chunk(
            engine, flow, header.counter, packet + C_HEADER_SIZE, opened - C_HEADER_SIZE, now
        )
    elif header.kind == C_KIND_SACK:
        accepted = engine_receive_sack(
            engine, flow, header.counter, packet + C_HEADER_SIZE, opened - C_HEADER_SIZE, now
        )
    else:
        accepted = engine_receive_message(
            engine, flow, header.counter, packet + C_HEADER_SIZE, opened - C_HEADER_SIZE, now
        )
    if accepted:
        flow.last_received_at = now
        flow.packets_received += 1
        flow.bytes_received += size


# Packets out

cdef inline void out_seal(
    PeerFlow* flow, OutPacket* out, uint8_t kind, uint64_t counter, double now
) noexcept nogil:
    header_pack(out.head, kind, flow.remote_session, counter)
    out.address = flow.address
    out.size = out.head_size + out.part_sizes[0] + out.part_sizes[1]
    out.size += <uint32_t>packet_seal(out.head, out.size)
    flow.last_sent_at = now
    flow.packets_sent += 1
    flow.bytes_sent += out.size


cdef void out_message(PeerFlow* flow, OutPacket* out, double now) noexcept nogil:
    cdef QueuedMessage* message = queue_pop(&flow.messages)
    flow.keepalives_left = C_KEEPALIVE_LIMIT
    memcpy(out.head + C_HEADER_SIZE, message.payload, message.size)
    out.head_size = C_HEADER_SIZE + message.size
    free(message)
    out_seal(flow, out, C_KIND_MESSAGE, flow_take_counter(flow), now)


cdef void out_hello(EngineState* engine, OutPacket* out) noexcept nogil:
    cdef QueuedMessage* message = queue_pop(&engine.hellos)
    header_pack(out.head, C_KIND_HELLO, 0, 0)
    memcpy(out.head + C_HEADER_SIZE, message.payload, message.size)
    out.head_size = C_HEADER_SIZE + message.size
    out.address = message.address
    out.size = out.head_size
    free(message)


cdef int64_t engine_receive_window(EngineState* engine) noexcept nogil:
    cdef int64_t senders = 0
    cdef int64_t share
    cdef uint32_t number
    for number in range(engine.flow_count):
        senders += engine.flows[number].incomplete_count > 0
    share = engine.receive_capacity // (senders if senders else 1)
    if share < C_MINIMUM_RECEIVE_WINDOW:
        share = C_MINIMUM_RECEIVE_WINDOW
    return share if share < C_WINDOW_LIMIT else C_WINDOW_LIMIT


cdef void out_sack(EngineState* engine, PeerFlow* flow, OutPacket* out, double now) noexcept nogil:
    cdef Sack sack
    cdef double delay_us = (now - flow.largest_received_at) * 1e6
    cdef uint64_t counter = flow_take_counter(flow)
    sack.ack_delay_us = 0xFFFFFFFF
    if delay_us < 4294967295.0:
        sack.ack_delay_us = <uint32_t>larger(delay_us, 0.0)
    if flow.sack_at > now:
        flow.keepalives_left -= 1
    flow.sack_at = C_NEVER
    flow.chunks_since_sack = 0
    flow.sacks_sent += 1
    sack.receive_window = <uint32_t>engine_receive_window(engine)
    history_fill_sack(&flow.history, &sack)
    out.head_size = C_HEADER_SIZE + <uint32_t>sack_pack(out.head + C_HEADER_SIZE, &sack)
    out_seal(flow, out, C_KIND_SACK, counter, now)


cdef void out_chunk(EngineState* engine, PeerFlow* flow, OutPacket* out, double now) noexcept nogil:
    cdef ChunkHeader header
    cdef uint32_t chunk_index
    cdef OutgoingBuffer* buffer = flow_next_chunk(flow, &chunk_index)
    cdef uint64_t counter = flow_take_counter(flow)
    cdef uint64_t start = <uint64_t>chunk_index * buffer.chunk_size
    cdef uint32_t length = outgoing_chunk_length(buffer, chunk_index)
    cdef uint32_t of_prefix = 0
    engine.turn_left -= 1
    header.buffer_id = buffer.buffer_id
    header.chunk_index = chunk_index
    header.total_chunks = buffer.acked.chunk_count
    header.chunk_size = buffer.chunk_size
    chunk_header_pack(out.head + C_HEADER_SIZE, &header)
    out.head_size = C_HEADER_SIZE + C_CHUNK_HEADER_SIZE
    if start < buffer.prefix_size:
        of_prefix = length
        if buffer.prefix_size - start < length:
            of_prefix = <uint32_t>(buffer.prefix_size - start)
        out.parts[0] = buffer.prefix + start
        out.part_sizes[0] = of_prefix
        start = buffer.prefix_size
    out.parts[1] = buffer.body + (start - buffer.prefix_size)
    out.part_sizes[1] = length - of_prefix
    out_seal(flow, out, C_KIND_CHUNK, counter, now)
    flow_on_chunk_sent(flow, counter, buffer, chunk_index, out.size, now)


cdef inline bint flow_is_ready(PeerFlow* flow, double now) noexcept nogil:
    if not flow_has_chunks(flow) or not flow_can_send_chunk(flow):
        return False
    flow_refill_pacer(flow, now)
    return pacer_ready_at(&flow.pacer) <= now


cdef PeerFlow* engine_next_turn(EngineState* engine, double now) noexcept nogil:
    cdef PeerFlow* flow = engine_find_flow(engine, engine.turn_peer)
    cdef uint32_t first = 0
    cdef uint32_t number
    if flow != NULL:
        if engine.turn_left > 0 and flow_is_ready(flow, now):
            return flow
        flow_end_turn(flow)
    while first < engine.flow_count and engine.flows[first].index <= engine.turn_peer:
        first += 1
    for number in range(engine.flow_count):
        flow = engine.flows[(first + number) % engine.flow_count]
        if flow_is_ready(flow, now):
            engine.turn_peer = flow.index
            engine.turn_left = C_TURN_PACKETS
            return flow
    return NULL


cdef bint engine_next_packet(
    EngineState* engine, SendCursor* cursor, OutPacket* out, double now
) noexcept nogil:
    # `out.head` has room for C_HEAD_SIZE bytes. False when nothing (more) may go now.
    cdef PeerFlow* flow
    out.parts[0] = NULL
    out.parts[1] = NULL
    out.part_sizes[0] = 0
    out.part_sizes[1] = 0
    while cursor.stage < cursor.end_stage:
        if cursor.stage == STAGE_HELLOS and engine.hellos.head != NULL:
            out_hello(engine, out)
            return True
        if cursor.stage == STAGE_CHUNKS:
            flow = engine_next_turn(engine, now)
            if flow != NULL:
                out_chunk(engine, flow, out, now)
                return True
        while cursor.stage != STAGE_CHUNKS and cursor.flow_number < engine.flow_count:
            flow = engine.flows[cursor.flow_number]
            if cursor.stage == STAGE_MESSAGES and flow.messages.head != NULL:
                out_message(flow, out, now)
                return True
            cursor.flow_number += 1
            if cursor.stage == STAGE_SACKS and flow_sack_due_at(flow) <= now:
                out_sack(engine, flow, out, now)
                return True
        cursor.stage += 1
        cursor.flow_number = 0
    return False


cdef inline void engine_on_timer(EngineState* engine, double now) noexcept nogil:
    cdef uint32_t number
    for number in range(engine.flow_count):
        flow_on_timer(engine.flows[number], now)


cdef double engine_send_due_at(EngineState* engine) noexcept nogil:
    # When there is something to send other than SACKs; C_NEVER for never.
    cdef double due = 0.0 if engine.hellos.head != NULL else C_NEVER
    cdef PeerFlow* flow
    cdef uint32_t number
    for number in range(engine.flow_count):
        flow = engine.flows[number]
        if flow.messages.head != NULL:
            return 0.0
        due = smaller(due, smaller(flow.loss_at, flow.probe_at))
        if flow_has_chunks(flow) and flow_can_send_chunk(flow):
            due = smaller(due, pacer_ready_at(&flow.pacer))
    return due


cdef double engine_sack_due_at(EngineState* engine) noexcept nogil:
    cdef double due = C_NEVER
    cdef uint32_t number
    for number in range(engine.flow_count):
        due = smaller(due, flow_sack_due_at(engine.flows[number]))
    return due


cdef void engine_free(EngineState* engine) noexcept nogil:
    cdef uint32_t number
    while engine.flow_count:
        engine_remove_flow(engine, engine.flows[0])
    for number in range(engine.event_count):
        free(engine.events[number].payload)
    queue_clear(&engine.hellos)
    free(engine.flows)
    free(engine.allowed)
    free(engine.events)
