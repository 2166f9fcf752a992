# Two sets of small integers: the compiled half of _fastpath_py/bitmap.py.

HISTORY_WINDOW = 64 * C_SACK_MAX_WORDS

cdef bint bitmap_init(Bitmap* bitmap, uint32_t chunk_count) noexcept nogil:
    bitmap.words = <uint64_t*>calloc((<size_t>chunk_count + 63) // 64 + 1, sizeof(uint64_t))
    bitmap.chunk_count = chunk_count
    bitmap.count = 0
    return bitmap.words != NULL


cdef bint bitmap_has(const Bitmap* bitmap, uint32_t index) noexcept nogil:
    return index < bitmap.chunk_count and (bitmap.words[index >> 6] >> (index & 63)) & 1


cdef bint bitmap_add(Bitmap* bitmap, uint32_t index) noexcept nogil:
    if index >= bitmap.chunk_count or bitmap_has(bitmap, index):
        return False
    bitmap.words[index >> 6] |= <uint64_t>1 << (index & 63)
    bitmap.count += 1
    return True


cdef inline bint bitmap_is_complete(const Bitmap* bitmap) noexcept nogil:
    return bitmap.count == bitmap.chunk_count


cdef void history_init(History* history) noexcept nogil:
    cdef int slot
    memset(history, 0, sizeof(History))
    history.largest = -1
    for slot in range(C_SACK_REDUNDANCY):
        history.lowest_new[slot] = -1


cdef bint history_is_new(const History* history, int64_t counter) noexcept nogil:
    if counter > history.largest:
        return True
    if (counter >> 6) + C_SACK_MAX_WORDS <= history.largest >> 6:
        return False
    return not (history.words[(counter >> 6) % C_SACK_MAX_WORDS] >> (counter & 63)) & 1


cdef void history_add(History* history, int64_t counter) noexcept nogil:
    cdef int64_t number, last
    cdef int slot
    if counter > history.largest:
        last = counter >> 6
        number = (history.largest >> 6) + 1
        if number < last - C_SACK_MAX_WORDS + 1:
            number = last - C_SACK_MAX_WORDS + 1
        while number <= last:
            history.words[number % C_SACK_MAX_WORDS] = 0
            number += 1
        history.largest = counter
    history.words[(counter >> 6) % C_SACK_MAX_WORDS] |= <uint64_t>1 << (counter & 63)
    slot = <int>(history.sack_number % C_SACK_REDUNDANCY)
    if history.lowest_new[slot] < 0 or counter < history.lowest_new[slot]:
        history.lowest_new[slot] = counter


cdef void history_fill_sack(History* history, Sack* sack) noexcept nogil:
    cdef int64_t last = history.largest >> 6
    cdef int64_t lowest = -1
    cdef int64_t first, number
    cdef int slot
    for slot in range(C_SACK_REDUNDANCY):
        if history.lowest_new[slot] >= 0 and (lowest < 0 or history.lowest_new[slot] < lowest):
            lowest = history.lowest_new[slot]
    first = (lowest if lowest > 0 else 0) >> 6
    if first < last - C_SACK_MAX_WORDS + 1:
        first = last - C_SACK_MAX_WORDS + 1
    sack.largest = history.largest
    sack.word_count = 0
    for number in range(first, last + 1):
        sack.words[sack.word_count] = history.words[number % C_SACK_MAX_WORDS]
        sack.word_count += 1
    history.sack_number += 1
    history.lowest_new[history.sack_number % C_SACK_REDUNDANCY] = -1


cdef class ChunkBitmap:
    cdef Bitmap bitmap

    def __cinit__(self, chunk_count):
        if not 0 <= chunk_count <= 0xFFFFFFFF:
            raise ValueError(f"chunk_count must be 0 to 2**32 - 1, not {chunk_count}")
        if not bitmap_init(&self.bitmap, chunk_count):
            raise MemoryError

    def __dealloc__(self):
        free(self.bitmap.words)

    @property
    def chunk_count(self):
        return self.bitmap.chunk_count

    @property
    def count(self):
        return self.bitmap.count

    @property
    def is_complete(self):
        return bitmap_is_complete(&self.bitmap)

    def add(self, int64_t index):
        return 0 <= index < self.bitmap.chunk_count and bitmap_add(&self.bitmap, <uint32_t>index)

    def __contains__(self, int64_t index):
        return 0 <= index < self.bitmap.chunk_count and bitmap_has(&self.bitmap, <uint32_t>index)

    def first_missing(self):
        cdef uint32_t index = 0
        while index < self.bitmap.chunk_count and bitmap_has(&self.bitmap, index):
            index += 1
        return index

    def missing_ranges(self, int64_t limit):
        cdef uint32_t index = 0
        cdef uint32_t first
        ranges = []
        while index < self.bitmap.chunk_count and len(ranges) < limit:
            if bitmap_has(&self.bitmap, index):
                index += 1
                continue
            first = index
            while index < self.bitmap.chunk_count and not bitmap_has(&self.bitmap, index):
                index += 1
            ranges.append((first, index))
        return ranges


cdef class ReceiveHistory:
    cdef History history

    def __cinit__(self):
        history_init(&self.history)

    @property
    def largest(self):
        return self.history.largest

    def is_new(self, int64_t counter):
        return history_is_new(&self.history, counter)

    def add(self, int64_t counter):
        history_add(&self.history, counter)

    def sack_words(self):
        cdef Sack sack
        history_fill_sack(&self.history, &sack)
        return [sack.words[number] for number in range(sack.word_count)]
