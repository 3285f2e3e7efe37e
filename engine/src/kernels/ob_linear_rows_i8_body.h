/* Linear layers of code rows with int8 inputs: one source for every x86 instruction set. The file that includes it has
 * defined TARGET, INLINE, UNROLL, enter's ISA and, on vectors `vec` of VEC_BYTES bytes or as many int32 lanes `LANES`:
 *   vec zero(void), load(const void *), broadcast4(const int8_t *)   [the four bytes in every lane]
 *   vec dot(vec acc, vec w, vec x)   acc lane += its four products w * x; w is a code plus OFFSET, unsigned if OFFSET
 *   vec dot_nibbles(vec acc, vec w, vec x)   the same for 0 <= w <= 15
 *   vec pair_up(vec a, b, c, d)      in each 128 bits: the sums of the four lanes of a, of b, of c, of d
 *   vec in_order(vec)                of pair_up's result: a's sum of the first 128 bits, of the second, ..., b's, ...
 *   __m128i fold(vec)                the sum of all 128-bit parts
 *   vec_f halves(const uint16_t *)   LANES float16 as floats
 *
 * Few tokens: rows lie in the file one after the other and are read once, in order, a stream that the processor's
 * prefetchers follow at the memory's speed; vectors run along K. Many tokens: 16 rows are packed into a panel of quads,
 * [K / 4, 16 rows, 4 bytes], so that a vector holds rows, every input is broadcast and no sum crosses lanes. */
#include "ob_kernels.h"

/* ROW_TOKENS: tokens that share a pass over a row. PANEL_TOKENS: share a pass over a panel.
 * AHEAD: 2 KB reach over the end of a page and into the next row, where prefetchers start anew. */
enum { ROW_TOKENS = 8, AHEAD = 2048, QUAD_BYTES = 64, HALVES = QUAD_BYTES / VEC_BYTES, PACK = 256 };

INLINE vec signed_weights(vec w) { return OFFSET ? w ^ (vec)set_bytes(OFFSET) : w; }

INLINE void store4(int32_t *to, __m128i v) { _mm_storeu_si128((__m128i *)(void *)to, v); }

/* ---- few tokens: along the row ---- */

/* sums[t] = sum over k < count of (codes[k] + OFFSET) * x[t, k]. Both sides are readable up to whole vectors, and x is
 * zero there. tokens: 1, 4 or 8; one token has four sums, so that additions do not wait for each other. */
INLINE void dot_row(const uint8_t *codes, const int8_t *x, size_t x_stride, uint32_t count, int tokens, int32_t *sums) {
    vec acc[ROW_TOKENS];
    const int ways = tokens == 1 ? 4 : 1;
    UNROLL for (int t = 0; t < tokens * ways; t++) acc[t] = zero();
    uint32_t k = 0;
    for (; k + ways * VEC_BYTES <= count; k += ways * VEC_BYTES)
        UNROLL for (int i = 0; i < ways; i++) {
            __builtin_prefetch(codes + k + i * VEC_BYTES + AHEAD);
            vec w = signed_weights(load(codes + k + i * VEC_BYTES));
            UNROLL for (int t = 0; t < tokens; t++)
                acc[t + i] = dot(acc[t + i], w, load(x + t * x_stride + k + i * VEC_BYTES));
        }
    for (; k < count; k += VEC_BYTES) {
        vec w = signed_weights(load(codes + k));
        UNROLL for (int t = 0; t < tokens; t++) acc[t] = dot(acc[t], w, load(x + t * x_stride + k));
    }
    if (tokens == 1) {
        int32_t parts[4];
        store4(parts, fold(pair_up(acc[0], acc[1], acc[2], acc[3])));
        sums[0] = (int32_t)((uint32_t)parts[0] + (uint32_t)parts[1] + (uint32_t)parts[2] + (uint32_t)parts[3]);
        return;
    }
    UNROLL for (int t = 0; t < tokens; t += 4) store4(sums + t, fold(pair_up(acc[t], acc[t + 1], acc[t + 2], acc[t + 3])));
}

INLINE void store_row(const ob_weights *w, const ob_inputs *in, uint32_t row, uint32_t first, int tokens, float scale,
                      const float *sums, float *y, size_t y_stride) {
    for (int t = 0; t < tokens; t++) {
        float value = sums[t] * (scale * in->scale_T[first + t]);
        y[(first + t) * y_stride + row] = w->bias ? value + w->bias[row] : value;
    }
}

/* The offset's share may wrap around, and the difference wraps back. */
INLINE float without_offset(int32_t sum, int32_t input_sum) {
    return (float)(int32_t)((uint32_t)sum - (uint32_t)OFFSET * (uint32_t)input_sum);
}

INLINE void row_tokens(const ob_weights *w, const ob_inputs *in, const uint8_t *codes, uint32_t row, uint32_t first,
                       int tokens, float *y, size_t y_stride) {
    const int8_t *x = in->codes_TK + first * in->codes_stride;
    const int32_t *input_sums = in->sums_TG + (size_t)first * w->num_groups;
    int32_t acc[ROW_TOKENS];
    float sums[ROW_TOKENS] = {0};
    if (w->granularity != OB_GRANULARITY_GROUP) {
        dot_row(codes, x, in->codes_stride, w->cols, tokens, acc);
        for (int t = 0; t < tokens; t++) sums[t] = without_offset(acc[t], input_sums[t]);
        store_row(w, in, row, first, tokens, ob_scale_at(w, row, 0), sums, y, y_stride);
        return;
    }
    for (uint32_t g = 0; g < w->num_groups; g++) {
        const uint32_t begin = g * w->group;
        dot_row(codes + begin, x + begin, in->codes_stride, ob_group_length(w, g), tokens, acc);
        float scale = ob_scale_at(w, row, g);
        for (int t = 0; t < tokens; t++)
            sums[t] = sums[t] + without_offset(acc[t], input_sums[(size_t)t * w->num_groups + g]) * scale;
    }
    store_row(w, in, row, first, tokens, 1.0f, sums, y, y_stride);
}

/* Four whole rows of int8 in the file, one token. The next four rows' lines are asked for while these are summed: what a
 * processor's prefetchers miss at the ends of pages and rows costs an eighth of the memory's speed otherwise. */
INLINE void four_rows(const ob_weights *w, const ob_inputs *in, uint32_t row, uint32_t token, float *y, size_t y_stride) {
    const uint8_t *codes = w->data + row * w->row_stride;
    const int8_t *x = in->codes_TK + token * in->codes_stride;
    vec acc[4] = {zero(), zero(), zero(), zero()};
    for (uint32_t k = 0; k < w->cols; k += QUAD_BYTES)
        UNROLL for (int r = 0; r < 4; r++) {
            const uint8_t *at = codes + r * w->row_stride + k;
            __builtin_prefetch(at + 4 * w->row_stride);
            UNROLL for (int h = 0; h < HALVES; h++)
                acc[r] = dot(acc[r], signed_weights(load(at + h * VEC_BYTES)), load(x + k + h * VEC_BYTES));
        }
    int32_t sums[4];
    store4(sums, fold(pair_up(acc[0], acc[1], acc[2], acc[3])));
    for (uint32_t r = 0; r < 4; r++) {
        float sum = without_offset(sums[r], in->sums_TG[token]);
        store_row(w, in, row + r, token, 1, ob_scale_at(w, row + r, 0), &sum, y, y_stride);
    }
}

/* Inputs [begin, begin + count) of a row. Only base 3 starts a group with a new byte. */
INLINE void unpack_range(const ob_weights *w, uint32_t row, uint32_t begin, uint32_t count, int8_t *codes) {
    if (w->layout != OB_LAYOUT_TERNARY5) {
        ob_unpack_codes(w, row, 0, begin, count, codes);
        return;
    }
    while (count) {
        uint32_t group = begin / w->group, inside = begin % w->group, part = ob_group_length(w, group) - inside;
        if (part > count) part = count;
        ob_unpack_codes(w, row, group, inside, part, codes);
        begin += part, count -= part, codes += part;
    }
}

INLINE void linear_rows(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y,
                        size_t y_stride, uint8_t *work) {
    uint32_t row = row_begin;
    if (w->layout == OB_LAYOUT_INT8 && w->granularity != OB_GRANULARITY_GROUP && in->num_tokens < 4)
        for (; row + 4 <= row_end; row += 4)
            for (uint32_t t = 0; t < in->num_tokens; t++) four_rows(w, in, row, t, y, y_stride);
    for (; row < row_end; row++) {
        const uint8_t *codes = work;
        if (w->layout == OB_LAYOUT_INT8) codes = w->data + row * w->row_stride;
        else unpack_range(w, row, 0, w->cols, (int8_t *)work);
        uint32_t t = 0, n = in->num_tokens;
        for (; t + 8 <= n; t += 8) row_tokens(w, in, codes, row, t, 8, y, y_stride);
        for (; t + 4 <= n; t += 4) row_tokens(w, in, codes, row, t, 4, y, y_stride);
        for (; t < n; t++) row_tokens(w, in, codes, row, t, 1, y, y_stride);
    }
}

/* ---- many tokens: panels of 16 rows ---- */

/* work: the panel, then its scales as floats [G, 16], then the codes of 16 rows that were not int8 in the file. */
INLINE size_t panel_bytes(const ob_weights *w) { return ((size_t)w->cols + 63) / 64 * 64 * OB_BLOCK_ROWS; }

INLINE int panel_fits(const ob_weights *w) {
    return panel_bytes(w) + (size_t)w->num_groups * QUAD_BYTES + PACK * OB_BLOCK_ROWS <= OB_WORK_BYTES;
}

/* 16 bytes of four rows to four quads' lanes of these rows. */
INLINE void pack4x4(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d, uint8_t *to) {
    const __m128i flip = _mm_set1_epi8((char)OFFSET);
    __m128i r0 = _mm_xor_si128(_mm_loadu_si128((const __m128i *)(const void *)a), flip);
    __m128i r1 = _mm_xor_si128(_mm_loadu_si128((const __m128i *)(const void *)b), flip);
    __m128i r2 = _mm_xor_si128(_mm_loadu_si128((const __m128i *)(const void *)c), flip);
    __m128i r3 = _mm_xor_si128(_mm_loadu_si128((const __m128i *)(const void *)d), flip);
    __m128i low01 = _mm_unpacklo_epi32(r0, r1), high01 = _mm_unpackhi_epi32(r0, r1);
    __m128i low23 = _mm_unpacklo_epi32(r2, r3), high23 = _mm_unpackhi_epi32(r2, r3);
    _mm_store_si128((__m128i *)(void *)to, _mm_unpacklo_epi64(low01, low23));
    _mm_store_si128((__m128i *)(void *)(to + QUAD_BYTES), _mm_unpackhi_epi64(low01, low23));
    _mm_store_si128((__m128i *)(void *)(to + 2 * QUAD_BYTES), _mm_unpacklo_epi64(high01, high23));
    _mm_store_si128((__m128i *)(void *)(to + 3 * QUAD_BYTES), _mm_unpackhi_epi64(high01, high23));
}

/* `rows` rows of `count` codes (a multiple of 16 is readable); rows that do not exist repeat the last. */
INLINE void pack_quads(const uint8_t *codes, size_t stride, uint32_t rows, uint32_t count, uint8_t *to) {
    for (uint32_t r = 0; r < OB_BLOCK_ROWS; r += 4) {
        const uint8_t *from[4];
        for (uint32_t i = 0; i < 4; i++) from[i] = codes + (r + i < rows ? r + i : rows - 1) * stride;
        for (uint32_t k = 0; k < count; k += 16) {
            for (uint32_t i = 0; i < 4; i++) __builtin_prefetch(from[i] + k + OB_BLOCK_ROWS * stride);
            pack4x4(from[0] + k, from[1] + k, from[2] + k, from[3] + k, to + k / 4 * QUAD_BYTES + 4 * r);
        }
    }
}

INLINE void pack_panel(const ob_weights *w, uint32_t row, uint32_t rows, uint8_t *panel, float *scales, uint8_t *codes) {
    if (w->layout == OB_LAYOUT_INT8) {
        pack_quads(w->data + row * w->row_stride, w->row_stride, rows, w->cols, panel);
    } else {
        for (uint32_t k = 0; k < w->cols; k += PACK) {
            uint32_t count = w->cols - k < PACK ? w->cols - k : PACK;
            for (uint32_t r = 0; r < rows; r++) unpack_range(w, row + r, k, count, (int8_t *)codes + r * PACK);
            pack_quads(codes, PACK, rows, count, panel + k / 4 * QUAD_BYTES);
        }
    }
    const uint16_t *halves_RG = (const uint16_t *)w->scale + (size_t)row * w->num_groups;
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t g = 0; g < w->num_groups; g++)
            scales[g * OB_BLOCK_ROWS + r] = w->granularity == OB_GRANULARITY_GROUP
                                                ? _cvtsh_ss(halves_RG[(size_t)r * w->num_groups + g])
                                                : ob_scale_at(w, row + r, 0);
}

INLINE vec_f load_f(const float *from) {
    vec_f v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* 16 rows, `tokens` tokens. */
INLINE void panel_tokens(const ob_weights *w, const ob_inputs *in, const uint8_t *panel, const float *scales, uint32_t row,
                         uint32_t rows, uint32_t first, int tokens, int per_group, float *y, size_t y_stride) {
    const int8_t *x = in->codes_TK + first * in->codes_stride;
    const int32_t *input_sums = in->sums_TG + (size_t)first * w->num_groups;
    vec_f total[PANEL_TOKENS][HALVES];
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int h = 0; h < HALVES; h++) total[t][h] = (vec_f)zero();
    for (uint32_t g = 0; g < w->num_groups; g++) {
        vec acc[PANEL_TOKENS][HALVES];
        UNROLL for (int t = 0; t < tokens; t++)
            UNROLL for (int h = 0; h < HALVES; h++) acc[t][h] = zero();
        for (uint32_t q = 0, quads = (ob_group_length(w, g) + 3) / 4; q < quads; q++, panel += QUAD_BYTES, x += 4) {
            vec weights[HALVES];
            UNROLL for (int h = 0; h < HALVES; h++) weights[h] = load(panel + h * VEC_BYTES);
            UNROLL for (int t = 0; t < tokens; t++) {
                vec inputs = broadcast4(x + t * in->codes_stride);
                UNROLL for (int h = 0; h < HALVES; h++) acc[t][h] = dot(acc[t][h], weights[h], inputs);
            }
        }
        UNROLL for (int t = 0; t < tokens; t++) {
            vec offset = zero() + (int32_t)((uint32_t)OFFSET * (uint32_t)input_sums[(size_t)t * w->num_groups + g]);
            UNROLL for (int h = 0; h < HALVES; h++) {
                vec_f sum = __builtin_convertvector((vec)((vec_u)acc[t][h] - (vec_u)offset), vec_f);
                total[t][h] = per_group ? total[t][h] + sum * load_f(scales + g * OB_BLOCK_ROWS + h * LANES) : sum;
            }
        }
    }
    UNROLL for (int t = 0; t < tokens; t++) {
        float values[OB_BLOCK_ROWS];
        const float scale_t = in->scale_T[first + t];
        UNROLL for (int h = 0; h < HALVES; h++) {
            vec_f factor = per_group ? (vec_f)zero() + scale_t : load_f(scales + h * LANES) * scale_t;
            vec_f value = total[t][h] * factor;
            memcpy(values + h * LANES, &value, sizeof value);
        }
        float *to = y + (first + t) * y_stride + row;
        if (w->bias)
            for (uint32_t r = 0; r < rows; r++) to[r] = values[r] + w->bias[row + r];
        else if (rows == OB_BLOCK_ROWS) memcpy(to, values, sizeof values);
        else memcpy(to, values, rows * sizeof *values);
    }
}

INLINE void linear_panels(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, int per_group,
                          float *y, size_t y_stride, uint8_t *work) {
    float *scales = (float *)(void *)(work + panel_bytes(w));
    uint8_t *codes = (uint8_t *)(scales + (size_t)w->num_groups * OB_BLOCK_ROWS);
    for (uint32_t row = row_begin; row < row_end; row += OB_BLOCK_ROWS) {
        uint32_t rows = row_end - row < OB_BLOCK_ROWS ? row_end - row : OB_BLOCK_ROWS, t = 0, n = in->num_tokens;
        pack_panel(w, row, rows, work, scales, codes);
        for (; t + PANEL_TOKENS <= n; t += PANEL_TOKENS)
            panel_tokens(w, in, work, scales, row, rows, t, PANEL_TOKENS, per_group, y, y_stride);
        for (; t + 4 <= n; t += 4) panel_tokens(w, in, work, scales, row, rows, t, 4, per_group, y, y_stride);
        for (; t + 2 <= n; t += 2) panel_tokens(w, in, work, scales, row, rows, t, 2, per_group, y, y_stride);
        if (t < n) panel_tokens(w, in, work, scales, row, rows, t, 1, per_group, y, y_stride);
    }
}

/* ---- int4 in groups of 32, few tokens ---- */

enum { GROUP4 = 32, GROUP4_BYTES = 16, CHUNK_GROUPS = 4 * VEC_BYTES / GROUP4_BYTES };

/* Work memory of one token: inputs with the even ones of 32 before the odd ones, as nibbles lie, 8 times the group sums,
 * and the products of 16 rows with their scales. */
typedef struct int4_work {
    int8_t *x;       /* [chunks, 4, 2, VEC_BYTES] */
    int32_t *sums8;  /* [chunks * CHUNK_GROUPS] */
    float *products; /* [16, chunks * CHUNK_GROUPS] */
    uint32_t groups; /* chunks * CHUNK_GROUPS */
} int4_work;

INLINE int4_work int4_layout(const ob_weights *w, uint8_t *work) {
    uint32_t groups = (w->num_groups + CHUNK_GROUPS - 1) / CHUNK_GROUPS * CHUNK_GROUPS;
    uint8_t *sums8 = work + (size_t)groups * GROUP4, *products = sums8 + (size_t)groups * 4;
    return (int4_work){(int8_t *)work, (int32_t *)(void *)sums8, (float *)(void *)products, groups};
}

INLINE int int4_fits(const ob_weights *w) {
    return w->granularity == OB_GRANULARITY_GROUP && w->group == GROUP4 &&
           ((size_t)w->num_groups + CHUNK_GROUPS) * (GROUP4 + 4 + 4 * OB_BLOCK_ROWS) <= OB_WORK_BYTES;
}

INLINE void int4_prepare(const ob_weights *w, const ob_inputs *in, uint32_t token, const int4_work *m) {
    const int8_t *x = in->codes_TK + token * in->codes_stride;
    memset(m->x, 0, (size_t)m->groups * GROUP4);
    memset(m->sums8, 0, (size_t)m->groups * 4);
    for (uint32_t g = 0; g < w->num_groups; g++) {
        const uint32_t byte = g * GROUP4_BYTES;
        int8_t *even = m->x + byte / VEC_BYTES * 2 * VEC_BYTES + byte % VEC_BYTES, *odd = even + VEC_BYTES;
        for (uint32_t i = 0; i < GROUP4_BYTES && g * GROUP4 + 2 * i < in->codes_stride; i++)
            even[i] = x[g * GROUP4 + 2 * i], odd[i] = x[g * GROUP4 + 2 * i + 1];
        m->sums8[g] = 8 * in->sums_TG[(size_t)token * w->num_groups + g];
    }
}

INLINE vec int4_dot(const uint8_t *bytes, const int8_t *x) {
    const vec low = (vec)set_bytes(15), v = load(bytes);
    vec even = v & low, odd = (vec)((vec_u)v >> 4) & low;
    return dot_nibbles(dot_nibbles(zero(), even, load(x)), odd, load(x + VEC_BYTES));
}

/* The groups' sums times their scales, one row. */
INLINE void int4_row(const uint8_t *bytes, uint32_t vecs, const int4_work *m, const uint16_t *scales, uint32_t num_groups,
                     float *products) {
    const int8_t *x = m->x;
    uint32_t v = 0, g = 0;
    for (; g < m->groups; v += 4, g += CHUNK_GROUPS, bytes += 4 * VEC_BYTES, x += 8 * VEC_BYTES) {
        vec parts[4];
        vec_f scale;
        if (v + 4 <= vecs && g + CHUNK_GROUPS <= num_groups) {
            UNROLL for (int i = 0; i < 4; i++) {
                __builtin_prefetch(bytes + i * VEC_BYTES + AHEAD);
                parts[i] = int4_dot(bytes + i * VEC_BYTES, x + 2 * i * VEC_BYTES);
            }
            scale = halves(scales + g);
        } else { /* neither bytes nor scales are readable beyond the row */
            uint16_t last[CHUNK_GROUPS] = {0};
            for (uint32_t i = 0; i < 4; i++)
                parts[i] = v + i < vecs ? int4_dot(bytes + i * VEC_BYTES, x + 2 * i * VEC_BYTES) : zero();
            for (uint32_t i = 0; g + i < num_groups; i++) last[i] = scales[g + i];
            scale = halves(last);
        }
        vec sum = in_order(pair_up(parts[0], parts[1], parts[2], parts[3])) - load(m->sums8 + g);
        vec_f product = __builtin_convertvector(sum, vec_f) * scale;
        memcpy(products + g, &product, sizeof product);
    }
}

INLINE void linear_int4(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y,
                        size_t y_stride, uint8_t *work) {
    const int4_work m = int4_layout(w, work);
    for (uint32_t t = 0; t < in->num_tokens; t++) {
        int4_prepare(w, in, t, &m);
        for (uint32_t row = row_begin; row < row_end; row += OB_BLOCK_ROWS) {
            uint32_t rows = row_end - row < OB_BLOCK_ROWS ? row_end - row : OB_BLOCK_ROWS;
            for (uint32_t r = 0; r < rows; r++)
                int4_row(w->data + (row + r) * w->row_stride, (uint32_t)(w->row_stride / VEC_BYTES), &m,
                         (const uint16_t *)w->scale + (size_t)(row + r) * w->num_groups, w->num_groups,
                         m.products + (size_t)r * m.groups);
            float sums[OB_BLOCK_ROWS] = {0}; /* 16 sums in turn hide the latency of the additions */
            for (uint32_t g = 0; g < w->num_groups; g++)
                UNROLL for (int r = 0; r < OB_BLOCK_ROWS; r++) sums[r] += m.products[(size_t)r * m.groups + g];
            for (uint32_t r = 0; r < rows; r++) store_row(w, in, row + r, t, 1, 1.0f, sums + r, y, y_stride);
        }
    }
}

/* ---- the kernel of every layout ---- */

TARGET static void linear_rows_i8(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y_TO,
                                  size_t y_stride, uint8_t *work) {
    const int per_group = w->granularity == OB_GRANULARITY_GROUP;
    const uint32_t many = w->layout == OB_LAYOUT_INT8 ? MANY_TOKENS : MANY_TOKENS_PACKED;
    if (in->num_tokens >= many && panel_fits(w)) {
        if (per_group) linear_panels(w, in, row_begin, row_end, 1, y_TO, y_stride, work);
        else linear_panels(w, in, row_begin, row_end, 0, y_TO, y_stride, work);
    } else if (w->layout == OB_LAYOUT_INT4 && int4_fits(w)) {
        linear_int4(w, in, row_begin, row_end, y_TO, y_stride, work);
    } else {
        linear_rows(w, in, row_begin, row_end, y_TO, y_stride, work);
    }
}

OB_INLINE void enter_rows_i8(ob_kernels *k, uint8_t isa) {
    for (uint32_t layout = OB_LAYOUT_INT8; layout <= OB_LAYOUT_TERNARY5; layout++) ob_enter_i8(k, layout, linear_rows_i8, isa);
}
