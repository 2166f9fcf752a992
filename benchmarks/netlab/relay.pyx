# cython: language_level=3, cdivision=True
# distutils: language=c
"""The link lab's relay: a switch with delay, whose ports are the hosts' TAP devices.

Built when it is first needed (`relay_build.py`), run by `relay_process.py`. It carries whatever the
hosts' kernels send, TCP and UDP alike, and looks no further than at the Ethernet address.

How it works. What a host sends is read as a frame, which may be a super-packet of 45 packets; it
stays one piece of memory, but every packet in it meets the link by itself, in virtual time. At the
uplink it leaves when the packets before it have left, or is dropped where the queue is full; then
it may be lost, or held back so that others overtake it; with more than two hosts it queues for the
receiver's downlink as well; then comes the delay. Neighbours in a frame that leave within
GRANULARITY go on as one piece, whose moment is that of its last packet, and are written to the
receiver in one call: as network cards hand over what came in close succession. So the cost is that
of a few calls per piece, and no timer runs for each packet.

While frames arrive, the loop looks at the devices once per TICK instead of waking for each one: a
packet is late by about a tick, and never early. Else it sleeps until the next piece is due. Nothing
spins. Each queue is in the order of its pieces' moments; the memory of frames is used last in,
first out.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.mman cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.uio cimport iovec, writev
from posix.unistd cimport read, write


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    short POLLIN
    int ppoll(pollfd* fds, unsigned long count, const timespec* timeout, const void* mask)

cdef extern from "<sys/prctl.h>" nogil:
    int PR_SET_TIMERSLACK
    int prctl(int option, unsigned long value, ...)


include "relay_frames.pxi"


cdef enum:
    MOST_PORTS = 64
    NONE = 0xFFFFFFFF
    READS_A_TURN = 64  # frames from one host before the others have their turn
    SLOT_SIZE = 68 << 10  # bytes: the largest super-packet with its headers, in whole pages
    FRAME_COUNT = 32_768  # 2 GB of address space, used as far as frames wait
    PIECE_COUNT = 262_144

cdef int64_t TICK = 50_000  # ns
cdef int64_t GRANULARITY = 100_000  # ns
cdef int64_t JITTER_PERIOD = 5_000_000  # ns that one value of jitter holds


cdef struct Piece:
    int64_t began_at  # ns: its first packet left the uplink
    int64_t due  # its last packet has left the uplink; later: when it is to be delivered
    uint32_t frame
    uint32_t first
    uint32_t count
    uint32_t target
    bint is_held_back
    uint32_t next


cdef struct Queue:
    uint32_t first
    uint32_t last
    int64_t last_due


cdef struct Counts:
    uint64_t offered_packets
    uint64_t offered_bytes
    uint64_t lost_packets
    uint64_t reordered
    uint64_t queue_drops
    uint64_t relayed
    uint64_t overruns
    uint64_t refused
    uint64_t writes
    uint64_t latest


cdef struct Port:
    int fd
    double uplink_free_at  # ns: when what was sent so far has left
    double downlink_free_at
    Queue leaving  # on the uplink; used where downlinks count
    Queue on_time  # to this port's host
    Queue held_back
    int64_t jitter
    int64_t jitter_until


cdef class Relay:
    """A switch between TAP devices. One thread; `run` does without the GIL."""

    cdef Port[MOST_PORTS] ports
    cdef pollfd[MOST_PORTS + 1] polls
    cdef uint32_t port_count
    cdef double ns_per_byte, queue_ns, burst_ns
    cdef int64_t delay, most_jitter, hold
    cdef uint64_t loss_below, reorder_below, chance
    cdef Counts counts
    cdef Frame* frames
    cdef Piece* pieces
    cdef uint8_t* memory
    cdef uint32_t free_frame, free_piece

    def __cinit__(
        self,
        list fds,
        *,
        double rate,
        uint64_t queue,
        uint64_t burst,
        int64_t delay,
        int64_t jitter,
        int64_t hold,
        double loss,
        double reorder,
        uint64_t seed,
    ):
        """Port n is host n's device. `rate`: bits/s, 0: no limit; sizes in bytes, times in ns."""
        if len(fds) > MOST_PORTS:
            raise ValueError(f"{len(fds)} hosts: the most is {MOST_PORTS}")
        self.ns_per_byte = 8e9 / rate if rate else 0.0
        self.queue_ns, self.burst_ns = queue * self.ns_per_byte, burst * self.ns_per_byte
        self.delay, self.most_jitter, self.hold = delay, jitter, hold
        self.loss_below = <uint64_t>(loss * <double>(1 << 53))
        self.reorder_below = <uint64_t>(reorder * <double>(1 << 53))
        self.chance = seed * <uint64_t>2654435761 + 1
        self.frames = <Frame*>calloc(FRAME_COUNT, sizeof(Frame))
        self.pieces = <Piece*>calloc(PIECE_COUNT, sizeof(Piece))
        self.memory = <uint8_t*>mmap(
            NULL, <size_t>FRAME_COUNT * SLOT_SIZE, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0,
        )
        if self.memory == <uint8_t*>MAP_FAILED or self.frames == NULL or self.pieces == NULL:
            raise MemoryError
        self._link_free()
        for fd in fds:
            self._add_port(fd)

    def __dealloc__(self):
        free(self.frames)
        free(self.pieces)
        if self.memory != NULL and self.memory != <uint8_t*>MAP_FAILED:
            munmap(self.memory, <size_t>FRAME_COUNT * SLOT_SIZE)

    cdef void _link_free(self) noexcept:
        cdef uint32_t index
        for index in range(FRAME_COUNT):
            self.frames[index].next = index + 1 if index + 1 < FRAME_COUNT else NONE
        for index in range(PIECE_COUNT):
            self.pieces[index].next = index + 1 if index + 1 < PIECE_COUNT else NONE
        self.free_frame = self.free_piece = 0

    cdef void _add_port(self, int fd) noexcept:
        cdef Port* port = &self.ports[self.port_count]
        memset(port, 0, sizeof(Port))
        port.fd = fd
        port.leaving.first = NONE
        port.on_time.first = NONE
        port.held_back.first = NONE
        self.polls[self.port_count].fd = fd
        self.polls[self.port_count].events = POLLIN
        self.port_count += 1

    def stats(self):
        """Counters since the start, in packets; `latest_us`: how late the latest one was."""
        counts = dict(self.counts)
        return counts | {"latest_us": counts.pop("latest") // 1000}

    def run(self, int control_fd):
        """Relays until `control_fd` is readable. Raises OSError when it cannot wait any more."""
        cdef int failure
        self.polls[self.port_count].fd = control_fd
        self.polls[self.port_count].events = POLLIN
        with nogil:
            prctl(PR_SET_TIMERSLACK, <unsigned long>1)  # ns; by default a sleep is 50 us too long
            failure = self._loop()
        if failure:
            raise OSError(failure, "the relay cannot wait for its devices")

    cdef int _loop(self) noexcept nogil:
        cdef pollfd* control = &self.polls[self.port_count]
        cdef int failure
        while True:
            failure = wait(self.polls, self.port_count + 1, self._time_to_next())
            while not failure and not control.revents and self._read_ready():
                self._move_on()
                failure = wait(control, 1, TICK)
                if not failure and not control.revents:
                    failure = wait(self.polls, self.port_count + 1, 0)
            if failure or control.revents:
                return failure
            self._move_on()

    cdef int64_t _time_to_next(self) noexcept nogil:
        """ns until a piece is due; -1: none waits."""
        cdef int64_t first = -1
        cdef uint32_t index
        for index in range(self.port_count):
            first = self._earlier(first, &self.ports[index].leaving)
            first = self._earlier(first, &self.ports[index].on_time)
            first = self._earlier(first, &self.ports[index].held_back)
        return first if first < 0 else max(first - now_ns(), 0)

    cdef int64_t _earlier(self, int64_t due, const Queue* queue) noexcept nogil:
        if queue.first == NONE or 0 <= due <= self.pieces[queue.first].due:
            return due
        return self.pieces[queue.first].due

    # From a host

    cdef bint _read_ready(self) noexcept nogil:
        """True if a host had sent something."""
        cdef bint has_read = False
        cdef uint32_t index
        for index in range(self.port_count):
            if self.polls[index].revents & POLLIN:
                has_read |= self._read_frames(index)
        return has_read

    cdef bint _read_frames(self, uint32_t source) noexcept nogil:
        cdef int64_t now = now_ns()
        cdef uint8_t[64] rest
        cdef uint32_t index
        cdef ssize_t size
        cdef int count
        for count in range(READS_A_TURN):
            index = self.free_frame
            if index == NONE:  # the frame must go, or its device would wake us for ever
                size = read(self.ports[source].fd, rest, sizeof(rest))
                self.counts.overruns += size > 0
            else:
                size = read(self.ports[source].fd, self._slot(index), SLOT_SIZE)
            if size <= 0:
                return count > 0
            if index == NONE:
                continue
            if not frame_parse(&self.frames[index], self._slot(index), <uint32_t>size):
                self.counts.refused += 1
                continue
            self.free_frame = self.frames[index].next
            self.frames[index].pieces = 1  # until all its packets have met the uplink
            self._meet_uplink(source, index, now)
            self._release_frame(index)
        return True

    cdef void _meet_uplink(self, uint32_t source, uint32_t index, int64_t now) noexcept nogil:
        """Every packet of a frame by itself; neighbours that fare alike go on as one piece."""
        cdef const Frame* frame = &self.frames[index]
        cdef const uint8_t* address = self._slot(index) + VIRTIO_HEADER
        cdef bint is_group = address[0] & 1
        cdef uint32_t first_target = 0 if is_group else address[5] - 1
        cdef uint32_t last_target = self.port_count - 1 if is_group else first_target
        cdef uint32_t piece = NONE
        cdef uint32_t target, packet, size
        cdef int64_t left_at
        cdef bint is_held_back
        if last_target >= self.port_count:
            self.counts.refused += 1
            return
        for packet in range(frame.packet_count):
            size = wire_size(frame, packet)
            left_at = self._leave(&self.ports[source].uplink_free_at, size, now)
            if left_at < 0:
                continue
            for target in range(first_target, last_target + 1):
                if target == source or self._is_lost(size):
                    continue
                is_held_back = self._has_luck(self.reorder_below)
                if is_held_back or not self._joins(piece, packet, target, left_at):
                    self._close_piece(source, piece)
                    piece = self._new_piece(index, packet, target, left_at)
                    if piece != NONE:
                        self.pieces[piece].is_held_back = is_held_back
        self._close_piece(source, piece)

    cdef int64_t _leave(self, double* free_at, uint32_t size, int64_t now) noexcept nogil:
        """When a packet has left on a line; -1: the queue is full. As with a token bucket."""
        cdef double left_at
        if not self.ns_per_byte:
            return now
        left_at = max(free_at[0], now - self.burst_ns) + size * self.ns_per_byte
        if left_at - now > self.queue_ns:
            self.counts.queue_drops += 1
            return -1
        free_at[0] = left_at
        return max(<int64_t>left_at, now)

    cdef bint _is_lost(self, uint32_t size) noexcept nogil:
        cdef bint is_lost = self._has_luck(self.loss_below)
        self.counts.offered_packets += 1
        self.counts.offered_bytes += size
        self.counts.lost_packets += is_lost
        return is_lost

    cdef bint _has_luck(self, uint64_t below) noexcept nogil:
        """xorshift64* (Marsaglia 2003, Vigna 2016): the same for the same seed."""
        if not below:
            return False
        self.chance ^= self.chance >> 12
        self.chance ^= self.chance << 25
        self.chance ^= self.chance >> 27
        return (self.chance * <uint64_t>2685821657736338717) >> 11 < below

    # Pieces

    cdef uint32_t _new_piece(
        self, uint32_t frame, uint32_t packet, uint32_t target, int64_t left_at
    ) noexcept nogil:
        cdef uint32_t index = self.free_piece
        cdef Piece* piece = &self.pieces[index]
        if index == NONE:
            self.counts.overruns += 1
            return NONE
        self.free_piece = piece.next
        self.frames[frame].pieces += 1
        piece.frame, piece.first, piece.count, piece.target = frame, packet, 1, target
        piece.began_at = piece.due = left_at
        return index

    cdef bint _joins(
        self, uint32_t index, uint32_t packet, uint32_t target, int64_t left_at
    ) noexcept nogil:
        """Make the packet part of this piece, if it is its next neighbour."""
        cdef Piece* piece = &self.pieces[index]
        if index == NONE or piece.is_held_back or piece.target != target:
            return False
        if piece.first + piece.count != packet or left_at - piece.began_at > GRANULARITY:
            return False
        piece.count += 1
        piece.due = left_at
        return True

    cdef void _close_piece(self, uint32_t source, uint32_t index) noexcept nogil:
        if index == NONE:
            return
        if self.ns_per_byte and self.port_count > 2:  # with two hosts a downlink changes nothing
            self._append(&self.ports[source].leaving, index)
        else:
            self._delay(index)

    cdef void _meet_downlink(self, uint32_t index) noexcept nogil:
        cdef Piece* piece = &self.pieces[index]
        cdef double* free_at = &self.ports[piece.target].downlink_free_at
        cdef int64_t arrives_at = piece.due
        cdef int64_t left_at
        cdef uint32_t packet
        for packet in range(piece.count):
            left_at = self._leave(
                free_at, wire_size(&self.frames[piece.frame], piece.first + packet), arrives_at
            )
            if left_at < 0:  # and so would be all behind it
                self.counts.queue_drops += piece.count - packet - 1
                piece.count = packet
                break
            piece.due = left_at
        if piece.count:
            self._delay(index)
        else:
            self._release_piece(index)

    cdef void _delay(self, uint32_t index) noexcept nogil:
        cdef Piece* piece = &self.pieces[index]
        cdef Port* port = &self.ports[piece.target]
        piece.due += self.delay + self._jitter(port, piece.due)
        if piece.is_held_back:
            piece.due += self.hold
            self.counts.reordered += 1
            self._append(&port.held_back, index)
        else:
            self._append(&port.on_time, index)

    cdef int64_t _jitter(self, Port* port, int64_t now) noexcept nogil:
        if self.most_jitter and now >= port.jitter_until:
            self._has_luck(1)
            port.jitter = (self.chance >> 16) % <uint64_t>(self.most_jitter + 1)
            port.jitter_until = now + JITTER_PERIOD
        return port.jitter

    cdef void _append(self, Queue* queue, uint32_t index) noexcept nogil:
        cdef Piece* piece = &self.pieces[index]
        queue.last_due = max(queue.last_due, piece.due)
        piece.due, piece.next = queue.last_due, NONE
        if queue.first == NONE:
            queue.first = index
        else:
            self.pieces[queue.last].next = index
        queue.last = index

    cdef uint32_t _pop_due(self, Queue* queue, int64_t now) noexcept nogil:
        cdef uint32_t index = queue.first
        if index == NONE or self.pieces[index].due > now:
            return NONE
        queue.first = self.pieces[index].next
        return index

    cdef void _release_piece(self, uint32_t index) noexcept nogil:
        self._release_frame(self.pieces[index].frame)
        self.pieces[index].next = self.free_piece
        self.free_piece = index

    cdef void _release_frame(self, uint32_t index) noexcept nogil:
        self.frames[index].pieces -= 1
        if not self.frames[index].pieces:
            self.frames[index].next = self.free_frame
            self.free_frame = index

    # To a host

    cdef void _move_on(self) noexcept nogil:
        """What is due now: onto the downlink, or into the receiver's device."""
        cdef int64_t now = now_ns()
        cdef uint32_t number, piece
        cdef Port* port
        for number in range(self.port_count):
            while (piece := self._pop_due(&self.ports[number].leaving, now)) != NONE:
                self._meet_downlink(piece)
        for number in range(self.port_count):
            port = &self.ports[number]
            while (piece := self._pop_due(&port.on_time, now)) != NONE:
                self._write(port, piece, now)
            while (piece := self._pop_due(&port.held_back, now)) != NONE:
                self._write(port, piece, now)

    cdef void _write(self, Port* port, uint32_t index, int64_t now) noexcept nogil:
        cdef Piece* piece = &self.pieces[index]
        cdef Frame* frame = &self.frames[piece.frame]
        cdef ssize_t written = write_packets(
            port.fd, frame, self._slot(piece.frame), piece.first, piece.count
        )
        self.counts.writes += 1
        if written > 0:
            self.counts.relayed += piece.count
        else:
            self.counts.overruns += piece.count
        self.counts.latest = max(self.counts.latest, <uint64_t>(now - piece.due))
        self._release_piece(index)

    cdef uint8_t* _slot(self, uint32_t index) noexcept nogil:
        return self.memory + <size_t>SLOT_SIZE * index


cdef int64_t now_ns() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return <int64_t>time.tv_sec * 1_000_000_000 + time.tv_nsec


cdef int wait(pollfd* fds, unsigned long count, int64_t timeout) noexcept nogil:
    """Until a descriptor is readable, or `timeout` ns have passed (-1: never). 0, or an errno."""
    cdef timespec time
    if timeout >= 0:
        time.tv_sec = timeout // 1_000_000_000
        time.tv_nsec = timeout % 1_000_000_000
    if ppoll(fds, count, &time if timeout >= 0 else NULL, NULL) < 0 and errno != EINTR:
        return errno
    return 0
