# cython: language_level=3
"""Calls the compiled engine's helpers as another Cython module does, without the GIL."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free

from comfy_cluster._fastpath cimport (
    C_HEADER_SIZE,
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


def header_round_trip(uint8_t kind, uint32_t session, uint64_t counter):
    """Return the header as parsed again, and whether one byte less is refused."""
    cdef uint8_t packed[C_HEADER_SIZE]
    cdef Header header
    cdef bint is_valid
    cdef bint is_short_valid
    with nogil:
        header_pack(packed, kind, session, counter)
        is_valid = header_parse(packed, C_HEADER_SIZE, &header)
        is_short_valid = header_parse(packed, C_HEADER_SIZE - 1, &header)
    assert is_valid and not is_short_valid
    return header.kind, header.session, header.counter


def chunks_added(uint32_t chunk_count, list indexes):
    """Return how many of `indexes` were new, and which chunks the bitmap then has."""
    cdef Bitmap bitmap
    cdef uint32_t number
    assert bitmap_init(&bitmap, chunk_count)
    new_count = sum(bitmap_add(&bitmap, index) for index in indexes)
    assert new_count == bitmap.count
    present = [number for number in range(chunk_count) if bitmap_has(&bitmap, number)]
    free(bitmap.words)
    return new_count, present


def sack_of(list counters):
    """Return (largest, words) of the SACK for these counters, once packed and parsed."""
    cdef History history
    cdef Sack sack
    cdef Sack parsed
    cdef uint8_t packed[1200]
    cdef size_t size
    cdef bint is_valid
    history_init(&history)
    for counter in counters:
        if history_is_new(&history, counter):
            history_add(&history, counter)
    with nogil:
        sack.ack_delay_us = 7
        sack.receive_window = 65536
        history_fill_sack(&history, &sack)
        size = sack_pack(packed, &sack)
        is_valid = sack_parse(packed, size, &parsed)
    assert is_valid and parsed.ack_delay_us == 7 and parsed.receive_window == 65536
    return parsed.largest, [parsed.words[number] for number in range(parsed.word_count)]
