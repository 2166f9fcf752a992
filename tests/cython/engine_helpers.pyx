# cython: language_level=3
# distutils: language=c
"""The engine's C functions seen from another Cython module; test_engine_helpers.py compiles this.

Every buffer handed to the engine is malloc'ed at its exact size, so that a tool like valgrind or a
guard page finds a read behind its end. All calls are made without the GIL.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from comfy_cluster._fastpath cimport (
    C_SACK_HEADER_SIZE,
    C_SACK_MAX_WORDS,
    Bitmap,
    Header,
    History,
    Sack,
    bitmap_add,
    bitmap_has,
    bitmap_init,
    header_pack,
    header_parse,
    history_add,
    history_fill_sack,
    history_init,
    history_is_new,
    sack_pack,
    sack_parse,
)


cdef uint8_t* exact_copy(bytes data) except NULL:
    cdef uint8_t* copy = <uint8_t*>malloc(max(len(data), 1))
    if copy == NULL:
        raise MemoryError
    memcpy(copy, <const uint8_t*>data, len(data))
    return copy


def pack_header(uint8_t kind, uint32_t session, uint64_t counter):
    cdef uint8_t packed[16]
    with nogil:
        header_pack(packed, kind, session, counter)
    return packed[:16]


def parse_header(bytes data):
    cdef Header header
    cdef uint8_t* copy = exact_copy(data)
    cdef size_t size = len(data)
    cdef bint is_valid
    with nogil:
        is_valid = header_parse(copy, size, &header)
    free(copy)
    return (header.kind, header.session, header.counter) if is_valid else None


def parse_sack(bytes data):
    cdef Sack sack
    cdef uint8_t* copy = exact_copy(data)
    cdef size_t size = len(data)
    cdef bint is_valid
    with nogil:
        is_valid = sack_parse(copy, size, &sack)
    free(copy)
    if not is_valid:
        return None
    words = [sack.words[number] for number in range(sack.word_count)]
    return sack.largest, sack.ack_delay_us, sack.receive_window, words


def repack_sack(bytes data):
    """Parse, pack again, and return the bytes; asserts that the sizes agree."""
    cdef Sack sack
    cdef uint8_t packed[20 + 8 * 128]
    cdef const uint8_t* payload = data
    cdef size_t size = len(data)
    with nogil:
        if sack_parse(payload, size, &sack):
            size = sack_pack(packed, &sack)
        else:
            size = 0
    assert size == C_SACK_HEADER_SIZE + 8 * sack.word_count
    return packed[:size]


def add_to_bitmap(uint32_t chunk_count, list indices):
    """Return what each `bitmap_add` said, how many are there, and which."""
    cdef Bitmap bitmap
    cdef uint32_t index
    cdef bint is_new
    if not bitmap_init(&bitmap, chunk_count):
        raise MemoryError
    answers = []
    for index in indices:
        with nogil:
            is_new = bitmap_add(&bitmap, index)
        answers.append(bool(is_new))
    present = [index for index in range(min(chunk_count, 4096)) if bitmap_has(&bitmap, index)]
    count = bitmap.count
    free(bitmap.words)
    return answers, count, present


def play_history(list counters):
    """Return which counters were new, and the counters that one SACK then reports."""
    cdef History history
    cdef Sack sack
    cdef int64_t counter
    cdef bint is_new
    history_init(&history)
    answers = []
    for counter in counters:
        with nogil:
            is_new = history_is_new(&history, counter)
            if is_new:
                history_add(&history, counter)
        answers.append(bool(is_new))
    with nogil:
        history_fill_sack(&history, &sack)
    assert 1 <= sack.word_count <= C_SACK_MAX_WORDS
    first = 64 * (sack.largest // 64 - sack.word_count + 1)
    reported = [
        first + 64 * number + bit
        for number in range(sack.word_count)
        for bit in range(64)
        if sack.words[number] >> bit & 1
    ]
    return answers, reported
