# Routing between peers, buffers and the layer above: the compiled half of _fastpath_py/engine.py.

cdef enum:
    C_EVENT_HELLO = 0
    C_EVENT_MESSAGE = 1
    C_EVENT_INCOMING_COMPLETE = 2
    C_EVENT_OUTGOING_ACKED = 3
    C_EVENT_PACKET_SIZE = 4
    C_EVENT_STUN = 5
    C_EVENT_BYTES_LIMIT = 4194304
    C_MAX_PEERS = 4096

    COUNT_MALFORMED = 0
    COUNT_UNKNOWN_ADDRESS = 1
    COUNT_UNKNOWN_SESSION = 2
    COUNT_WRONG_ADDRESS = 3
    COUNT_REPLAYED = 4
    COUNT_UNKNOWN_BUFFER = 5
    COUNT_BAD_CHUNK = 6
    COUNT_BAD_SACK = 7
    COUNT_MESSAGES_DROPPED = 8
    COUNT_STUN_DROPPED = 9
    COUNTERS_END = 10

EVENT_HELLO = C_EVENT_HELLO
EVENT_MESSAGE = C_EVENT_MESSAGE
EVENT_INCOMING_COMPLETE = C_EVENT_INCOMING_COMPLETE
EVENT_OUTGOING_ACKED = C_EVENT_OUTGOING_ACKED
EVENT_PACKET_SIZE = C_EVENT_PACKET_SIZE
EVENT_STUN = C_EVENT_STUN
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
    "stun_dropped",
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
    double strangers_per_second
    double stranger_tokens
    double strangers_at  # when the tokens were counted last
    StunTransactions stun
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
    EngineState* engine, PeerFlow* flow, OutgoingBuffer* buffer, IncomingBuffer* source
) noexcept nogil:
    # A relay has a `source`, from which its bytes are still arriving.
    buffer.flow = flow
    buffer.next_open = engine.outgoing
    engine.outgoing = buffer
    if not buffer.acked.chunk_count:
        engine_add_event(engine, C_EVENT_OUTGOING_ACKED, flow.index, buffer.buffer_id)
    elif source != NULL:
        incoming_add_relay(source, buffer)
        flow_on_source_progress(flow, buffer, incoming_contiguous_size(source))
    else:
        buffer.available_chunks = buffer.acked.chunk_count
        flow_append_sending(flow, buffer)


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
    outgoing_forget_source(buffer)
    outgoing_free(buffer)


cdef void engine_unlink_incoming(IncomingBuffer* buffer) noexcept nogil:
    cdef IncomingBuffer** link = &buffer.flow.incoming
    while link[0] != buffer:
        link = &link[0].next_open
    link[0] = buffer.next_open
    if not bitmap_is_complete(&buffer.received):
        buffer.flow.incomplete_count -= 1
    incoming_forget_relays(buffer)
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

cdef void engine_on_progress(IncomingBuffer* buffer) noexcept nogil:
    cdef uint64_t size = incoming_contiguous_size(buffer)
    cdef OutgoingBuffer* relay = buffer.relays
    while relay != NULL:
        flow_on_source_progress(relay.flow, relay, size)
        relay = relay.next_relay


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
        if buffer.relays != NULL:
            engine_on_progress(buffer)
        if is_complete:
            flow.incomplete_count -= 1
            engine_add_event(engine, C_EVENT_INCOMING_COMPLETE, flow.index, buffer.buffer_id)
    else:
        flow.chunks_duplicate += 1
    flow_on_chunk_accepted(
        flow, counter, <uint32_t>(size - C_CHUNK_HEADER_SIZE), is_complete, now
    )
    return True


cdef inline void engine_note_packet_size(
    EngineState* engine, PeerFlow* flow, uint32_t before
) noexcept nogil:
    cdef OutgoingBuffer* buffer = engine.outgoing
    cdef uint32_t largest_chunk = chunk_size_of(flow.mtu.packet_size)
    if flow.mtu.packet_size == before:
        return
    engine_add_event(engine, C_EVENT_PACKET_SIZE, flow.index, flow.mtu.packet_size)
    while buffer != NULL:
        if buffer.flow == flow and buffer.chunk_size > largest_chunk:
            flow_silence(flow, buffer)
        buffer = buffer.next_open


cdef void engine_acknowledge(
    EngineState* engine, PeerFlow* flow, const Sack* sack, double now
) noexcept nogil:
    cdef SentEntry* entry
    cdef OutgoingBuffer* completed
    cdef uint64_t base = 64 * (sack.largest // 64 - sack.word_count + 1)
    cdef uint64_t counter
    cdef uint64_t word
    cdef uint32_t number
    for number in range(sack.word_count):
        word = sack.words[number]
        while word:
            counter = base + 64 * number + <uint64_t>lowest_bit(word)
            entry = sent_get(&flow.sent, counter)
            word &= word - 1
            if entry != NULL:
                completed = flow_on_packet_acked(flow, entry, now)
                if completed != NULL:
                    engine_add_event(
                        engine, C_EVENT_OUTGOING_ACKED, flow.index, completed.buffer_id
                    )
            elif <int64_t>counter == flow.mtu.counter and mtu_on_acked(
                &flow.mtu, <int64_t>counter, now
            ):
                flow_on_packet_size_changed(flow)
    if <int64_t>sack.largest > flow.largest_acked:
        flow.largest_acked = sack.largest


cdef bint engine_receive_sack(
    EngineState* engine, PeerFlow* flow, int64_t counter, const uint8_t* payload, size_t size,
    double now
) noexcept nogil:
    cdef Sack sack
    cdef SentEntry* entry
    cdef uint32_t packet_size = flow.mtu.packet_size
    cdef double ack_delay
    cdef double rtt_sample = 0.0
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
    ack_delay = smaller(sack.ack_delay_us * 1e-6, C_ACK_DELAY_LIMIT)
    if entry != NULL:  # called lost or not, else a path that became slow is never learned
        rtt_on_sample(&flow.rtt, now - entry.sent_at, ack_delay)
        rtt_sample = flow.rtt.latest
    elif <int64_t>sack.largest == flow.mtu.counter:
        rtt_on_sample(&flow.rtt, now - flow.mtu.sent_at, ack_delay)
    flow.newest_sent_at = 0.0
    flow.newly_acked = 0
    engine_acknowledge(engine, flow, &sack, now)
    engine_note_packet_size(engine, flow, packet_size)
    if not flow_has_chunks(flow):
        flow.congestion.is_app_limited = True
    congestion_on_sack(
        &flow.congestion, flow.newly_acked, flow.newest_sent_at, rtt_sample,
        flow.sent.bytes_in_flight, now
    )
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


cdef void engine_receive_foreign(
    EngineState* engine, const uint8_t* packet, size_t size, const PeerAddress* address
) noexcept nogil:
    if not stun_is_expected(&engine.stun, packet, size):
        engine.counters[COUNT_MALFORMED] += 1
    elif engine.stun.waiting == C_STUN_QUEUE_LIMIT:
        engine.counters[COUNT_STUN_DROPPED] += 1
    else:
        engine.stun.waiting += engine_add_message_event(
            engine, C_EVENT_STUN, 0, address, packet, <uint32_t>size
        )


cdef void engine_receive(
    EngineState* engine, const uint8_t* packet, size_t size, const PeerAddress* address, double now
) noexcept nogil:
    cdef Header header
    cdef PeerFlow* flow
    cdef size_t opened = size
    cdef bint accepted
    if not header_parse(packet, size, &header):
        engine_receive_foreign(engine, packet, size, address)
        return
    if header.kind == C_KIND_HELLO:
        engine_receive_hello(engine, header.session, packet, size, address, now)
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
    elif header.kind == C_KIND_PROBE:
        flow_on_counter_accepted(flow, header.counter, now)
        flow.sack_at = now
        accepted = True
    else:
        accepted = engine_receive_message(
            engine, flow, header.counter, packet + C_HEADER_SIZE, opened - C_HEADER_SIZE, now
        )
    if accepted:
        flow.last_received_at = now
        flow.packets_received += 1
        flow.bytes_received += size


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
