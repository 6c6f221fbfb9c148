/* The loops of kernel.c for one vector width: included there once for each, with VARIANT, VECTOR_BYTES and TARGET set.
 * No guard: it is meant to be included again. */

typedef uint64_t NAME(vector) __attribute__((vector_size(VECTOR_BYTES), aligned(1), may_alias));
#define VECTOR NAME(vector)
#define AT(address) (*(VECTOR *)(address))
#define CONST_AT(address) (*(const VECTOR *)(address))
#define INLINE static inline __attribute__((always_inline)) TARGET

/* ---------------------------------------------------------------------------------------------------------- outer code */

/* One column of a group of eight rows, `type` wide. Times alpha moves row i to row i + 1; the old row 7 becomes row 0 and goes into rows 2, 3, 4. */
#define ADD_COLUMN(type, column)                                                                 \
    do {                                                                                         \
        type top = *(const type *)(q + 7 * row_bytes + (column)), moved = top;                   \
        for (int row = 0; row < ROWS_PER_SYMBOL; row++) {                                        \
            size_t at = row * row_bytes + (column);                                              \
            type data = *(const type *)(slot + at), old = *(const type *)(q + at);               \
            *(type *)(q + at) = moved ^ data ^ ((row >= 2 && row <= 4) ? top : (type){0});       \
            *(type *)(p + at) ^= data;                                                           \
            moved = old;                                                                         \
        }                                                                                        \
    } while (0)

INLINE void NAME(add_rows)(uint8_t *p, uint8_t *q, const uint8_t *slot, size_t symbol_rows, size_t row_bytes) {
    size_t step = ROWS_PER_SYMBOL * row_bytes;
    for (size_t group = 0; group < symbol_rows; group++, p += step, q += step, slot += step) {
        size_t column = 0;
        for (; column + VECTOR_BYTES <= row_bytes; column += VECTOR_BYTES) ADD_COLUMN(VECTOR, column);
        for (; column < row_bytes; column++) ADD_COLUMN(uint8_t, column);
    }
}
#undef ADD_COLUMN

TARGET static void NAME(add_slots)(uint8_t *p, uint8_t *q, const uint8_t *slots, size_t symbol_rows, size_t row_bytes) {
    if (row_bytes == 512)
        NAME(add_rows)(p, q, slots, symbol_rows, 512); /* the common case, with its strides known to the compiler */
    else
        NAME(add_rows)(p, q, slots, symbol_rows, row_bytes);
}

/* ---------------------------------------------------------------------------------------------------------- inner code */

INLINE void NAME(xor_bytes)(uint8_t *target, const uint8_t *other, size_t size) {
    size_t at = 0;
    for (; at + VECTOR_BYTES <= size; at += VECTOR_BYTES) AT(target + at) ^= CONST_AT(other + at);
    for (; at + 8 <= size; at += 8) store64(target + at, load64(target + at) ^ load64(other + at));
    for (; at < size; at++) target[at] ^= other[at];
}

/* XOR of 2^bits records, left in the first of them; the others are used up. */
INLINE void NAME(fold_all)(uint8_t *records, unsigned bits, size_t record_bytes) {
    while (bits--) NAME(xor_bytes)(records, records + (record_bytes << bits), record_bytes << bits);
}

/* XOR of the records of 1, 2, 4 or 8 bytes in a word, in its lowest bytes. */
INLINE uint64_t NAME(fold_word)(uint64_t word, size_t record_bytes) {
    if (record_bytes <= 4) word ^= word >> 32;
    if (record_bytes <= 2) word ^= word >> 16;
    if (record_bytes <= 1) word ^= word >> 8;
    return word;
}

/* XOR of a row's 64 records of 1, 2, 4 or 8 bytes. */
INLINE void NAME(fold_row)(const uint8_t *row, size_t record_bytes, uint8_t *record) {
    uint64_t sum = 0;
    for (size_t word = 0; word < 8 * record_bytes; word++) sum ^= load64(row + 8 * word);
    sum = NAME(fold_word)(sum, record_bytes);
    memcpy(record, &sum, record_bytes);
}

/* The subsets of the six low index bits of one row of 64 records of 1, 2, 4 or 8 bytes: parity record 0 (all), then bits 0 .. 5. */
INLINE void NAME(word_row_subsets)(const uint8_t *row, size_t record_bytes, uint8_t *parity) {
    /* Fields of a word whose record has bit 0, 1 or 2 set in its number within the word, for records of 1 byte; wider ones skip some. */
    static const uint64_t odd[3] = {0xFF00FF00FF00FF00u, 0xFFFF0000FFFF0000u, 0xFFFFFFFF00000000u};
    unsigned inside = record_bytes == 1 ? 3 : record_bytes == 2 ? 2 : record_bytes == 4 ? 1 : 0, outside = 6 - inside;
    uint64_t all = 0, chosen[6] = {0};
    for (size_t word = 0; word < 8 * record_bytes; word++) {
        uint64_t value = load64(row + 8 * word);
        all ^= value;
        for (unsigned bit = 0; bit < outside; bit++)
            if (word >> bit & 1) chosen[bit] ^= value;
    }
    for (unsigned bit = 0; bit < 6; bit++) {
        uint64_t subset = bit < inside ? all & odd[bit + 3 - inside] : chosen[bit - inside];
        subset = NAME(fold_word)(subset, record_bytes);
        memcpy(parity + (1 + bit) * record_bytes, &subset, record_bytes);
    }
    all = NAME(fold_word)(all, record_bytes);
    memcpy(parity, &all, record_bytes);
}

/* The same for records of any size; the row is used up. */
INLINE void NAME(any_row_subsets)(uint8_t *row, size_t record_bytes, uint8_t *parity) {
    for (unsigned bit = 6; bit--;) {
        uint8_t upper[RECORDS_PER_ROW / 2 * RECORD_LIMIT_BYTES];
        size_t half = record_bytes << bit;
        memcpy(upper, row + half, half);
        NAME(xor_bytes)(row, upper, half);
        NAME(fold_all)(upper, bit, record_bytes);
        memcpy(parity + (1 + bit) * record_bytes, upper, record_bytes);
    }
    memcpy(parity, row, record_bytes);
}

/* One column, a vector wide, of a cell's rows: its XOR into `sums`, the subsets of the rows' index bits into `subsets` (a row for each).
 * A tree: pairs, pairs of pairs, ...; the right half of each is what its bit selects. */
INLINE void NAME(row_tree)(const uint8_t *column, unsigned row_bits, size_t row_bytes, uint8_t *sums, uint8_t *subsets) {
    VECTOR waiting[ROW_BITS_LIMIT], chosen[ROW_BITS_LIMIT], sum;
    const VECTOR zero = {0};
    for (unsigned bit = 0; bit < row_bits; bit++) chosen[bit] = zero;
    sum = zero;
    for (size_t row = 0; row < (size_t)1 << row_bits; row++) {
        unsigned bit = 0;
        sum = CONST_AT(column + row * row_bytes);
        for (size_t left = row; left & 1; left >>= 1, bit++) {
            chosen[bit] ^= sum;
            sum ^= waiting[bit];
        }
        if (bit < row_bits) waiting[bit] = sum;
    }
    AT(sums) = sum;
    for (unsigned bit = 0; bit < row_bits; bit++) AT(subsets + bit * row_bytes) = chosen[bit];
}

/* The same for eight rows or more: eight at a time, so that the lowest three levels stay in registers. */
INLINE void NAME(row_tree_by_eight)(const uint8_t *column, unsigned row_bits, size_t row_bytes, uint8_t *sums, uint8_t *subsets) {
    VECTOR waiting[ROW_BITS_LIMIT], chosen[ROW_BITS_LIMIT], sum;
    const VECTOR zero = {0};
    VECTOR chosen0 = zero, chosen1 = zero, chosen2 = zero;
    for (unsigned bit = 3; bit < row_bits; bit++) chosen[bit] = zero;
    sum = zero;
    for (size_t eight = 0; eight < (size_t)1 << (row_bits - 3); eight++, column += 8 * row_bytes) {
        VECTOR r1 = CONST_AT(column + row_bytes), r3 = CONST_AT(column + 3 * row_bytes);
        VECTOR r5 = CONST_AT(column + 5 * row_bytes), r7 = CONST_AT(column + 7 * row_bytes);
        VECTOR s01 = CONST_AT(column) ^ r1, s23 = CONST_AT(column + 2 * row_bytes) ^ r3;
        VECTOR s45 = CONST_AT(column + 4 * row_bytes) ^ r5, s67 = CONST_AT(column + 6 * row_bytes) ^ r7;
        VECTOR s4567 = s45 ^ s67;
        chosen0 ^= r1 ^ r3 ^ r5 ^ r7;
        chosen1 ^= s23 ^ s67;
        chosen2 ^= s4567;
        sum = s01 ^ s23 ^ s4567;
        unsigned bit = 3;
        for (size_t left = eight; left & 1; left >>= 1, bit++) {
            chosen[bit] ^= sum;
            sum ^= waiting[bit];
        }
        if (bit < row_bits) waiting[bit] = sum;
    }
    AT(sums) = sum;
    AT(subsets) = chosen0;
    AT(subsets + row_bytes) = chosen1;
    AT(subsets + 2 * row_bytes) = chosen2;
    for (unsigned bit = 3; bit < row_bits; bit++) AT(subsets + bit * row_bytes) = chosen[bit];
}

/* Parity of a full cell of records of 1, 2, 4 or 8 bytes. They are taken as rows of 64: the rows' own index bits by a tree of vectors,
 * the six bits within a row from what is left of it. */
INLINE void NAME(full_cell_parity)(const uint8_t *cell, size_t record_bytes, unsigned cell_log2, uint8_t *parity) {
    uint8_t sums[RECORDS_PER_ROW * 8], subsets[(ROW_BITS_LIMIT - 1) * RECORDS_PER_ROW * 8];
    size_t row_bytes = RECORDS_PER_ROW * record_bytes;
    unsigned row_bits = cell_log2 - 6;
    for (size_t column = 0; column < row_bytes; column += VECTOR_BYTES) {
        if (row_bits >= 3)
            NAME(row_tree_by_eight)(cell + column, row_bits, row_bytes, sums + column, subsets + column);
        else
            NAME(row_tree)(cell + column, row_bits, row_bytes, sums + column, subsets + column);
    }
    for (unsigned bit = 0; bit < row_bits; bit++)
        NAME(fold_row)(subsets + bit * row_bytes, record_bytes, parity + (7 + bit) * record_bytes);
    NAME(word_row_subsets)(sums, record_bytes, parity);
}

/* Parity of any cell of `records` <= 2^cell_log2 records: wide records and short cells, row by row. */
INLINE void NAME(any_cell_parity)(const uint8_t *cell, size_t records, size_t record_bytes, unsigned cell_log2, uint8_t *parity) {
    uint8_t sums[RECORDS_PER_ROW * RECORD_LIMIT_BYTES], chosen[RECORDS_PER_ROW * RECORD_LIMIT_BYTES];
    size_t row_bytes = RECORDS_PER_ROW * record_bytes, rows = records / RECORDS_PER_ROW, rest = records % RECORDS_PER_ROW;
    memset(parity, 0, (cell_log2 + 1) * record_bytes);
    for (unsigned bit = 0; bit < cell_log2 - 6 && (size_t)1 << bit <= rows; bit++) {
        memset(chosen, 0, row_bytes);
        for (size_t row = (size_t)1 << bit; row < rows; row = (row + 1) | (size_t)1 << bit)
            NAME(xor_bytes)(chosen, cell + row * row_bytes, row_bytes);
        if (rows >> bit & 1) NAME(xor_bytes)(chosen, cell + rows * row_bytes, rest * record_bytes);
        NAME(fold_all)(chosen, 6, record_bytes);
        memcpy(parity + (7 + bit) * record_bytes, chosen, record_bytes);
    }
    memset(sums, 0, row_bytes);
    for (size_t row = 0; row < rows; row++) NAME(xor_bytes)(sums, cell + row * row_bytes, row_bytes);
    NAME(xor_bytes)(sums, cell + rows * row_bytes, rest * record_bytes);
    NAME(any_row_subsets)(sums, record_bytes, parity);
}

INLINE void NAME(blocks_parity)(const uint8_t *blocks, size_t block_count, size_t records, size_t record_bytes, unsigned cell_log2,
                                int trimmed, uint8_t *parity) {
    size_t full = (size_t)1 << cell_log2;
    int words = record_bytes == 1 || record_bytes == 2 || record_bytes == 4 || record_bytes == 8;
    for (size_t block = 0; block < block_count; block++)
        for (size_t first = 0; first < records; first += full) {
            const uint8_t *cell = blocks + (block * records + first) * record_bytes;
            size_t count = records - first < full ? records - first : full, kept = (cell_log2 + 1) * record_bytes;
            if (words && count == full)
                NAME(full_cell_parity)(cell, record_bytes, cell_log2, parity);
            else if (!trimmed || count == full)
                NAME(any_cell_parity)(cell, count, record_bytes, cell_log2, parity);
            else { /* a short cell keeps 1 + bitlen(count - 1) parity records (SPEC, section 5) */
                uint8_t all[(CELL_LOG2_LIMIT + 1) * RECORD_LIMIT_BYTES];
                NAME(any_cell_parity)(cell, count, record_bytes, cell_log2, all);
                kept = (count > 1 ? 65 - __builtin_clzll(count - 1) : 1) * record_bytes;
                memcpy(parity, all, kept);
            }
            parity += kept;
        }
}

TARGET static void NAME(inner_parity)(const uint8_t *blocks, size_t block_count, size_t records, size_t record_bytes, unsigned cell_log2,
                                      int trimmed, uint8_t *parity) {
    switch (record_bytes) { /* the plain element types, with their sizes known to the compiler */
    case 1: NAME(blocks_parity)(blocks, block_count, records, 1, cell_log2, trimmed, parity); break;
    case 2: NAME(blocks_parity)(blocks, block_count, records, 2, cell_log2, trimmed, parity); break;
    case 4: NAME(blocks_parity)(blocks, block_count, records, 4, cell_log2, trimmed, parity); break;
    case 8: NAME(blocks_parity)(blocks, block_count, records, 8, cell_log2, trimmed, parity); break;
    default: NAME(blocks_parity)(blocks, block_count, records, record_bytes, cell_log2, trimmed, parity);
    }
}

/* ---------------------------------------------------------------------------------------------------------------- XXH3 */

/* Products of the low and the high 32 bits of each 64-bit lane. */
INLINE VECTOR NAME(multiply_halves)(VECTOR a) {
#if defined(__x86_64__) && VECTOR_BYTES == 64
    return (VECTOR)_mm512_mul_epu32((__m512i)a, _mm512_srli_epi64((__m512i)a, 32));
#elif defined(__x86_64__) && VECTOR_BYTES == 32
    return (VECTOR)_mm256_mul_epu32((__m256i)a, _mm256_srli_epi64((__m256i)a, 32));
#elif defined(__x86_64__)
    return (VECTOR)_mm_mul_epu32((__m128i)a, _mm_srli_epi64((__m128i)a, 32));
#elif defined(__aarch64__)
    uint64x2_t wide = (uint64x2_t)a;
    return (VECTOR)vmull_u32(vmovn_u64(wide), vshrn_n_u64(wide, 32));
#else
    return (a & 0xFFFFFFFFu) * (a >> 32);
#endif
}

/* Neighbouring 64-bit lanes change places. */
INLINE VECTOR NAME(swap_lanes)(VECTOR a) {
#if defined(__x86_64__) && VECTOR_BYTES == 64
    return (VECTOR)_mm512_shuffle_epi32((__m512i)a, _MM_PERM_BADC);
#elif defined(__x86_64__) && VECTOR_BYTES == 32
    return (VECTOR)_mm256_shuffle_epi32((__m256i)a, 0x4E);
#else
    return (VECTOR){a[1], a[0]};
#endif
}

#define VECTORS (XXH_STRIPE_BYTES / VECTOR_BYTES)

INLINE void NAME(accumulate)(VECTOR *accumulators, const uint8_t *stripe, const uint8_t *secret) {
    for (int i = 0; i < VECTORS; i++) {
        VECTOR data = CONST_AT(stripe + i * VECTOR_BYTES), keyed = data ^ CONST_AT(secret + i * VECTOR_BYTES);
        accumulators[i] += NAME(swap_lanes)(data) + NAME(multiply_halves)(keyed);
    }
}

/* Accumulators of an input of more than 240 bytes. */
INLINE void NAME(digest_long)(const uint8_t *data, size_t size, const uint8_t *secret, uint64_t *result) {
    static const uint64_t start[8] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
    VECTOR accumulators[VECTORS];
    memcpy(accumulators, start, sizeof accumulators);
    size_t stripes = (size - 1) / XXH_STRIPE_BYTES; /* the last stripe, whole or not, comes at the end */
    const uint8_t *at = data;
    while (stripes) {
        size_t count = stripes < XXH_STRIPES_PER_BLOCK ? stripes : XXH_STRIPES_PER_BLOCK;
        for (size_t i = 0; i < count; i++, at += XXH_STRIPE_BYTES) NAME(accumulate)(accumulators, at, secret + i * XXH_SECRET_STEP);
        stripes -= count;
        if (count == XXH_STRIPES_PER_BLOCK)
            for (int i = 0; i < VECTORS; i++) {
                VECTOR a = accumulators[i];
                a ^= a >> 47;
                a ^= CONST_AT(secret + XXH_SECRET_BYTES - XXH_STRIPE_BYTES + i * VECTOR_BYTES);
                accumulators[i] = a * PRIME32_1;
            }
    }
    NAME(accumulate)(accumulators, data + size - XXH_STRIPE_BYTES, secret + XXH_SECRET_BYTES - XXH_STRIPE_BYTES - 7);
    memcpy(result, accumulators, sizeof accumulators);
}
#undef VECTORS

/* --------------------------------------------------------------------------------------------------------------- pages */

TARGET static void NAME(pages)(const uint8_t *stream, size_t size, unsigned section, uint32_t first_page, uint64_t salt, uint8_t *pages) {
    uint8_t secret[XXH_SECRET_BYTES];
    uint64_t accumulators[8];
    derive_secret(secret, salt);
    for (size_t at = 0; at < size; at += PAYLOAD_BYTES, pages += PAGE_BYTES, first_page++) {
        size_t count = size - at < PAYLOAD_BYTES ? size - at : PAYLOAD_BYTES;
        memcpy(pages, stream + at, count);
        memset(pages + count, 0, PAYLOAD_BYTES - count);
        store64(pages + PAYLOAD_BYTES, section | (uint64_t)first_page << 32);
        NAME(digest_long)(pages, CHECKED_BYTES, secret, accumulators);
        store64(pages + CHECKED_BYTES, merge_accumulators(accumulators, secret + 11, CHECKED_BYTES * PRIME64_1));
    }
}

/* -------------------------------------------------------------------------------------------------------------- census */

/* The largest magnitude among the items of a cell: floats without their sign order as unsigned integers. */
INLINE uint64_t NAME(largest_magnitude)(const uint8_t *cell, size_t size, unsigned item_bytes, int swapped, uint64_t magnitude) {
    uint64_t largest = 0;
    for (size_t at = 0; at < size; at += item_bytes) {
        uint64_t item = 0;
        memcpy(&item, cell + at, item_bytes);
        if (swapped) item = __builtin_bswap64(item) >> (64 - 8 * item_bytes);
        item &= magnitude;
        if (item > largest) largest = item;
    }
    return largest;
}

/* The OR of the items of a cell. */
INLINE uint64_t NAME(gathered)(const uint8_t *cell, size_t size, unsigned item_bytes) {
    VECTOR some = {0}, others = {0};
    uint64_t words[VECTOR_BYTES / 8], all = 0;
    size_t at = 0;
    for (; at + 2 * VECTOR_BYTES <= size; at += 2 * VECTOR_BYTES) {
        some |= CONST_AT(cell + at);
        others |= CONST_AT(cell + at + VECTOR_BYTES);
    }
    some |= others;
    memcpy(words, &some, sizeof words);
    for (int word = 0; word < VECTOR_BYTES / 8; word++) all |= words[word];
    for (; at + 8 <= size; at += 8) all |= load64(cell + at);
    for (unsigned width = 32; width >= 8 * item_bytes; width /= 2) all |= all >> width;
    for (; at < size; at += item_bytes) {
        uint64_t item = 0;
        memcpy(&item, cell + at, item_bytes);
        all |= item;
    }
    return item_bytes < 8 ? all & (((uint64_t)1 << 8 * item_bytes) - 1) : all;
}

TARGET static void NAME(census)(const uint8_t *data, size_t size, size_t cell_bytes, unsigned item_bytes, unsigned mantissa_bits,
                                    int swapped, uint16_t *tops, uint64_t *counts) {
    uint64_t magnitude = ((uint64_t)1 << (8 * item_bytes - 1)) - 1, zeros = 0, peak = 0;
    for (size_t at = 0; at < size; at += cell_bytes) {
        size_t length = size - at < cell_bytes ? size - at : cell_bytes;
        uint64_t all = NAME(gathered)(data + at, length, item_bytes);
        if (swapped) all = __builtin_bswap64(all) >> (64 - 8 * item_bytes);
        if (all >> (8 * item_bytes - 2) & 1) all = NAME(largest_magnitude)(data + at, length, item_bytes, swapped, magnitude);
        all &= magnitude;
        uint64_t top = all ? 1 + (all >> mantissa_bits) : 0;
        *tops++ = (uint16_t)top;
        zeros += !top;
        if (top > peak) peak = top;
    }
    *counts = zeros << 16 | peak;
}

#undef VECTOR
#undef AT
#undef CONST_AT
#undef INLINE
#undef VARIANT
#undef VECTOR_BYTES
#undef TARGET
