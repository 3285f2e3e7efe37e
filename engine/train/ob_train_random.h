/* kronecker16 of onebit.quant.philox in blocks of eight columns: the same numbers for every instruction set.
 *
 * Philox4x32-10 gives an element's start; counter: block, row, low and high half of step / 2^16; key: seed, tensor. Lanes of 64 bits hold a word each; a product reads
 * the low half of a lane alone, so what is left in the high halves does no harm until the end. */
#include <string.h>

enum { ROUNDS = 10 };
#define MULTIPLIER_0 0xD2511F53u
#define MULTIPLIER_1 0xCD9E8D57u
#define WEYL_0 0x9E3779B9u
#define WEYL_1 0xBB67AE85u
#define STRIDE 46073u

STATIC void random_block(const ob_train_rule *rule, uint32_t row, uint32_t block, int16_t random[8]) {
    uint32_t a = block, b = row, c = (uint32_t)(rule->step >> 16), d = (uint32_t)(rule->step >> 48);
    uint32_t key0 = rule->seed, key1 = rule->tensor;
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t product0 = (uint64_t)a * MULTIPLIER_0, product1 = (uint64_t)c * MULTIPLIER_1;
        a = (uint32_t)(product1 >> 32) ^ b ^ key0, b = (uint32_t)product1;
        c = (uint32_t)(product0 >> 32) ^ d ^ key1, d = (uint32_t)product0;
        key0 += WEYL_0, key1 += WEYL_1;
    }
    uint32_t words[4] = {a, b, c, d};
    memcpy(random, words, sizeof words);
}

#ifdef VECTOR_BLOCKS /* blocks that a pair of vectors holds */
#include <immintrin.h>

#if VECTOR_BLOCKS == 16
typedef __m512i lanes;
#define L(op) _mm512_##op
#define BITS(op) _mm512_##op##_si512
#define HALVES(a, b) _mm512_mask_blend_epi32(0xaaaa, a, b)
#define ALL(word) _mm512_set1_epi64(word)
#define ORDER _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0)
#else
typedef __m256i lanes;
#define L(op) _mm256_##op
#define BITS(op) _mm256_##op##_si256
#define HALVES(a, b) _mm256_blend_epi32(a, b, 0xaa)
#define ALL(word) _mm256_set1_epi64x(word)
#define ORDER _mm256_set_epi64x(3, 2, 1, 0)
#endif
enum { HALF = VECTOR_BLOCKS / 2 };

INLINE lanes all(uint32_t word) { return ALL((int64_t)word); }

/* Stores the words of HALF blocks, in whose lanes the low halves count. */
INLINE void store_blocks(lanes a, lanes b, lanes c, lanes d, int16_t *random) {
    lanes ab = HALVES(a, L(slli_epi64)(b, 32)), cd = HALVES(c, L(slli_epi64)(d, 32));
    lanes even = L(unpacklo_epi64)(ab, cd), odd = L(unpackhi_epi64)(ab, cd);
    int16_t blocks[2][HALF * 8];
    BITS(storeu)((lanes *)(void *)blocks[0], even);
    BITS(storeu)((lanes *)(void *)blocks[1], odd);
    for (int i = 0; i < HALF; i++) memcpy(random + 8 * i, blocks[i % 2] + 8 * (i / 2), 16);
}

STATIC void random_blocks(const ob_train_rule *rule, uint32_t row, uint32_t block, int16_t *random) {
    lanes a[2], b[2], c[2], d[2];
    for (int v = 0; v < 2; v++) {
        a[v] = L(add_epi64)(all(block + (uint32_t)(v * HALF)), ORDER);
        b[v] = all(row), c[v] = all((uint32_t)(rule->step >> 16)), d[v] = all((uint32_t)(rule->step >> 48));
    }
    uint32_t key0 = rule->seed, key1 = rule->tensor;
    const lanes multiplier0 = all(MULTIPLIER_0), multiplier1 = all(MULTIPLIER_1);
    OB_UNROLL for (int round = 0; round < ROUNDS; round++) {
        lanes k0 = all(key0), k1 = all(key1);
        OB_UNROLL for (int v = 0; v < 2; v++) {
            lanes product0 = L(mul_epu32)(a[v], multiplier0), product1 = L(mul_epu32)(c[v], multiplier1);
            a[v] = BITS(xor)(L(srli_epi64)(product1, 32), BITS(xor)(b[v], k0)), b[v] = product1;
            c[v] = BITS(xor)(L(srli_epi64)(product0, 32), BITS(xor)(d[v], k1)), d[v] = product0;
        }
        key0 += WEYL_0, key1 += WEYL_1;
    }
    OB_UNROLL for (int v = 0; v < 2; v++) store_blocks(a[v], b[v], c[v], d[v], random + 8 * HALF * v);
}
#endif

/* int16 for `blocks` blocks, from number `block` on. */
STATIC void kronecker16(const ob_train_rule *rule, uint32_t row, uint32_t block, uint32_t blocks, int16_t *random) {
    uint32_t n = 0;
#ifdef VECTOR_BLOCKS
    for (; n + VECTOR_BLOCKS <= blocks; n += VECTOR_BLOCKS) random_blocks(rule, row, block + n, random + 8 * n);
#endif
    for (; n < blocks; n++) random_block(rule, row, block + n, random + 8 * n);
    const uint16_t on = (uint16_t)(rule->step * STRIDE);
    for (size_t i = 0; i < 8 * (size_t)blocks; i++) random[i] = (int16_t)(uint16_t)((uint16_t)random[i] + on);
}
