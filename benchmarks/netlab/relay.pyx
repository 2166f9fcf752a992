# cython: language_level=3
# distutils: language=c
"""The link lab's delay line: reads Ethernet frames from TAP devices and writes them back later.

Built when it is first needed (`relay_build.py`), run by `relay_process.py`. Frames stay as they
are, unfinished checksums included: the virtio header that the kernel puts before each frame goes
back with it. A frame may be a super-packet: what is yet to be cut is one frame here.

How it works. Each device has two queues, both in the order in which their frames are due: those on
time, and those held back so that others overtake them. Jitter moves the delay, one value for some
milliseconds, but never lets a frame pass the one before it. While frames arrive, the loop looks at
the devices once per TICK instead of waking for each: a frame is late by a tick at most, and never
early. While none arrive it sleeps until the next one is due. Nothing spins.

All memory is one mapping, cut into slots of one frame each, and used last in, first out.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
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


cdef enum:
    MOST_DEVICES = 64
    NONE = 0xFFFFFFFF
    READS_A_TURN = 256  # frames from one device before the others have their turn

cdef int64_t TICK = 50_000  # ns
cdef int64_t JITTER_PERIOD = 5_000_000  # ns that one value of jitter holds


cdef struct Frame:
    int64_t due
    uint32_t size
    uint32_t next


cdef struct Queue:
    uint32_t first
    uint32_t last
    int64_t last_due


cdef struct Device:
    int fd
    Queue on_time
    Queue held_back
    int64_t jitter
    int64_t jitter_until


cdef class Relay:
    """Delays the frames of some TAP devices. One thread; `run` holds no GIL."""

    cdef Device devices[MOST_DEVICES]
    cdef pollfd polls[MOST_DEVICES + 1]
    cdef int device_count
    cdef int64_t delay, most_jitter, hold
    cdef uint64_t reorder_below, chance
    cdef Frame* frames
    cdef uint8_t* memory
    cdef uint32_t frame_count, slot_size, first_free
    cdef uint64_t relayed, reordered, dropped, refused, truncated, latest
    cdef uint8_t[64] spill

    def __cinit__(
        self,
        list fds,
        *,
        int64_t delay,
        int64_t jitter,
        int64_t hold,
        double reorder,
        uint64_t seed,
        uint32_t slot_size,
        uint32_t frame_count,
    ):
        """Times in ns. `slot_size`: bytes of the largest frame with its virtio header, and one."""
        if len(fds) > MOST_DEVICES:
            raise ValueError(f"{len(fds)} devices: the most is {MOST_DEVICES}")
        self.delay, self.most_jitter, self.hold = delay, jitter, hold
        self.reorder_below = <uint64_t>(reorder * <double>(1 << 53))
        self.chance = seed * 2 + 1
        self.slot_size, self.frame_count = slot_size, frame_count
        self.frames = <Frame*>calloc(frame_count, sizeof(Frame))
        self.memory = <uint8_t*>mmap(
            NULL, self.memory_size(), PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0,
        )
        if self.frames == NULL or self.memory == <uint8_t*>MAP_FAILED:
            raise MemoryError
        self._link_free_frames()
        for fd in fds:
            self._add_device(fd)

    def __dealloc__(self):
        free(self.frames)
        if self.memory != NULL and self.memory != <uint8_t*>MAP_FAILED:
            munmap(self.memory, self.memory_size())

    cdef size_t memory_size(self) noexcept nogil:
        return <size_t>self.slot_size * self.frame_count

    cdef void _link_free_frames(self) noexcept:
        cdef uint32_t index
        for index in range(self.frame_count):
            self.frames[index].next = index + 1 if index + 1 < self.frame_count else NONE
        self.first_free = 0 if self.frame_count else NONE

    cdef void _add_device(self, int fd) noexcept:
        cdef Device* device = &self.devices[self.device_count]
        memset(device, 0, sizeof(Device))
        device.fd = fd
        device.on_time.first = device.on_time.last = NONE
        device.held_back.first = device.held_back.last = NONE
        self.polls[self.device_count].fd = fd
        self.polls[self.device_count].events = POLLIN
        self.device_count += 1

    def stats(self):
        """Counters since the start, in frames; `latest_us` is how late the latest one was."""
        return {
            "relayed": self.relayed,
            "reordered": self.reordered,
            "dropped": self.dropped,
            "refused": self.refused,
            "truncated": self.truncated,
            "latest_us": self.latest // 1000,
        }

    def run(self, int control_fd):
        """Relays until `control_fd` is readable. Raises OSError when the poll fails."""
        cdef int failure
        self.polls[self.device_count].fd = control_fd
        self.polls[self.device_count].events = POLLIN
        with nogil:
            prctl(PR_SET_TIMERSLACK, <unsigned long>1)  # ns; by default a sleep is 50 us too long
            failure = self._loop()
        if failure:
            raise OSError(failure, "the relay cannot wait for its devices")

    cdef int _loop(self) noexcept nogil:
        cdef pollfd* control = &self.polls[self.device_count]
        cdef int failure
        while True:
            failure = wait(self.polls, self.device_count + 1, self._time_to_next())
            while not failure and not control.revents and self._read_ready():
                self._write_due()
                failure = wait(control, 1, TICK)
                if not failure and not control.revents:
                    failure = wait(self.polls, self.device_count + 1, 0)
            if failure or control.revents:
                return failure
            self._write_due()

    cdef int64_t _time_to_next(self) noexcept nogil:
        """ns until a frame is due; -1: none waits."""
        cdef int64_t first = -1
        cdef int index
        for index in range(self.device_count):
            first = self._earlier(first, &self.devices[index].on_time)
            first = self._earlier(first, &self.devices[index].held_back)
        return first if first < 0 else max(first - now_ns(), 0)

    cdef int64_t _earlier(self, int64_t due, Queue* queue) noexcept nogil:
        if queue.first == NONE or 0 <= due <= self.frames[queue.first].due:
            return due
        return self.frames[queue.first].due

    # From the device into the queues

    cdef bint _read_ready(self) noexcept nogil:
        """True if a device had a frame."""
        cdef bint has_read = False
        cdef int index
        for index in range(self.device_count):
            if self.polls[index].revents & POLLIN:
                has_read |= self._read_frames(&self.devices[index])
        return has_read

    cdef bint _read_frames(self, Device* device) noexcept nogil:
        cdef int64_t now = now_ns()
        cdef uint32_t taken
        cdef ssize_t size
        cdef int count
        for count in range(READS_A_TURN):
            taken = self.first_free
            if taken == NONE:
                # The frame must go, or the device would wake us for ever.
                size = read(device.fd, &self.spill, sizeof(self.spill))
                self.dropped += size > 0
            else:
                size = read(device.fd, self._slot(taken), self.slot_size)
            if size <= 0:
                return count > 0
            if taken == NONE:
                continue
            if size >= self.slot_size:
                self.truncated += 1
                continue
            self.first_free = self.frames[taken].next
            self.frames[taken].size = <uint32_t>size
            self._enqueue(device, taken, now)
        return True

    cdef void _enqueue(self, Device* device, uint32_t index, int64_t now) noexcept nogil:
        cdef int64_t due = now + self.delay
        if self.most_jitter:
            due += self._jitter(device, now)
        if self.reorder_below and (self._random() >> 11) < self.reorder_below:
            self.reordered += 1
            self._append(&device.held_back, index, due + self.hold)
        else:
            self._append(&device.on_time, index, due)

    cdef int64_t _jitter(self, Device* device, int64_t now) noexcept nogil:
        if now >= device.jitter_until:
            device.jitter = self._random() % <uint64_t>(self.most_jitter + 1)
            device.jitter_until = now + JITTER_PERIOD
        return device.jitter

    cdef void _append(self, Queue* queue, uint32_t index, int64_t due) noexcept nogil:
        cdef Frame* frame = &self.frames[index]
        queue.last_due = max(queue.last_due, due)
        frame.due = queue.last_due
        frame.next = NONE
        if queue.first == NONE:
            queue.first = index
        else:
            self.frames[queue.last].next = index
        queue.last = index

    cdef uint64_t _random(self) noexcept nogil:
        """xorshift64* (Marsaglia 2003, Vigna 2016): the same for the same seed."""
        self.chance ^= self.chance >> 12
        self.chance ^= self.chance << 25
        self.chance ^= self.chance >> 27
        return self.chance * <uint64_t>2685821657736338717

    # From the queues into the device

    cdef void _write_due(self) noexcept nogil:
        cdef int64_t now = now_ns()
        cdef int index
        for index in range(self.device_count):
            self._write_queue(&self.devices[index], &self.devices[index].on_time, now)
            self._write_queue(&self.devices[index], &self.devices[index].held_back, now)

    cdef void _write_queue(self, Device* device, Queue* queue, int64_t now) noexcept nogil:
        cdef uint32_t index
        cdef Frame* frame
        while queue.first != NONE and self.frames[queue.first].due <= now:
            index = queue.first
            frame = &self.frames[index]
            if write(device.fd, self._slot(index), frame.size) == frame.size:
                self.relayed += 1
            else:
                self.refused += 1
            self.latest = max(self.latest, <uint64_t>(now - frame.due))
            queue.first = frame.next
            frame.next = self.first_free
            self.first_free = index

    cdef uint8_t* _slot(self, uint32_t index) noexcept nogil:
        return self.memory + <size_t>self.slot_size * index


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
