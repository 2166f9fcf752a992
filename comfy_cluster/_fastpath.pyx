# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# distutils: language=c
"""The packet engine, compiled. `_fastpath_py` defines its behaviour, `_fastpath.pyi` its contract."""

# What it is: header packing, bitmaps, flow control and the socket loops, in one extension module;
# and the loops over pixels that the codec would be slow with in Python.
# The parts below hold C structures with `noexcept nogil` functions, and thin classes on top.
#
# Memory: every structure is owned by the PacketEngine that made it and freed with it. Payload memory
# belongs to Python objects; a `_Pin` holds each one's buffer from open_* until close_*.
#
# GIL: the loops and everything they call run without it. No Python object is touched below the
# class PacketEngine.
#
# Threads: EngineState is guarded by its lock, held for microseconds and never during a system call.
# The lock may be waited for only without the GIL, and Python objects are dropped only outside of it,
# because their finalisers may call the engine.

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport (
    PyByteArray_AS_STRING,
    PyByteArray_FromStringAndSize,
    PyByteArray_Resize,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.pythread cimport (
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_type_lock,
)
from libc.math cimport INFINITY, fabs, pow
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

import ipaddress


cdef extern from * nogil:
    """
    #if defined(_MSC_VER)
    #include <intrin.h>
    static __inline int cc_ctz(unsigned long long value) {
        unsigned long index;
        _BitScanForward64(&index, value);
        return (int)index;
    }
    #else
    #define cc_ctz __builtin_ctzll
    #endif
    """
    int lowest_bit "cc_ctz"(unsigned long long value)


IS_COMPILED = True

include "_fastpath_parts/packet.pxi"
include "_fastpath_parts/bitmap.pxi"
include "_fastpath_parts/congestion.pxi"
include "_fastpath_parts/congestion_controller.pxi"
include "_fastpath_parts/path.pxi"
include "_fastpath_parts/mtu.pxi"
include "_fastpath_parts/buffers.pxi"
include "_fastpath_parts/sent.pxi"
include "_fastpath_parts/peer.pxi"
include "_fastpath_parts/stun.pxi"
include "_fastpath_parts/engine.pxi"
include "_fastpath_parts/hellos.pxi"
include "_fastpath_parts/sending.pxi"
include "_fastpath_parts/sockets.pxi"
include "_fastpath_parts/loops.pxi"
include "_fastpath_parts/python_values.pxi"
include "_fastpath_parts/packet_engine.pxi"
include "_fastpath_parts/ceiling.pxi"
include "_fastpath_parts/levels.pxi"
include "_fastpath_parts/bitpack.pxi"

__all__ = [
    "CHUNK_HEADER_SIZE",
    "COUNTERS",
    "EVENT_HELLO",
    "EVENT_INCOMING_COMPLETE",
    "EVENT_MESSAGE",
    "EVENT_OUTGOING_ACKED",
    "EVENT_STUN",
    "HAS_CEILING",
    "HAS_LOOPS",
    "HEADER_SIZE",
    "HISTORY_WINDOW",
    "IS_COMPILED",
    "KIND_CHUNK",
    "KIND_HELLO",
    "KIND_MESSAGE",
    "KIND_SACK",
    "MAX_PACKET_SIZE",
    "MAX_PEERS",
    "MAX_STUN_TRANSACTIONS",
    "MESSAGE_PAYLOAD_LIMIT",
    "MIN_PACKET_SIZE",
    "PROBE_SIZES",
    "SACK_HEADER_SIZE",
    "SACK_MAX_WORDS",
    "TAG_SIZE",
    "ChunkBitmap",
    "CongestionController",
    "Pacer",
    "PacketEngine",
    "ReceiveHistory",
    "RttEstimator",
    "ceiling_receive",
    "ceiling_send",
    "chunk_size_for",
    "find_levels",
    "pack_chunk_header",
    "pack_header",
    "pack_rows",
    "pack_sack",
    "parse_chunk_header",
    "parse_header",
    "parse_sack",
    "restore_values",
    "undo_up_filter",
    "unpack_rows",
]
