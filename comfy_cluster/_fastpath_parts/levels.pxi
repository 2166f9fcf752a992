# 8-bit levels in float32 memory, and back: the compiled half of _fastpath_py/levels.py.
#
# Plain loops that compilers turn into vector instructions; values are read and written by memcpy, so
# that the memory need not be aligned.

cdef extern from * nogil:
    """
    #include <string.h>

    #define CC_LEVELS_BLOCK 1024  /* values until the next look whether all were levels */

    #if defined(_MSC_VER)
    #define CC_RESTRICT __restrict
    #else
    #define CC_RESTRICT __restrict__
    #endif

    /* AVX2 where the processor has it: twice as fast. Same bits, as nothing is fused. */
    #if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
    #define CC_CLONES __attribute__((target_clones("avx2", "default")))
    #else
    #define CC_CLONES
    #endif

    CC_CLONES static int cc_find_levels(
        const uint8_t *CC_RESTRICT values, uint8_t *CC_RESTRICT levels, size_t count
    ) {
        size_t start, at, end;
        for (start = 0; start < count; start = end) {
            uint32_t difference = 0;
            end = count - start > CC_LEVELS_BLOCK ? start + CC_LEVELS_BLOCK : count;
            for (at = start; at < end; at++) {
                float value, restored;
                int32_t bits, clipped, level, restored_bits;
                memcpy(&bits, values + 4 * at, 4);
                /* Clipped to 0..1 as integers: compilers make no vectors of floats that may trap.
                   What was clipped, NaN too, differs from what is restored. */
                clipped = bits < 0 ? 0 : bits;
                clipped = clipped > 0x3F800000 ? 0x3F800000 : clipped;
                memcpy(&value, &clipped, 4);
                level = (int32_t)(value * 255.0f + 0.5f);
                restored = (float)level / 255.0f;
                memcpy(&restored_bits, &restored, 4);
                difference |= (uint32_t)(bits ^ restored_bits);
                levels[at] = (uint8_t)level;
            }
            if (difference) return 0;
        }
        return 1;
    }

    CC_CLONES static void cc_restore_values(
        const uint8_t *CC_RESTRICT levels, uint8_t *CC_RESTRICT values, size_t count
    ) {
        size_t at;
        for (at = 0; at < count; at++) {
            float value = (float)(int32_t)levels[at] / 255.0f;
            memcpy(values + 4 * at, &value, 4);
        }
    }

    static void cc_add_row(
        uint8_t *CC_RESTRICT row, const uint8_t *CC_RESTRICT above, size_t size
    ) {
        size_t at;
        for (at = 0; at < size; at++) row[at] = (uint8_t)(row[at] + above[at]);
    }

    static void cc_undo_up_filter(uint8_t *rows, size_t size, size_t row_size) {
        size_t at;
        for (at = row_size; at < size; at += row_size)
            cc_add_row(rows + at, rows + at - row_size, row_size);
    }
    """
    int cc_find_levels(const uint8_t* values, uint8_t* levels, size_t count)
    void cc_restore_values(const uint8_t* levels, uint8_t* values, size_t count)
    void cc_undo_up_filter(uint8_t* rows, size_t size, size_t row_size)


def find_levels(values, levels):
    cdef _Pin source = _Pin(values, False)
    cdef _Pin target = _Pin(levels, True)
    cdef size_t count = check_value_count(source.view.len, target.view.len)
    cdef bint are_levels
    with nogil:
        are_levels = cc_find_levels(<const uint8_t*>source.view.buf, <uint8_t*>target.view.buf, count)
    return are_levels


def restore_values(levels, values):
    cdef _Pin source = _Pin(levels, False)
    cdef _Pin target = _Pin(values, True)
    cdef size_t count = check_value_count(target.view.len, source.view.len)
    with nogil:
        cc_restore_values(<const uint8_t*>source.view.buf, <uint8_t*>target.view.buf, count)


def undo_up_filter(rows, Py_ssize_t row_size):
    cdef _Pin target = _Pin(rows, True)
    cdef size_t size = target.view.len
    if row_size < 1 or size % <size_t>row_size:
        raise ValueError(f"{size} bytes are no whole rows of {row_size}")
    with nogil:
        cc_undo_up_filter(<uint8_t*>target.view.buf, size, row_size)


cdef Py_ssize_t check_value_count(Py_ssize_t value_size, Py_ssize_t level_count) except -1:
    if value_size != 4 * level_count:
        raise ValueError(f"{value_size} bytes of float32 for {level_count} levels")
    return level_count
