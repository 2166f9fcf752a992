# Which packets go next, and when: the sending half of _fastpath_py/engine.py.

cdef enum:
    C_TURN_PACKETS = 32
    C_HEAD_SIZE = 1216  # a slot for headers, or for a whole control packet

    # What a burst may hold, in the order in which it is produced.
    STAGE_HELLOS = 0
    STAGE_MESSAGES = 1
    STAGE_PROBES = 2
    STAGE_SACKS = 3
    STAGE_CHUNKS = 4
    STAGE_END = 5

cdef uint8_t[C_MAX_PACKET_SIZE] C_PADDING  # of probes; stays zero

# One packet on its way out: a head of our own, then payload still in its source memory.
cdef struct OutPacket:
    PeerAddress address
    uint8_t* head
    uint32_t head_size
    const uint8_t* parts[2]
    uint32_t part_sizes[2]
    uint32_t size
    bint is_alone  # may not share a call: the kernel could refuse it for its size

# Where a burst stands: which stage, and which flow within it.
cdef struct SendCursor:
    int stage
    int end_stage
    uint32_t flow_number


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


cdef void out_probe(PeerFlow* flow, OutPacket* out, double now) noexcept nogil:
    cdef uint64_t counter = flow_take_counter(flow)
    cdef double timeout = rtt_retransmit_timeout(&flow.rtt) + C_MAX_ACK_DELAY
    out.head_size = C_HEADER_SIZE
    out.parts[0] = C_PADDING
    out.part_sizes[0] = flow.mtu.probe_size - C_HEADER_SIZE
    out.is_alone = True
    mtu_on_probe_sent(&flow.mtu, <int64_t>counter, timeout, now)
    out_seal(flow, out, C_KIND_PROBE, counter, now)


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
    flow.bytes_since_sack = 0
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
    out.is_alone = False
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
            if cursor.stage == STAGE_PROBES and mtu_probe_due_at(&flow.mtu) <= now:
                out_probe(flow, out, now)
                return True
            if cursor.stage == STAGE_SACKS and flow_sack_due_at(flow) <= now:
                out_sack(engine, flow, out, now)
                return True
        cursor.stage += 1
        cursor.flow_number = 0
    return False


cdef inline void engine_on_timer(EngineState* engine, double now) noexcept nogil:
    cdef uint32_t number
    cdef uint32_t packet_size
    for number in range(engine.flow_count):
        packet_size = engine.flows[number].mtu.packet_size
        flow_on_timer(engine.flows[number], now)
        engine_note_packet_size(engine, engine.flows[number], packet_size)


cdef double engine_send_due_at(EngineState* engine) noexcept nogil:
    # When there is something to send other than SACKs; C_NEVER for never.
    cdef double due = 0.0 if engine.hellos.head != NULL else C_NEVER
    cdef PeerFlow* flow
    cdef uint32_t number
    for number in range(engine.flow_count):
        flow = engine.flows[number]
        if flow.messages.head != NULL:
            return 0.0
        due = smaller(smaller(due, flow.mtu.due_at), smaller(flow.loss_at, flow.probe_at))
        if flow_has_chunks(flow) and flow_can_send_chunk(flow):
            due = smaller(due, pacer_ready_at(&flow.pacer))
    return due


cdef double engine_sack_due_at(EngineState* engine) noexcept nogil:
    cdef double due = C_NEVER
    cdef uint32_t number
    for number in range(engine.flow_count):
        due = smaller(due, flow_sack_due_at(engine.flows[number]))
    return due
