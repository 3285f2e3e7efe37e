/* Linear layers in the tiled layouts, int8 inputs: the body that every x86 instruction set compiles for itself.
 *
 * A tile is 64 bytes: 32-bit lane r is row r of the block, and plane j of its four bytes meets the four input codes
 * 4j..4j+3, broadcast to all lanes. Weights are stored as unsigned digits (ternary: code + 1, binary: bit), so a dot
 * product of digits is corrected by the sum of the input codes (ternary: dot - sum, binary: 2 dot - sum).
 *
 * Few tokens: bound by the bytes of the weights. Planes are masked where they lie in the byte and have accumulators of
 * their own, which are shifted down once at the end (exact: all terms of an accumulator are multiples of its weight). One
 * and two tokens take several blocks of rows in turn, a stream of weights each; some more tokens meet a block in parts.
 * Many tokens: bound by the dot products. Two vectors of rows are unpacked to a panel [steps, 2, LANES, 4] of digits in
 * the work memory, and meet a tile of tokens at a time with all accumulators in registers: a step loads two vectors
 * and broadcasts four codes of each token. The panel is a chunk of K that stays in the first cache.
 *
 * The including file defines TARGET and LANES: 16, or 8 with or without DOT_IS_SHORT. Dot products of VNNI are written as
 * assembly: around the intrinsic GCC 12 copies every accumulator to another register and back. */
#include "ob_kernels.h"

#include <immintrin.h>

#define INLINE TARGET OB_INLINE
#define UNROLL OB_UNROLL

/* ---- one vector: LANES rows ---- */

#if LANES == 16
typedef __m512i vec;
typedef __m512 vecf;
#define V(op) _mm512_##op
INLINE vec v_load(const void *p) { return _mm512_loadu_si512(p); }
INLINE void v_store(void *p, vec a) { _mm512_storeu_si512(p, a); }
INLINE vec v_zero(void) { return _mm512_setzero_si512(); }
INLINE vec v_and(vec a, vec b) { return _mm512_and_si512(a, b); }
INLINE vec v_dot(vec acc, vec digits, vec codes) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(digits), "v"(codes));
    return acc;
}
INLINE vecf v_halves(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE void v_store_rows(float *y, uint32_t left, vecf a) {
    _mm512_mask_storeu_ps(y, left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1), a);
}
INLINE vecf v_load_rows(const float *x, uint32_t left) {
    return _mm512_maskz_loadu_ps(left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1), x);
}
/* Tokens of a register tile, accumulators of a decode step, steps of a panel (128 bytes each) */
enum { TILE_TOKENS = 12, DECODE_TOKENS = 8, DECODE_ACCS = 24, DECODE_VECTORS = 8 };
#else
typedef __m256i vec;
typedef __m256 vecf;
#define V(op) _mm256_##op
INLINE vec v_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE void v_store(void *p, vec a) { _mm256_storeu_si256((__m256i *)p, a); }
INLINE vec v_zero(void) { return _mm256_setzero_si256(); }
INLINE vec v_and(vec a, vec b) { return _mm256_and_si256(a, b); }
INLINE vec v_dot(vec acc, vec digits, vec codes) {
#ifdef DOT_IS_SHORT
    return _mm256_add_epi16(acc, _mm256_maddubs_epi16(digits, codes));
#else
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(digits), "x"(codes));
    return acc;
#endif
}
INLINE vecf v_halves(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE void v_store_rows(float *y, uint32_t left, vecf a) {
    float out[8];
    if (left >= 8) {
        _mm256_storeu_ps(y, a);
        return;
    }
    _mm256_storeu_ps(out, a);
    for (uint32_t r = 0; r < left; r++) y[r] = out[r];
}
INLINE vecf v_load_rows(const float *x, uint32_t left) {
    float in[8] = {0};
    if (left >= 8) return _mm256_loadu_ps(x);
    for (uint32_t r = 0; r < left; r++) in[r] = x[r];
    return _mm256_loadu_ps(in);
}
enum { TILE_TOKENS = 6, DECODE_TOKENS = 4, DECODE_ACCS = 8, DECODE_VECTORS = 8 };
#endif
/* Steps of a panel. 256 to 640 made no difference without AMX; with it, sums wait in memory between chunks, and 1024 is
 * best. */
#ifdef WITH_AMX
enum { CHUNK_STEPS = 1024 };
#else
enum { CHUNK_STEPS = 256 };
#endif

/* DOT_IS_SHORT: v_dot sums int16 pairs. A digit is at most 3 (an invalid code, but a file may hold it), so a step adds
 * at most 3 * 2 * 127 = 762, and after 40 steps (30480) the sums must be widened. Else they are int32 at once. */
#ifdef DOT_IS_SHORT
enum { IS_SHORT = 1, RUN_STEPS = 40 };
#else
enum { IS_SHORT = 0, RUN_STEPS = 1 << 30 };
#endif
enum { VECTORS = OB_BLOCK_ROWS / LANES, WIDE = 2 * LANES, VEC_BYTES = 4 * LANES };

INLINE vec v_codes(const int8_t *x) {
    int32_t word;
    memcpy(&word, x, 4);
    return V(set1_epi32)(word);
}
/* The accumulator that a run of steps starts with, and what remains of it. */
INLINE vec v_open(vec acc) { return IS_SHORT ? v_zero() : acc; }
INLINE vec v_close(vec acc, vec part) {
    return IS_SHORT ? V(add_epi32)(acc, V(madd_epi16)(part, V(set1_epi16)(1))) : part;
}

INLINE int num_planes(uint32_t layout) {
    return layout == OB_LAYOUT_TERNARY_T16 ? 4 : layout == OB_LAYOUT_BINARY_T16 ? 8 : 5;
}

/* floor(byte * 3 / 256), the leading base-3 digit: 0, 1 or 2 (256 / 3 and 512 / 3 lie above 85 and 170). */
INLINE vec leading_digit(vec bytes) {
    const vec one = V(set1_epi8)(1);
    vec above_85 = V(min_epu8)(V(subs_epu8)(bytes, V(set1_epi8)(85)), one);
    vec above_170 = V(min_epu8)(V(subs_epu8)(bytes, V(set1_epi8)((char)170)), one);
    return V(add_epi8)(above_85, above_170);
}

INLINE vec times3(vec bytes) { return V(add_epi8)(V(add_epi8)(bytes, bytes), bytes); }

/* ---- few tokens ---- */

/* A stream of weights alone does not keep enough lines on their way where the processor's own prefetching is weak (as in
 * some virtual machines): the second cache is asked for what lies `far` ahead, the first for what comes next. Beyond the
 * end that fetches what is never used. benchmarks/LOG.md has the ladder. */
enum { NEAR_BYTES = 1024, FAR_BYTES = 8192 };
INLINE void prefetch_ahead(const uint8_t *data, size_t far) {
    _mm_prefetch((const char *)data + far, _MM_HINT_T1);
    _mm_prefetch((const char *)data + NEAR_BYTES, _MM_HINT_T0);
}

/* Accumulators of a token and vector: a plane each where registers allow, else planes share one and are shifted to it. */
INLINE int accs_of(uint32_t layout, int vectors) {
    int accs = IS_SHORT ? 1 : num_planes(layout);
    while (accs * vectors > DECODE_ACCS) accs /= 2;
    return accs;
}

/* What a decode step works on: `blocks` (a constant) blocks of rows in turn, which share the inputs and whose streams of
 * weights the processor fetches side by side, for `tokens` (a constant) tokens. Vector (t, b, v) has index
 * (t * blocks + b) * VECTORS + v. */
typedef struct step {
    const uint8_t *data;
    size_t block_bytes;
    size_t far; /* bytes ahead: several blocks ask for the next ones, whose turn it is when they end */
    const int8_t *x;
    size_t x_stride;
    uint32_t tiles;
} step;

/* dots[t, b, v] = sum over the tiles of digit * code; layouts whose digits are whole bits. */
INLINE void dot_planes(uint32_t layout, const step *s, int blocks, int tokens, vec *dots) {
    const int planes = num_planes(layout), bits = 8 / planes, per_token = blocks * VECTORS, vectors = tokens * per_token;
    const int accs = accs_of(layout, vectors);
    const uint8_t *data = s->data;
    const int8_t *x = s->x;
    uint32_t tiles = s->tiles;
    const uint32_t run_tiles = IS_SHORT ? RUN_STEPS / (uint32_t)planes : tiles;
    vec sums[DECODE_ACCS];
    UNROLL for (int i = 0; i < vectors; i++) dots[i] = v_zero();
    while (tiles) {
        uint32_t run = tiles < run_tiles ? tiles : run_tiles;
        UNROLL for (int i = 0; i < vectors * accs; i++) sums[i] = v_zero();
        for (uint32_t i = 0; i < run; i++, data += OB_TILE_BYTES, x += 4 * planes)
            UNROLL for (int b = 0; b < blocks; b++) {
                const uint8_t *from = data + (size_t)b * s->block_bytes;
                prefetch_ahead(from, s->far);
                UNROLL for (int v = 0; v < VECTORS; v++) {
                    vec bytes = v_load(from + v * VEC_BYTES);
                    UNROLL for (int j = 0; j < planes; j++) {
                        int a = j % accs, shift = (j - a) * bits;
                        vec mask = V(set1_epi8)((char)(((1 << bits) - 1) << a * bits));
                        vec digits = v_and(shift ? V(srli_epi16)(bytes, shift) : bytes, mask);
                        UNROLL for (int t = 0; t < tokens; t++) {
                            vec *sum = &sums[(t * per_token + b * VECTORS + v) * accs + a];
                            *sum = v_dot(*sum, digits, v_codes(x + (size_t)t * s->x_stride + 4 * j));
                        }
                    }
                }
            }
        UNROLL for (int i = 0; i < vectors; i++)
            UNROLL for (int a = 0; a < accs; a++)
                dots[i] = IS_SHORT ? v_close(dots[i], sums[i])
                                   : V(add_epi32)(dots[i], V(srai_epi32)(sums[i * accs + a], a * bits));
        tiles -= run;
    }
}

/* The same in base 3, digits taken out one after the other. */
INLINE void dot_digits(const step *s, int blocks, int tokens, vec *dots) {
    const int per_token = blocks * VECTORS, vectors = tokens * per_token;
    const uint8_t *data = s->data;
    const int8_t *x = s->x;
    uint32_t tiles = s->tiles;
    const uint32_t run_tiles = IS_SHORT ? RUN_STEPS / 5 : tiles;
    vec sums[DECODE_VECTORS];
    UNROLL for (int i = 0; i < vectors; i++) dots[i] = v_zero();
    while (tiles) {
        uint32_t run = tiles < run_tiles ? tiles : run_tiles;
        UNROLL for (int i = 0; i < vectors; i++) sums[i] = v_zero();
        for (uint32_t i = 0; i < run; i++, data += OB_TILE_BYTES, x += 20)
            UNROLL for (int b = 0; b < blocks; b++) {
                const uint8_t *from = data + (size_t)b * s->block_bytes;
                prefetch_ahead(from, s->far);
                UNROLL for (int v = 0; v < VECTORS; v++) {
                    vec rest = v_load(from + v * VEC_BYTES);
                    UNROLL for (int j = 0; j < 5; j++) {
                        vec digits = leading_digit(rest);
                        rest = times3(rest);
                        UNROLL for (int t = 0; t < tokens; t++) {
                            vec *sum = &sums[t * per_token + b * VECTORS + v];
                            *sum = v_dot(*sum, digits, v_codes(x + (size_t)t * s->x_stride + 4 * j));
                        }
                    }
                }
            }
        UNROLL for (int i = 0; i < vectors; i++)
            dots[i] = IS_SHORT ? v_close(dots[i], sums[i]) : V(add_epi32)(dots[i], sums[i]);
        tiles -= run;
    }
}

/* Base 3 without digits: with v0 the byte and v(i+1) = 3 v(i) mod 256, digit i is (3 v(i) - v(i+1)) / 256. So the dot
 * product is (3 A - B) / 256 with A = sum v(i) x, B = sum v(i+1) x. 3 A stays below 2^31 for 1024 tiles of one lane:
 * 3 * 255 * 128 * 20 * 1024 = 2.0e9. */
INLINE void dot_base3(const step *s, int blocks, int tokens, vec *dots) {
    const int per_token = blocks * VECTORS, vectors = tokens * per_token;
    const uint8_t *data = s->data;
    const int8_t *x = s->x;
    uint32_t tiles = s->tiles;
    vec a[DECODE_VECTORS][2], b[DECODE_VECTORS][2]; /* even and odd planes: longer chains would wait */
    UNROLL for (int i = 0; i < vectors; i++) dots[i] = v_zero();
    while (tiles) {
        uint32_t part = tiles < 1024 ? tiles : 1024;
        UNROLL for (int i = 0; i < vectors; i++) a[i][0] = a[i][1] = b[i][0] = b[i][1] = v_zero();
        for (uint32_t i = 0; i < part; i++, data += OB_TILE_BYTES, x += 20)
            UNROLL for (int block = 0; block < blocks; block++) {
                const uint8_t *from = data + (size_t)block * s->block_bytes;
                prefetch_ahead(from, s->far);
                UNROLL for (int v = 0; v < VECTORS; v++) {
                    vec now = v_load(from + v * VEC_BYTES);
                    UNROLL for (int j = 0; j < 5; j++) {
                        vec next = times3(now);
                        UNROLL for (int t = 0; t < tokens; t++) {
                            vec codes = v_codes(x + (size_t)t * s->x_stride + 4 * j);
                            const int at = t * per_token + block * VECTORS + v;
                            a[at][j & 1] = v_dot(a[at][j & 1], now, codes);
                            b[at][j & 1] = v_dot(b[at][j & 1], next, codes);
                        }
                        now = next;
                    }
                }
            }
        UNROLL for (int i = 0; i < vectors; i++) {
            vec once = V(add_epi32)(a[i][0], a[i][1]), less = V(add_epi32)(b[i][0], b[i][1]);
            vec exact = V(sub_epi32)(V(add_epi32)(V(add_epi32)(once, once), once), less);
            dots[i] = V(add_epi32)(dots[i], V(srai_epi32)(exact, 8));
        }
        tiles -= part;
    }
}

INLINE void dot_tiles(uint32_t layout, const step *s, int blocks, int tokens, vec *dots) {
    if (layout != OB_LAYOUT_TERNARY5_T16) dot_planes(layout, s, blocks, tokens, dots);
    else if (!IS_SHORT && tokens * VECTORS <= 3) dot_base3(s, blocks, tokens, dots); /* two dots cost less than a digit */
    else dot_digits(s, blocks, tokens, dots);
}

/* The codes' dot product from the digits' and the sum of the inputs, as floats. */
INLINE vecf corrected(vec dot, int32_t input_sum) {
    return V(cvtepi32_ps)(V(sub_epi32)(dot, V(set1_epi32)(input_sum)));
}

INLINE vecf row_scales(const ob_weights *w, uint32_t row) { /* float32 [1], or [O] padded to whole blocks */
    const float *scale = w->scale;
    return w->granularity == OB_GRANULARITY_ROW ? V(loadu_ps)(scale + row) : V(set1_ps)(*scale);
}

INLINE vecf group_scales(const ob_weights *w, uint32_t row, uint32_t group) { /* float16 [blocks, G, 16] */
    uint64_t line = (uint64_t)(row / OB_BLOCK_ROWS) * w->num_groups + group;
    return v_halves((const uint8_t *)w->scale + line * 32 + row % OB_BLOCK_ROWS * 2);
}

/* y[row .. row + LANES), bias added, nothing beyond the last row. */
INLINE void finish_rows(const ob_weights *w, uint32_t row, vecf value, float *y) {
    if (row >= w->rows) return;
    uint32_t left = w->rows - row;
    if (w->bias) value = V(add_ps)(value, v_load_rows(w->bias + row, left));
    v_store_rows(y + row, left, value);
}

INLINE uint32_t group_tiles(const ob_weights *w, uint32_t group) {
    uint32_t tiles = w->tiles_block - group * w->tiles_group;
    return tiles < w->tiles_group ? tiles : w->tiles_group;
}

/* `blocks` blocks of 16 rows for `tokens` tokens (both constants). */
INLINE void decode_blocks(uint32_t layout, const ob_weights *w, const ob_inputs *in, uint32_t row, int blocks, int tokens,
                          float *y, size_t y_stride) {
    step s = {.block_bytes = (size_t)w->tiles_block * OB_TILE_BYTES, .x = in->codes_TK, .x_stride = in->codes_stride};
    s.data = w->data + (uint64_t)(row / OB_BLOCK_ROWS) * s.block_bytes;
    s.far = blocks > 1 ? (size_t)blocks * s.block_bytes : FAR_BYTES;
    const int per_group = w->granularity == OB_GRANULARITY_GROUP, per_token = blocks * VECTORS;
    vec dots[DECODE_VECTORS];
    vecf totals[DECODE_VECTORS];
    UNROLL for (int i = 0; i < tokens * per_token; i++) totals[i] = V(setzero_ps)();
    for (uint32_t g = 0; g < w->num_groups; g++) {
        s.tiles = group_tiles(w, g);
        dot_tiles(layout, &s, blocks, tokens, dots);
        UNROLL for (int v = 0; v < per_token; v++) {
            vecf scales = per_group ? group_scales(w, row + v * LANES, g) : row_scales(w, row + v * LANES);
            UNROLL for (int t = 0; t < tokens; t++) {
                vec dot = dots[t * per_token + v];
                if (layout == OB_LAYOUT_BINARY_T16) dot = V(add_epi32)(dot, dot);
                vecf value = corrected(dot, in->sums_TG[(size_t)t * w->num_groups + g]), *total = &totals[t * per_token + v];
                if (per_group) *total = V(add_ps)(*total, V(mul_ps)(value, scales));
                else *total = V(mul_ps)(value, V(mul_ps)(scales, V(set1_ps)(in->scale_T[t])));
            }
        }
        s.data += (size_t)s.tiles * OB_TILE_BYTES;
        s.x += (size_t)s.tiles * w->tile;
    }
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int v = 0; v < per_token; v++) {
            vecf total = totals[t * per_token + v];
            if (per_group) total = V(mul_ps)(total, V(set1_ps)(in->scale_T[t]));
            finish_rows(w, row + v * LANES, total, y + t * y_stride);
        }
}

/* Blocks in turn for few tokens: measured best at a stream each, as registers allow. */
INLINE int blocks_of(int tokens) { return LANES == 8 ? 1 : tokens == 1 ? 4 : tokens == 2 ? 2 : 1; }

INLINE void decode_rows(uint32_t layout, const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                        int tokens, float *y, size_t y_stride) {
    const int blocks = blocks_of(tokens);
    const uint32_t together = (uint32_t)blocks * OB_BLOCK_ROWS;
    uint32_t row = row_begin;
    for (; blocks > 1 && row + together <= row_end; row += together)
        decode_blocks(layout, w, in, row, blocks, tokens, y, y_stride);
    for (; row < row_end; row += OB_BLOCK_ROWS) decode_blocks(layout, w, in, row, 1, tokens, y, y_stride);
}

/* Up to DECODE_TOKENS tokens. */
INLINE void decode(uint32_t layout, const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y,
                   size_t y_stride) {
#define DECODE(n) case n: decode_rows(layout, w, in, row_begin, row_end, n, y, y_stride); break
    switch (in->num_tokens) {
        DECODE(1);
        DECODE(2);
        DECODE(3);
        DECODE(4);
#if LANES == 16
        DECODE(5);
        DECODE(6);
        DECODE(7);
        DECODE(8);
#endif
    default: break;
    }
}

/* The inputs of `count` tokens from `first` on. */
INLINE ob_inputs some_tokens(const ob_weights *w, const ob_inputs *in, uint32_t first, uint32_t count) {
    ob_inputs part = *in;
    part.codes_TK += first * in->codes_stride, part.scale_T += first, part.sums_TG += (size_t)first * w->num_groups;
    part.num_tokens = count;
    return part;
}

/* More tokens in parts of nearly equal size, which meet a block while it is in the first cache. */
INLINE void decode_parts(uint32_t layout, const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                         float *y, size_t y_stride) {
    const uint32_t n = in->num_tokens, parts = (n + DECODE_TOKENS - 1) / DECODE_TOKENS;
    for (uint32_t row = row_begin; row < row_end; row += OB_BLOCK_ROWS)
        for (uint32_t part = 0, t = 0; part < parts; part++) {
            const ob_inputs some = some_tokens(w, in, t, (n - t + parts - part - 1) / (parts - part));
            const uint32_t end = row + OB_BLOCK_ROWS < row_end ? row + OB_BLOCK_ROWS : row_end;
            decode(layout, w, &some, row, end, y + (size_t)t * y_stride, y_stride);
            t += some.num_tokens;
        }
}

/* ---- many tokens ---- */

/* Work memory: sums of a group that a chunk cuts, totals of the groups so far, and the panel. */
enum {
    WORK_TOKENS = 256,
    WORK_SUMS = 0,
    WORK_TOTALS = WORK_SUMS + WORK_TOKENS * WIDE * 4,
    WORK_PANEL = WORK_TOTALS + WORK_TOKENS * WIDE * 4,
    PANEL_STEP = WIDE * 4
};
#ifdef WITH_AMX
enum { ONE_GROUP = 1 }; /* whether a chunk ends with its group */
#else
enum { ONE_GROUP = 0 };
#endif
_Static_assert(WORK_PANEL + (CHUNK_STEPS + 16) * PANEL_STEP <= OB_WORK_BYTES, "the panel does not fit the work memory");

/* WIDE rows from `row` on, and the part of the inputs that the panel holds. A last block without a neighbour is
 * computed twice and written once: rows[1] is then rows[0]. */
typedef struct panel {
    const ob_weights *w;
    const ob_inputs *in;
    uint8_t *work;
    float *y;
    size_t y_stride;
    uint32_t rows[2]; /* first row of either vector */
    uint32_t num_rows; /* vectors to write: 1 or 2 */
    uint32_t tile_begin, tile_end; /* of the chunk */
} panel;

/* One vector's digits of a tile, every PANEL_STEP bytes; a binary digit is 0 or 2, so that all layouts are dot - sum. */
INLINE void unpack_vector(uint32_t layout, const uint8_t *from, uint8_t *to) {
    vec bytes = v_load(from);
    if (layout == OB_LAYOUT_TERNARY5_T16) {
        UNROLL for (int j = 0; j < 5; j++, bytes = times3(bytes)) v_store(to + j * PANEL_STEP, leading_digit(bytes));
        return;
    }
    const int binary = layout == OB_LAYOUT_BINARY_T16;
    const vec mask = V(set1_epi8)(binary ? 2 : 3);
    UNROLL for (int j = 0; j < num_planes(layout); j++) {
        int shift = binary ? j - 1 : 2 * j;
        vec moved = shift < 0 ? V(add_epi8)(bytes, bytes) : shift ? V(srli_epi16)(bytes, shift) : bytes;
        v_store(to + j * PANEL_STEP, v_and(moved, mask));
    }
}

INLINE void unpack_panel(uint32_t layout, const panel *p) {
    const ob_weights *w = p->w;
    const size_t far = (size_t)WIDE / OB_BLOCK_ROWS * w->tiles_block * OB_TILE_BYTES; /* the next panel's */
    for (uint32_t v = 0; v < 2; v++) {
        const uint64_t block = p->rows[v] / OB_BLOCK_ROWS, first = block * w->tiles_block + p->tile_begin;
        const uint8_t *from = w->data + first * OB_TILE_BYTES + p->rows[v] % OB_BLOCK_ROWS * 4;
        uint8_t *to = p->work + WORK_PANEL + v * VEC_BYTES;
        for (uint32_t i = p->tile_begin; i < p->tile_end; i++, from += OB_TILE_BYTES, to += num_planes(layout) * PANEL_STEP) {
            prefetch_ahead(from, far);
            unpack_vector(layout, from, to);
        }
    }
}

/* acc[t, v] += digits . codes over `steps` steps. */
INLINE void dot_panel(const uint8_t *digits, uint32_t steps, const int8_t *x, size_t x_stride, int tokens, vec *acc) {
    vec sums[2 * TILE_TOKENS];
    while (steps) {
        uint32_t run = steps < RUN_STEPS ? steps : RUN_STEPS;
        UNROLL for (int i = 0; i < 2 * tokens; i++) sums[i] = v_open(acc[i]);
        for (uint32_t s = 0; s < run; s++, digits += PANEL_STEP, x += 4) {
            vec low = v_load(digits), high = v_load(digits + VEC_BYTES);
            UNROLL for (int t = 0; t < tokens; t++) {
                vec codes = v_codes(x + (size_t)t * x_stride);
                sums[2 * t] = v_dot(sums[2 * t], low, codes);
                sums[2 * t + 1] = v_dot(sums[2 * t + 1], high, codes);
            }
        }
        UNROLL for (int i = 0; i < 2 * tokens; i++) acc[i] = v_close(acc[i], sums[i]);
        steps -= run;
    }
}

/* Scaled per group: a group's sums are complete and go to the totals. */
INLINE void add_group(const panel *p, uint32_t group, uint32_t first, int tokens, const vec *acc) {
    const int32_t *sums = p->in->sums_TG + (size_t)first * p->w->num_groups + group;
    const vecf low = group_scales(p->w, p->rows[0], group), high = group_scales(p->w, p->rows[1], group);
    float *totals = (float *)(void *)(p->work + WORK_TOTALS) + (size_t)first * WIDE;
    UNROLL for (int t = 0; t < tokens; t++, sums += p->w->num_groups, totals += WIDE) {
        vecf value = V(mul_ps)(corrected(acc[2 * t], *sums), low), more = V(mul_ps)(corrected(acc[2 * t + 1], *sums), high);
        V(storeu_ps)(totals, V(add_ps)(V(loadu_ps)(totals), value));
        V(storeu_ps)(totals + LANES, V(add_ps)(V(loadu_ps)(totals + LANES), more));
    }
}

INLINE void zero_totals(const panel *p) {
    float *totals = (float *)(void *)(p->work + WORK_TOTALS);
    for (uint32_t i = 0; i < 2 * p->in->num_tokens; i++) V(storeu_ps)(totals + i * LANES, V(setzero_ps)());
}

/* Scaled per group: the totals to y. */
INLINE void finish_totals(const panel *p) {
    const float *totals = (const float *)(const void *)(p->work + WORK_TOTALS);
    for (uint32_t t = 0; t < p->in->num_tokens; t++)
        for (uint32_t v = 0; v < p->num_rows; v++) {
            vecf total = V(loadu_ps)(totals + t * WIDE + v * LANES);
            finish_rows(p->w, p->rows[v], V(mul_ps)(total, V(set1_ps)(p->in->scale_T[t])), p->y + t * p->y_stride);
        }
}

/* Scaled otherwise: the sums to y. */
INLINE void finish_sums(const panel *p, uint32_t first, int tokens, const vec *acc) {
    for (uint32_t v = 0; v < p->num_rows; v++) {
        const vecf scales = row_scales(p->w, p->rows[v]);
        UNROLL for (int t = 0; t < tokens; t++) {
            vecf factor = V(mul_ps)(scales, V(set1_ps)(p->in->scale_T[first + (uint32_t)t]));
            vecf value = corrected(v ? acc[2 * t + 1] : acc[2 * t], p->in->sums_TG[first + (uint32_t)t]);
            finish_rows(p->w, p->rows[v], V(mul_ps)(value, factor), p->y + (first + (size_t)t) * p->y_stride);
        }
    }
}

INLINE void finish_group(const panel *p, uint32_t group, uint32_t first, int tokens, const vec *acc) {
    if (p->w->granularity == OB_GRANULARITY_GROUP) add_group(p, group, first, tokens, acc);
    else finish_sums(p, first, tokens, acc);
}

/* A chunk for `tokens` (a constant) tokens from `first` on, group by group. */
INLINE void chunk_tokens(uint32_t layout, const panel *p, uint32_t first, int tokens) {
    const ob_weights *w = p->w;
    const uint32_t planes = (uint32_t)num_planes(layout);
    int32_t *kept = (int32_t *)(void *)(p->work + WORK_SUMS) + (size_t)first * WIDE;
    for (uint32_t tile = p->tile_begin; tile < p->tile_end;) {
        uint32_t group = tile / w->tiles_group, begin = group * w->tiles_group, end = begin + group_tiles(w, group);
        uint32_t stop = end < p->tile_end ? end : p->tile_end;
        vec acc[2 * TILE_TOKENS];
        UNROLL for (int i = 0; i < 2 * tokens; i++) acc[i] = tile == begin ? v_zero() : v_load(kept + i * LANES);
        dot_panel(p->work + WORK_PANEL + (tile - p->tile_begin) * planes * PANEL_STEP, (stop - tile) * planes,
                  p->in->codes_TK + first * p->in->codes_stride + (size_t)tile * w->tile, p->in->codes_stride, tokens, acc);
        if (stop == end)
            finish_group(p, group, first, tokens, acc);
        else
            UNROLL for (int i = 0; i < 2 * tokens; i++) v_store(kept + i * LANES, acc[i]);
        tile = stop;
    }
}

#ifdef WITH_AMX
#include "ob_linear_t16_i8_amx.h"
#else
INLINE void end_panels(void) {}

INLINE void chunk(uint32_t layout, const panel *p) {
    unpack_panel(layout, p);
    const uint32_t n = p->in->num_tokens, parts = (n + TILE_TOKENS - 1) / TILE_TOKENS;
    for (uint32_t part = 0, t = 0; part < parts; part++) { /* tiles of nearly equal size */
        uint32_t tokens = (n - t + parts - part - 1) / (parts - part);
#define TOKENS(c) case c: chunk_tokens(layout, p, t, c); break
        switch (tokens) {
#if LANES == 8
            TOKENS(3);
            TOKENS(4);
            TOKENS(5);
            TOKENS(6);
#else
            TOKENS(6);
            TOKENS(7);
            TOKENS(8);
            TOKENS(9);
            TOKENS(10);
            TOKENS(11);
            TOKENS(12);
#endif
        default: break;
        }
        t += tokens;
    }
}
#endif

INLINE void prefill(uint32_t layout, const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y,
                    size_t y_stride, uint8_t *work) {
    const uint32_t chunk_tiles = CHUNK_STEPS / (uint32_t)num_planes(layout);
    panel p = {.w = w, .in = in, .work = work, .y = y, .y_stride = y_stride};
    for (uint32_t row = row_begin; row < row_end; row += WIDE) {
        p.num_rows = LANES == 8 || row + LANES < row_end ? 2 : 1;
        p.rows[0] = row, p.rows[1] = p.num_rows == 2 ? row + LANES : row;
        if (w->granularity == OB_GRANULARITY_GROUP) zero_totals(&p);
        for (p.tile_begin = 0; p.tile_begin < w->tiles_block; p.tile_begin = p.tile_end) {
            const uint32_t group = p.tile_begin / w->tiles_group;
            const uint32_t limit = ONE_GROUP ? group * w->tiles_group + group_tiles(w, group) : w->tiles_block;
            p.tile_end = p.tile_begin + chunk_tiles < limit ? p.tile_begin + chunk_tiles : limit;
            chunk(layout, &p);
        }
        if (w->granularity == OB_GRANULARITY_GROUP) finish_totals(&p);
    }
    end_panels();
}

/* Up to how many tokens parts are faster than a panel: 5 to 40 % with AVX-512 where digits are whole bits, 10 % with AVX2
 * for ternary, whose planes need no shift; tiles (AMX) are faster from 16 tokens on. */
INLINE uint32_t tokens_in_parts(uint32_t layout) {
#ifdef WITH_AMX
    enum { MOST = 15 };
#else
    enum { MOST = 32 };
#endif
    if (LANES == 16) return layout == OB_LAYOUT_TERNARY5_T16 ? DECODE_TOKENS : MOST;
    return IS_SHORT && layout == OB_LAYOUT_TERNARY_T16 ? MOST : DECODE_TOKENS;
}

INLINE void linear(uint32_t layout, const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y,
                   size_t y_stride, uint8_t *work) {
    if (in->num_tokens <= DECODE_TOKENS) {
        decode(layout, w, in, row_begin, row_end, y, y_stride);
        return;
    }
    if (in->num_tokens <= tokens_in_parts(layout)) {
        decode_parts(layout, w, in, row_begin, row_end, y, y_stride);
        return;
    }
    for (uint32_t t = 0; t < in->num_tokens; t += WORK_TOKENS) {
        const ob_inputs part = some_tokens(w, in, t, in->num_tokens - t < WORK_TOKENS ? in->num_tokens - t : WORK_TOKENS);
        if (part.num_tokens <= DECODE_TOKENS) decode(layout, w, &part, row_begin, row_end, y + t * y_stride, y_stride);
        else prefill(layout, w, &part, row_begin, row_end, y + t * y_stride, y_stride, work);
    }
}

#define LINEAR(name, layout)                                                                                              \
    TARGET static void name(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y_TO, \
                            size_t y_stride, uint8_t *work) {                                                             \
        linear(layout, w, in, row_begin, row_end, y_TO, y_stride, work);                                                  \
    }
LINEAR(linear_binary, OB_LAYOUT_BINARY_T16)
LINEAR(linear_ternary, OB_LAYOUT_TERNARY_T16)
LINEAR(linear_ternary5, OB_LAYOUT_TERNARY5_T16)

OB_INLINE void enter(ob_kernels *k, uint8_t isa) {
    ob_enter_i8(k, OB_LAYOUT_BINARY_T16, linear_binary, isa);
    ob_enter_i8(k, OB_LAYOUT_TERNARY_T16, linear_ternary, isa);
    ob_enter_i8(k, OB_LAYOUT_TERNARY5_T16, linear_ternary5, isa);
}
