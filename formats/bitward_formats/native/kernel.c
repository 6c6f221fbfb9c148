/* The codec's inner loops in C: outer parity, inner parity and sidecar pages (SPEC, sections 5, 6 and 7),
 * and the census of a file that is seen for the first time.
 *
 * It computes what the NumPy code beside it computes, byte for byte; nothing needs it. It never allocates, keeps no state, opens nothing
 * and touches no byte outside the ranges that it is given; the Python side checks every size before it calls.
 * kernel_body.h is compiled once for each vector width that the processor may have; the widest that is there is used.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernel is for little-endian machines; others use NumPy"
#endif

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define EXPORT __attribute__((visibility("default")))

enum {
    ROWS_PER_SYMBOL = 8,
    RECORDS_PER_ROW = 64,
    ROW_BITS_LIMIT = 11,        /* a cell has at most 2^16 records: 2^10 rows of 64 */
    CELL_LOG2_LIMIT = 16,
    RECORD_LIMIT_BYTES = 512,
    PAGE_BYTES = 4096,
    PAYLOAD_BYTES = 4080,
    CHECKED_BYTES = 4088,
};

/* XXH3 for inputs of more than 240 bytes: constants of the xxHash specification, "XXH3 Algorithm Overview". */
enum {
    XXH_STRIPE_BYTES = 64,
    XXH_SECRET_BYTES = 192,
    XXH_SECRET_STEP = 8,
    XXH_STRIPES_PER_BLOCK = (XXH_SECRET_BYTES - XXH_STRIPE_BYTES) / XXH_SECRET_STEP,
};
#define PRIME32_1 UINT64_C(0x9E3779B1)
#define PRIME32_2 UINT64_C(0x85EBCA77)
#define PRIME32_3 UINT64_C(0xC2B2AE3D)
#define PRIME64_1 UINT64_C(0x9E3779B185EBCA87)
#define PRIME64_2 UINT64_C(0xC2B2AE3D27D4EB4F)
#define PRIME64_3 UINT64_C(0x165667B19E3779F9)
#define PRIME64_4 UINT64_C(0x85EBCA77C2B2AE63)
#define PRIME64_5 UINT64_C(0x27D4EB2F165667C5)
#define PRIME_MX1 UINT64_C(0x165667919E3779F9)
static const uint8_t DEFAULT_SECRET[XXH_SECRET_BYTES] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c, 0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb,
    0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb,
    0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3, 0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d, 0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31,
    0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e, 0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc,
    0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static inline uint64_t load64(const uint8_t *at) {
    uint64_t word;
    memcpy(&word, at, 8);
    return word;
}

static inline void store64(uint8_t *at, uint64_t word) { memcpy(at, &word, 8); }

static inline uint64_t multiply_fold(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t merge_accumulators(const uint64_t *accumulators, const uint8_t *secret, uint64_t start) {
    uint64_t sum = start;
    for (int i = 0; i < 4; i++)
        sum += multiply_fold(accumulators[2 * i] ^ load64(secret + 16 * i), accumulators[2 * i + 1] ^ load64(secret + 16 * i + 8));
    sum ^= sum >> 37;
    sum *= PRIME_MX1;
    return sum ^ sum >> 32;
}

static inline void derive_secret(uint8_t *secret, uint64_t seed) {
    for (int i = 0; i < XXH_SECRET_BYTES; i += 16) {
        store64(secret + i, load64(DEFAULT_SECRET + i) + seed);
        store64(secret + i + 8, load64(DEFAULT_SECRET + i + 8) - seed);
    }
}

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define NAME(function) PASTE(function, VARIANT)

#define VARIANT plain
#define VECTOR_BYTES 16
#define TARGET
#include "kernel_body.h"

#if defined(__x86_64__)
#define VARIANT avx2
#define VECTOR_BYTES 32
#define TARGET __attribute__((target("avx2")))
#include "kernel_body.h"

#define VARIANT avx512
#define VECTOR_BYTES 64
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#include "kernel_body.h"

/* Asked of the processor itself, as not every compiler's library answers __builtin_cpu_supports (Intel SDM, CPUID leaves 1 and 7, and
 * XCR0: the operating system must save the wide registers too). */
static int widest(unsigned limit) {
    enum { OSXSAVE = 1 << 27, AVX2 = 1 << 5, AVX512F = 1 << 16, AVX512DQ = 1 << 17, AVX512BW = 1 << 30 };
    const unsigned AVX512VL = 1u << 31, AVX512 = AVX512F | AVX512DQ | AVX512BW | AVX512VL, AVX_STATE = 0x06, AVX512_STATE = 0xE6;
    unsigned eax, ebx, ecx, edx, saved, unused;
    if (limit < 32 || !__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & OSXSAVE)) return 16;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(unused) : "c"(0));
    if ((saved & AVX_STATE) != AVX_STATE || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return 16;
    if (limit >= 64 && (saved & AVX512_STATE) == AVX512_STATE && (ebx & AVX512) == AVX512) return 64;
    return ebx & AVX2 ? 32 : 16;
}

#define CALL(function, limit, ...)                                      \
    switch (widest(limit)) {                                            \
    case 64: PASTE(function, avx512)(__VA_ARGS__); break;               \
    case 32: PASTE(function, avx2)(__VA_ARGS__); break;                 \
    default: PASTE(function, plain)(__VA_ARGS__);                       \
    }
#else
static int widest(unsigned limit) {
    (void)limit;
    return 16;
}

#define CALL(function, limit, ...) (void)limit, PASTE(function, plain)(__VA_ARGS__)
#endif

/* What the Python side expects: raised with every change of a signature or a meaning below. */
EXPORT int bitward_kernel_version(void) { return 1; }

/* The widest vectors in bytes that this processor has and `limit` allows. All functions below take such a limit: tests lower it. */
EXPORT int bitward_vector_bytes(unsigned limit) { return widest(limit); }

/* Horner's step of the outer code for `symbol_rows` groups of eight rows: P ^= slot, Q = alpha * Q ^ slot. */
EXPORT void bitward_add_slots(unsigned limit, uint8_t *p, uint8_t *q, const uint8_t *slots, size_t symbol_rows, size_t row_bytes) {
    CALL(add_slots, limit, p, q, slots, symbol_rows, row_bytes);
}

/* Inner parity of equally long blocks of `records` records; cell_log2 is 6 to 16. Padded: (blocks, cells, cell_log2 + 1, record_bytes); or
 * `trimmed`, as it is stored: a short last cell has fewer parity records. */
EXPORT void bitward_inner_parity(unsigned limit, const uint8_t *blocks, size_t block_count, size_t records, size_t record_bytes,
                                 unsigned cell_log2, int trimmed, uint8_t *parity) {
    CALL(inner_parity, limit, blocks, block_count, records, record_bytes, cell_log2, trimmed, parity);
}

/* A stream as sidecar pages of copy 0. `pages` has room for whole pages; nothing of it is read. */
EXPORT void bitward_pages(unsigned limit, const uint8_t *stream, size_t size, unsigned section, uint32_t first_page, uint64_t salt,
                          uint8_t *pages) {
    CALL(pages, limit, stream, size, section, first_page, salt, pages);
}

/* The census of floating-point items of `item_bytes` (2, 4 or 8) and `mantissa_bits`, big-endian if `swapped`: for each cell of
 * `cell_bytes` (the last may be shorter) 0 if it is zero, else 1 and its largest exponent field; where the OR of a cell's magnitudes is
 * below 2, that of the OR. Returns the number of zero cells, shifted by 16, and the largest number of all. */
EXPORT uint64_t bitward_census(unsigned limit, const uint8_t *data, size_t size, size_t cell_bytes, unsigned item_bytes,
                               unsigned mantissa_bits, int swapped, uint16_t *tops) {
    uint64_t counts;
    CALL(census, limit, data, size, cell_bytes, item_bytes, mantissa_bits, swapped, tops, &counts);
    return counts;
}
