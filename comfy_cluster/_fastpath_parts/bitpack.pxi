# Rows of 8-bit levels in few bits, and back: the compiled half of _fastpath_py/bitpack.py, where the
# form is told. Eight bytes at a time in a 64-bit word; the filters are plain loops over rows.

cdef extern from * nogil:
    """
    #include <stdlib.h>

    enum { CC_BLOCK = 16, CC_SAMPLED_ROWS = 7, CC_UP = 0, CC_GRADIENT = 1 };
    #if defined(_MSC_VER)
    #define CC_INLINE __forceinline
    #else
    #define CC_INLINE inline __attribute__((always_inline))
    #endif
    #define CC_BYTES(octet) ((uint64_t)(octet) * 0x0101010101010101u)

    /* Words are little-endian: the first byte has the lowest bits. */
    static uint64_t cc_word_of(uint64_t value) {
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        value = __builtin_bswap64(value);
    #endif
        return value;
    }

    static uint64_t cc_load_word(const uint8_t *from) {
        uint64_t value;
        memcpy(&value, from, 8);
        return cc_word_of(value);
    }

    static void cc_store_word(uint8_t *to, uint64_t word) {
        word = cc_word_of(word);
        memcpy(to, &word, 8);
    }

    /* Differences to what is foretold, of which the smallest have the fewest bits: 0, -1, 1, ... */
    CC_CLONES static void cc_filter_row(
        uint8_t *CC_RESTRICT target, const uint8_t *CC_RESTRICT row,
        const uint8_t *CC_RESTRICT above, size_t size
    ) {
        size_t at;
        for (at = 0; at < size; at++) {
            uint8_t difference = (uint8_t)(row[at] - above[at]);
            target[at] = (uint8_t)((difference << 1) ^ -(difference >> 7));
        }
    }

    CC_CLONES static void cc_filter_row_by_gradient(
        uint8_t *CC_RESTRICT target, const uint8_t *CC_RESTRICT row,
        const uint8_t *CC_RESTRICT above, size_t size, size_t stride
    ) {
        size_t at;
        for (at = stride; at < size; at++) {
            uint8_t difference =
                (uint8_t)(row[at] - above[at] - row[at - stride] + above[at - stride]);
            target[at] = (uint8_t)((difference << 1) ^ -(difference >> 7));
        }
    }

    static void cc_filter(
        uint8_t *target, const uint8_t *row, const uint8_t *above, size_t size, size_t stride,
        int predictor
    ) {
        if (predictor == CC_GRADIENT) {
            cc_filter_row(target, row, above, stride);
            cc_filter_row_by_gradient(target, row, above, size, stride);
        } else {
            cc_filter_row(target, row, above, size);
        }
    }

    static unsigned cc_width_of(uint64_t low, uint64_t high) {
        unsigned any;
        low |= high;
        low |= low >> 32;
        low |= low >> 16;
        any = (unsigned)(low | low >> 8) & 0xFF;
        return (any > 0) + (any > 1) + (any > 3) + (any > 7) + (any > 15) + (any > 31) + (any > 63)
            + (any > 127);
    }

    /* Bits that a row takes with this predictor; `target` has a block more than the row. */
    static size_t cc_row_cost(
        uint8_t *target, const uint8_t *row, const uint8_t *above, size_t size, size_t stride,
        int predictor
    ) {
        size_t at, cost = 0;
        cc_filter(target, row, above, size, stride, predictor);
        memset(target + size, 0, CC_BLOCK);
        for (at = 0; at < size; at += CC_BLOCK)
            cost += cc_width_of(cc_load_word(target + at), cc_load_word(target + at + 8));
        return cost;
    }

    static uint64_t cc_narrow(uint64_t word, unsigned width) {
        const uint64_t odd = 0x00FF00FF00FF00FFu, low = 0x0000FFFF0000FFFFu;
        word = (word & odd) | ((word & ~odd) >> (8 - width));
        word = (word & low) | ((word & ~low) >> (16 - 2 * width));
        return (word & 0xFFFFFFFFu) | (word >> 32) << 4 * width;
    }

    static uint64_t cc_widen(uint64_t word, unsigned width) {
        const uint64_t octets = 0x0001000100010001u * ((1u << width) - 1);
        const uint64_t pairs = 0x0000000100000001u * ((1u << 2 * width) - 1);
        const uint64_t half = ((uint64_t)1 << 4 * width) - 1;
        word = (word & half) | (word >> 4 * width & half) << 32;
        word = (word & pairs) | (word >> 2 * width & pairs) << 16;
        word = (word & octets) | (word >> width & octets) << 8;
        return (word >> 1 & CC_BYTES(0x7F)) ^ (word & CC_BYTES(1)) * 0xFF;
    }

    static size_t cc_block_count(size_t count) { return (count + CC_BLOCK - 1) / CC_BLOCK; }

    static size_t cc_packed_limit(size_t count) {
        size_t blocks = cc_block_count(count);
        return 1 + (blocks + 1) / 2 + CC_BLOCK * blocks + 8;  /* a word is written whole */
    }

    /* `rows` is behind the row above them. Bytes written; 0: no memory. */
    static size_t cc_pack_rows(
        const uint8_t *rows, const uint8_t *above, size_t row_count, size_t row_size, size_t stride,
        uint8_t *target
    ) {
        const size_t count = row_count * row_size, blocks = cc_block_count(count);
        uint8_t *widths = target + 1, *data = widths + (blocks + 1) / 2;
        size_t row, block, by_up = 0, by_gradient = 0;
        uint8_t *filtered = (uint8_t *)malloc(count + CC_BLOCK);
        if (filtered == NULL) return 0;
        for (row = 0; row < row_count; row += CC_SAMPLED_ROWS) {
            const uint8_t *this_row = rows + row * row_size;
            const uint8_t *row_above = row ? this_row - row_size : above;
            by_up += cc_row_cost(filtered, this_row, row_above, row_size, stride, CC_UP);
            by_gradient += cc_row_cost(filtered, this_row, row_above, row_size, stride, CC_GRADIENT);
        }
        /* The gradient takes longer to undo: it has to be worth it. */
        target[0] = by_gradient * 33 < by_up * 32 ? CC_GRADIENT : CC_UP;
        for (row = 0; row < row_count; row++) {
            const uint8_t *this_row = rows + row * row_size;
            const uint8_t *row_above = row ? this_row - row_size : above;
            cc_filter(filtered + row * row_size, this_row, row_above, row_size, stride, target[0]);
        }
        memset(filtered + count, 0, CC_BLOCK);
        memset(widths, 0, (blocks + 1) / 2);
        for (block = 0; block < blocks; block++) {
            const uint64_t low = cc_load_word(filtered + CC_BLOCK * block);
            const uint64_t high = cc_load_word(filtered + CC_BLOCK * block + 8);
            const unsigned width = cc_width_of(low, high);
            widths[block / 2] |= (uint8_t)(width << 4 * (block & 1));
            cc_store_word(data, cc_narrow(low, width));
            cc_store_word(data + width, cc_narrow(high, width));
            data += 2 * width;
        }
        free(filtered);
        return (size_t)(data - target);
    }

    /* Whether the head of packed rows fits their size. */
    static int cc_is_packed(const uint8_t *packed, size_t size, size_t count) {
        const size_t blocks = cc_block_count(count), head = 1 + (blocks + 1) / 2;
        size_t block, expected = head;
        if (size < head || packed[0] > CC_GRADIENT) return 0;
        for (block = 0; block < blocks + (blocks & 1); block++) {
            unsigned width = packed[1 + block / 2] >> 4 * (block & 1) & 15;
            if (width > 8 || (block == blocks && width)) return 0;
            expected += 2 * width;
        }
        return size == expected;
    }

    /* Words of a block of up to 8 bits, also where fewer than two words are left; returns where
       the next block begins. */
    static const uint8_t *cc_widen_block(
        const uint8_t *data, const uint8_t *end, unsigned width, uint8_t *target
    ) {
        const size_t left = (size_t)(end - data), taken = 2 * width < left ? 2 * width : left;
        const uint8_t *next = data + taken;
        uint8_t copy[CC_BLOCK + 8] = {0};
        if (left < sizeof(copy)) {
            memcpy(copy, data, taken);
            data = copy;
        }
        cc_store_word(target, cc_widen(cc_load_word(data), width));
        cc_store_word(target + 8, cc_widen(cc_load_word(data + width), width));
        return next;
    }

    /* Sums over the pixels of a row: what undoes the difference to the left. Eight bytes at a time;
       even and odd ones apart, in lanes of 16 bits that do not overflow. `stride` is 1, 2 or 4. */
    static CC_INLINE void cc_sum_pixels(uint8_t *row, size_t size, const size_t stride) {
        const uint64_t lanes = 0x0001000100010001u, octets = 0xFF * lanes;
        const uint64_t spread = stride == 4 ? 0x0000000100000001u : lanes;
        const unsigned last = stride == 4 ? 32 : 48;  /* where the last pixel of a word begins */
        uint64_t left_even = 0, left_odd = 0;
        size_t at;
        for (at = 0; at + 8 <= size; at += 8) {
            const uint64_t word = cc_load_word(row + at);
            uint64_t even = (word & octets) * spread, odd = (word >> 8 & octets) * spread;
            if (stride == 1) {
                const uint64_t before = odd << 16;
                odd += even;
                even += before;
            }
            even = (even + left_even) & octets;
            odd = (odd + left_odd) & octets;
            left_odd = (odd >> last) * spread;
            left_even = stride == 1 ? left_odd : (even >> last) * spread;
            cc_store_word(row + at, even | odd << 8);
        }
        for (at = at > stride ? at : stride; at < size; at++)
            row[at] = (uint8_t)(row[at] + row[at - stride]);
    }

    static void cc_undo_gradient(uint8_t *row, size_t size, size_t stride) {
        uint8_t first = 0, second = 0, third = 0;
        size_t at;
        switch (stride) {
        case 1: cc_sum_pixels(row, size, 1); break;
        case 2: cc_sum_pixels(row, size, 2); break;
        case 4: cc_sum_pixels(row, size, 4); break;
        case 3:  /* the sums stay in registers */
            for (at = 0; at < size; at += 3) {
                row[at] = first = (uint8_t)(first + row[at]);
                row[at + 1] = second = (uint8_t)(second + row[at + 1]);
                row[at + 2] = third = (uint8_t)(third + row[at + 2]);
            }
            break;
        default: for (at = stride; at < size; at++) row[at] = (uint8_t)(row[at] + row[at - stride]);
        }
    }

    /* `packed` passed `cc_is_packed`; but it may be a mapping that its sender changes meanwhile:
       then the rows are wrong, and no other memory. `above` is NULL for an image's first rows. */
    static void cc_unpack_rows(
        const uint8_t *packed, size_t size, size_t row_count, size_t row_size, size_t stride,
        uint8_t *rows, const uint8_t *above
    ) {
        const size_t count = row_count * row_size, blocks = cc_block_count(count);
        const uint8_t *data = packed + 1 + (blocks + 1) / 2;
        uint8_t last[CC_BLOCK];
        size_t block, row;
        for (block = 0; block < blocks; block++) {
            const unsigned width = packed[1 + block / 2] >> 4 * (block & 1) & 15;
            const size_t left = count - CC_BLOCK * block;
            data = cc_widen_block(
                data, packed + size, width < 8 ? width : 8,
                left < CC_BLOCK ? last : rows + CC_BLOCK * block
            );
            if (left < CC_BLOCK) memcpy(rows + CC_BLOCK * block, last, left);
        }
        for (row = 0; row < row_count; row++, rows += row_size) {
            if (packed[0] == CC_GRADIENT) cc_undo_gradient(rows, row_size, stride);
            if (above != NULL) cc_add_row(rows, above, row_size);
            above = rows;
        }
    }
    """
    size_t cc_packed_limit(size_t count)
    size_t cc_pack_rows(
        const uint8_t* rows, const uint8_t* above, size_t row_count, size_t row_size, size_t stride,
        uint8_t* target
    )
    int cc_is_packed(const uint8_t* packed, size_t size, size_t count)
    void cc_unpack_rows(
        const uint8_t* packed, size_t size, size_t row_count, size_t row_size, size_t stride,
        uint8_t* rows, const uint8_t* above
    )


def pack_rows(rows, Py_ssize_t row_size, *, Py_ssize_t stride, bint has_above):
    cdef _Pin source = _Pin(rows, False)
    cdef size_t row_count = check_rows(source.view.len, row_size, stride, has_above)
    cdef const uint8_t* first = <const uint8_t*>source.view.buf
    cdef const uint8_t* above
    cdef bytes zeros = b"" if has_above else bytes(row_size)
    cdef size_t limit = cc_packed_limit(row_count * <size_t>row_size)
    cdef bytearray packed = PyByteArray_FromStringAndSize(NULL, limit)
    cdef uint8_t* target = <uint8_t*>PyByteArray_AS_STRING(packed)
    cdef size_t size
    if has_above:
        above = first
        first += row_size
    else:
        above = <const uint8_t*>PyBytes_AS_STRING(zeros)
    with nogil:
        size = cc_pack_rows(first, above, row_count, row_size, stride, target)
    if size == 0:
        raise MemoryError(f"there is no memory to pack {row_count} rows of {row_size} bytes")
    PyByteArray_Resize(packed, size)
    return packed


def unpack_rows(packed, rows, Py_ssize_t row_size, *, Py_ssize_t stride, bint has_above):
    cdef _Pin source = _Pin(packed, False)
    cdef _Pin target = _Pin(rows, True)
    cdef size_t row_count = check_rows(target.view.len, row_size, stride, has_above)
    cdef const uint8_t* data = <const uint8_t*>source.view.buf
    cdef size_t size = source.view.len
    cdef uint8_t* first = <uint8_t*>target.view.buf
    cdef const uint8_t* above = NULL
    if has_above:
        above = first
        first += row_size
    with nogil:
        if not cc_is_packed(data, size, row_count * <size_t>row_size):
            with gil:
                return False
        cc_unpack_rows(data, size, row_count, row_size, stride, first, above)
    return True


cdef Py_ssize_t check_rows(
    Py_ssize_t size, Py_ssize_t row_size, Py_ssize_t stride, bint has_above
) except -1:
    if row_size < 1 or size % row_size or size // row_size <= has_above:
        raise ValueError(f"{size} bytes are no whole rows of {row_size}")
    if stride < 1 or row_size % stride:
        raise ValueError(f"a pixel of {stride} bytes in a row of {row_size}")
    return size // row_size - has_above
