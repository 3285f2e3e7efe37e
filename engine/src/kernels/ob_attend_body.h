/* ob_attend_ref.c in registers: included once for each instruction set, after OB_SET_*.
 *
 * Queries (a token's heads are neighbours) run in chunks. For each block of positions a chunk makes all its scores, then
 * their exponentials, then adds the values up, so that the keys and then the values stay in the first cache. Scores are
 * made in tiles of queries and rows and summed across lanes for several rows at once, in the order of ob_tree16. Many
 * queries read rows that were turned to float32 once; few (decode) turn them in registers. */
#include "ob_lanes.h"

enum {
    BLOCK = OB_ATTEND_BLOCK,
    QUERIES = 4,         /* of a tile */
    CHUNK = 128,         /* queries that share a block's rows as float32; a quarter where they have copies */
    BLOCKS = W / 4,      /* groups of 4 lanes in a register */
    STEPS = W == 4 ? 2 : 1, /* a tile of scores has BLOCKS * STEPS rows, or up to 4 times as many for few queries */
    ROWS = 4 * BLOCKS,
    WIDE = W == 16 ? 4 : W == 8 ? 2 : 4 /* registers of a value row that a tile of values holds for each query */
};

/* ---- sums across lanes ---- */

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vint){__VA_ARGS__})
#endif
#if WIDTH == 16
#define LOW_HALVES 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HIGH_HALVES 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define LOW_QUARTERS 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define HIGH_QUARTERS 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
#define LOW_PAIRS 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define HIGH_PAIRS 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define EVEN 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30
#define ODD 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31
#elif WIDTH == 8
#define LOW_QUARTERS 0, 1, 2, 3, 8, 9, 10, 11
#define HIGH_QUARTERS 4, 5, 6, 7, 12, 13, 14, 15
#define LOW_PAIRS 0, 1, 8, 9, 4, 5, 12, 13
#define HIGH_PAIRS 2, 3, 10, 11, 6, 7, 14, 15
#define EVEN 0, 2, 8, 10, 4, 6, 12, 14
#define ODD 1, 3, 9, 11, 5, 7, 13, 15
#else
#define LOW_PAIRS 0, 1, 4, 5
#define HIGH_PAIRS 2, 3, 6, 7
#define EVEN 0, 2, 4, 6
#define ODD 1, 3, 5, 7
#endif
#define ADD_HALVES(a, b, LOW, HIGH) (SHUFFLE(a, b, LOW) + SHUFFLE(a, b, HIGH))

/* BLOCKS registers of one row each to one: four lanes for each row, still to be summed. */
INLINE vfloat four_lanes_each(const vfloat rows[BLOCKS]) {
#if WIDTH == 16
    vfloat a = ADD_HALVES(rows[0], rows[1], LOW_HALVES, HIGH_HALVES), b = ADD_HALVES(rows[2], rows[3], LOW_HALVES, HIGH_HALVES);
    return ADD_HALVES(a, b, LOW_QUARTERS, HIGH_QUARTERS);
#elif WIDTH == 8
    return ADD_HALVES(rows[0], rows[1], LOW_QUARTERS, HIGH_QUARTERS);
#else
    return rows[0];
#endif
}

/* The last two levels: register c holds rows c, c + 4, ...; the result one lane for each row. */
INLINE vfloat one_lane_each(const vfloat four[4]) {
    vfloat a = ADD_HALVES(four[0], four[1], LOW_PAIRS, HIGH_PAIRS), b = ADD_HALVES(four[2], four[3], LOW_PAIRS, HIGH_PAIRS);
    return ADD_HALVES(a, b, EVEN, ODD);
}

/* The first levels, where a lane's partner is in another register. */
INLINE vfloat fold_parts(const vfloat parts[PARTS]) {
#if WIDTH == 16
    return parts[0];
#elif WIDTH == 8
    return parts[0] + parts[1];
#else
    return (parts[0] + parts[2]) + (parts[1] + parts[3]);
#endif
}

/* ---- rows ---- */

typedef struct rows {
    const uint8_t *data;
    size_t stride;
    const float *scales; /* int8: [BLOCK, num_scales], then 3 more floats */
    uint32_t num_scales;
    const uint8_t *ahead; /* rows of the same stride that are read after these, to be fetched meanwhile; or NULL */
} rows;

INLINE vfloat read(uint32_t type, const uint8_t *row, const float *scales, uint32_t d) {
    if (type == OB_KV_FLOAT16) return load_half(row + 2 * d);
    if (type == OB_KV_INT8) return load_codes(row + d) * scales[d / OB_KV_GROUP];
    return load((const float *)(const void *)row + d);
}

INLINE void fetch_row(const rows *r, size_t p) {
    if (r->ahead)
        for (size_t at = 0; at < r->stride; at += 64) __builtin_prefetch(r->ahead + p * r->stride + at);
}

/* The float16 scales of a block's int8 rows as floats. A row's scales are padded to 16 bytes when head_dim is a multiple
 * of 16, so four at a time stay inside it; what they write beyond the row's the next row overwrites. */
INLINE void read_scales(const uint8_t *data, size_t stride, uint32_t head_dim, uint32_t count, uint32_t num_scales, float *scales) {
    for (uint32_t p = 0; p < count; p++)
        for (uint32_t g = 0; g < num_scales; g += 4) four_halves(data + p * stride + head_dim + 2 * g, scales + p * num_scales + g);
}

/* ---- one tile ---- */

typedef struct tile {
    const float *q[QUERIES];
    float *out[QUERIES], *scores[QUERIES]; /* [head_dim], [BLOCK] */
    const float *factor;                   /* [QUERIES] what the earlier output is worth */
    uint32_t dim;                          /* a multiple of 16 */
} tile;

/* The scores of `count` rows, not yet scaled; up to W - 1 more are written, copies of the last. */
INLINE void score_tile(uint32_t type, const tile *t, int queries, const rows *r, uint32_t count) {
    const int steps = queries == 1 ? 4 : queries == 2 ? 2 : STEPS, num_rows = BLOCKS * steps; /* constants after inlining */
    for (uint32_t first = 0; first < count; first += W) {
        vfloat four[QUERIES][4];
        for (uint32_t step = 0; step < 4; step += (uint32_t)steps) {
            const uint8_t *row[ROWS];
            const float *scales[ROWS];
            UNROLL for (uint32_t j = 0; j < (uint32_t)num_rows; j++) {
                uint32_t p = first + 4 * (j % BLOCKS) + step + j / BLOCKS;
                p = p < count ? p : count - 1;
                row[j] = r->data + p * r->stride;
                scales[j] = r->scales + p * r->num_scales;
                fetch_row(r, p);
            }
            vfloat sums[QUERIES][ROWS][PARTS];
            UNROLL for (int part = 0; part < PARTS; part++) {
                vfloat acc[QUERIES][ROWS];
                UNROLL for (int i = 0; i < queries; i++)
                    UNROLL for (int j = 0; j < num_rows; j++) acc[i][j] = (vfloat){0};
                for (uint32_t d = (uint32_t)(part * W); d < t->dim; d += OB_LANES) {
                    vfloat key[ROWS];
                    UNROLL for (int j = 0; j < num_rows; j++) key[j] = read(type, row[j], scales[j], d);
                    UNROLL for (int i = 0; i < queries; i++) {
                        vfloat q = load(t->q[i] + d);
                        UNROLL for (int j = 0; j < num_rows; j++) acc[i][j] += q * key[j];
                    }
                }
                UNROLL for (int i = 0; i < queries; i++)
                    UNROLL for (int j = 0; j < num_rows; j++) sums[i][j][part] = acc[i][j];
            }
            UNROLL for (int i = 0; i < queries; i++)
                UNROLL for (int s = 0; s < steps; s++) {
                    vfloat folded[BLOCKS];
                    UNROLL for (int b = 0; b < BLOCKS; b++) folded[b] = fold_parts(sums[i][s * BLOCKS + b]);
                    four[i][step + s] = four_lanes_each(folded);
                }
        }
        UNROLL for (int i = 0; i < queries; i++) store(t->scores[i] + first, one_lane_each(four[i]));
    }
}

/* out[d] = out[d] * factor + sum over p of weight[p] * value[p, d] for `wide` registers from d on. */
INLINE void value_part(uint32_t type, const tile *t, int queries, const rows *r, uint32_t begin, uint32_t end, uint32_t d, int wide) {
    vfloat acc[QUERIES][2 * WIDE];
    UNROLL for (int i = 0; i < queries; i++)
        UNROLL for (int j = 0; j < wide; j++) acc[i][j] = load(t->out[i] + d + j * W) * t->factor[i];
    const int bytes = wide * W * (type == OB_KV_FLOAT32 ? 4 : type == OB_KV_FLOAT16 ? 2 : 1);
    const size_t start = (size_t)d * (type == OB_KV_FLOAT32 ? 4 : type == OB_KV_FLOAT16 ? 2 : 1);
    const uint8_t *row = r->data + begin * r->stride;
    const float *scales = r->scales + begin * r->num_scales;
    for (uint32_t p = begin; p < end; p++, row += r->stride, scales += r->num_scales) {
        vfloat value[2 * WIDE];
        if (r->ahead)
            UNROLL for (int at = 0; at < bytes; at += 64) __builtin_prefetch(r->ahead + p * r->stride + start + at);
        UNROLL for (int j = 0; j < wide; j++) value[j] = read(type, row, scales, d + (uint32_t)(j * W));
        UNROLL for (int i = 0; i < queries; i++) {
            vfloat weight = all(t->scores[i][p]);
            UNROLL for (int j = 0; j < wide; j++) acc[i][j] += weight * value[j];
        }
    }
    UNROLL for (int i = 0; i < queries; i++)
        UNROLL for (int j = 0; j < wide; j++) store(t->out[i] + d + j * W, acc[i][j]);
}

INLINE void value_tile(uint32_t type, const tile *t, int queries, const rows *r, uint32_t begin, uint32_t end) {
    uint32_t d = 0;
    if (queries <= 2)
        for (; d + 2 * WIDE * W <= t->dim; d += 2 * WIDE * W) value_part(type, t, queries, r, begin, end, d, 2 * WIDE);
    for (; d + WIDE * W <= t->dim; d += WIDE * W) value_part(type, t, queries, r, begin, end, d, WIDE);
    for (; d < t->dim; d += W) value_part(type, t, queries, r, begin, end, d, 1);
}

#define FOR_TYPES_AND_QUERIES(name, ...)                                                    \
    switch (type * QUERIES + queries - 1) {                                                 \
    case OB_KV_FLOAT32 * QUERIES + 0: name(OB_KV_FLOAT32, t, 1, __VA_ARGS__); break;        \
    case OB_KV_FLOAT32 * QUERIES + 1: name(OB_KV_FLOAT32, t, 2, __VA_ARGS__); break;        \
    case OB_KV_FLOAT32 * QUERIES + 2: name(OB_KV_FLOAT32, t, 3, __VA_ARGS__); break;        \
    case OB_KV_FLOAT32 * QUERIES + 3: name(OB_KV_FLOAT32, t, 4, __VA_ARGS__); break;        \
    case OB_KV_FLOAT16 * QUERIES + 0: name(OB_KV_FLOAT16, t, 1, __VA_ARGS__); break;        \
    case OB_KV_FLOAT16 * QUERIES + 1: name(OB_KV_FLOAT16, t, 2, __VA_ARGS__); break;        \
    case OB_KV_FLOAT16 * QUERIES + 2: name(OB_KV_FLOAT16, t, 3, __VA_ARGS__); break;        \
    case OB_KV_FLOAT16 * QUERIES + 3: name(OB_KV_FLOAT16, t, 4, __VA_ARGS__); break;        \
    case OB_KV_INT8 * QUERIES + 0: name(OB_KV_INT8, t, 1, __VA_ARGS__); break;              \
    case OB_KV_INT8 * QUERIES + 1: name(OB_KV_INT8, t, 2, __VA_ARGS__); break;              \
    case OB_KV_INT8 * QUERIES + 2: name(OB_KV_INT8, t, 3, __VA_ARGS__); break;              \
    default: name(OB_KV_INT8, t, 4, __VA_ARGS__); break;                                    \
    }

TARGET static void scores_of(uint32_t type, const tile *t, uint32_t queries, const rows *r, uint32_t count) {
    FOR_TYPES_AND_QUERIES(score_tile, r, count)
}

TARGET static void values_of(uint32_t type, const tile *t, uint32_t queries, const rows *r, uint32_t begin, uint32_t end) {
    FOR_TYPES_AND_QUERIES(value_tile, r, begin, end)
}

/* ---- one chunk of queries ---- */

typedef struct chunk {
    const ob_attention *a;
    uint32_t first, queries; /* counted as token * heads + head */
    uint32_t dim;            /* head_dim up to a multiple of 16 */
    uint32_t num_scales, copies; /* copies: q and out lie in work, padded */
    float *scores, *best, *factor, *lanes, *keys, *values, *key_scales, *value_scales, *q, *out;
    uint32_t seen[CHUNK];  /* positions that each query sees */
    const float *q_rows[CHUNK];
    float *out_rows[CHUNK]; /* where they are summed */
} chunk;

INLINE float *take(uint8_t *work, size_t *used, size_t floats) {
    float *place = (float *)(void *)(work + *used);
    *used += (floats * sizeof(float) + 63) / 64 * 64;
    return place;
}

/* Lays the chunk's arrays into work; 0 when they do not fit. */
INLINE int lay_out(chunk *c, uint8_t *work) {
    size_t used = 0, queries = c->queries;
    c->scores = take(work, &used, queries * BLOCK);
    c->best = take(work, &used, CHUNK);
    c->factor = take(work, &used, CHUNK + QUERIES);
    c->lanes = take(work, &used, queries * OB_LANES);
    c->key_scales = take(work, &used, (size_t)BLOCK * c->num_scales + 3);
    c->value_scales = take(work, &used, (size_t)BLOCK * c->num_scales + 3);
    c->keys = take(work, &used, (size_t)BLOCK * c->dim);
    c->values = take(work, &used, (size_t)BLOCK * c->dim);
    c->q = take(work, &used, c->copies ? queries * c->dim : 0);
    c->out = take(work, &used, c->copies ? queries * c->dim : 0);
    return used <= OB_WORK_BYTES;
}

/* How many of the `count` positions from begin on a query sees. */
INLINE uint32_t seen_of(const chunk *c, uint32_t query, uint32_t begin, uint32_t count) {
    uint32_t left = c->seen[query] - begin;
    return left < count ? left : count;
}

INLINE const float *query_row(const chunk *c, uint32_t query) {
    uint32_t i = c->first + query;
    return c->a->q + i / c->a->heads * c->a->q_stride + (size_t)(i % c->a->heads) * c->a->head_dim;
}

INLINE float *out_row(const chunk *c, uint32_t query) {
    uint32_t i = c->first + query;
    return c->a->out + i / c->a->heads * c->a->out_stride + (size_t)(i % c->a->heads) * c->a->head_dim;
}

INLINE void make_tile(const chunk *c, uint32_t query, uint32_t queries, tile *t) {
    t->dim = c->dim;
    t->factor = c->factor + query;
    for (uint32_t i = 0; i < queries; i++) {
        t->q[i] = c->q_rows[query + i];
        t->out[i] = c->out_rows[query + i];
        t->scores[i] = c->scores + (query + i) * BLOCK;
    }
}

INLINE void start_queries(chunk *c) {
    for (uint32_t i = 0; i < c->queries; i++) {
        c->seen[i] = c->a->num_positions - c->a->num_tokens + (c->first + i) / c->a->heads + 1;
        c->q_rows[i] = query_row(c, i);
        c->out_rows[i] = c->copies ? c->out + i * c->dim : out_row(c, i);
        c->best[i] = -FLT_MAX;
        memset(c->out_rows[i], 0, c->dim * sizeof(float));
        memset(c->lanes + i * OB_LANES, 0, OB_LANES * sizeof(float));
        if (!c->copies) continue;
        memset(c->q + i * c->dim, 0, c->dim * sizeof(float));
        memcpy(c->q + i * c->dim, c->q_rows[i], c->a->head_dim * sizeof(float));
        c->q_rows[i] = c->q + i * c->dim;
    }
}

INLINE void finish_queries(const chunk *c) {
    for (uint32_t i = 0; i < c->queries; i++) {
        float *from = c->out_rows[i], inverse = 1.0f / ob_tree16(c->lanes + i * OB_LANES);
        for (uint32_t d = 0; d < c->dim; d += W) store(from + d, load(from + d) * inverse);
        if (c->copies) memcpy(out_row(c, i), from, c->a->head_dim * sizeof(float));
    }
}

/* Rows as float32, padded with zeros to c->dim. */
INLINE rows widen(const chunk *c, const rows *r, uint32_t count, float *to) {
    const uint32_t type = c->a->kv_type;
    for (uint32_t p = 0; p < count; p++) {
        const uint8_t *row = r->data + p * r->stride;
        const float *scales = r->scales + p * r->num_scales;
        float *x = to + p * c->dim;
        fetch_row(r, p);
        if (c->copies) {
            memset(x, 0, c->dim * sizeof *x);
            ob_kv_load_ref(type, row, c->a->head_dim, x);
        } else if (type == OB_KV_FLOAT16)
            for (uint32_t d = 0; d < c->dim; d += W) store(x + d, read(OB_KV_FLOAT16, row, scales, d));
        else
            for (uint32_t d = 0; d < c->dim; d += W) store(x + d, read(OB_KV_INT8, row, scales, d));
    }
    return (rows){(const uint8_t *)to, c->dim * sizeof(float), r->scales, 0, NULL};
}

/* Scores become weights of the values; best, factor and the lanes of the sum follow. */
INLINE void weigh(const chunk *c, uint32_t first, uint32_t begin, uint32_t count) {
    for (uint32_t i = first; i < c->queries; i++) {
        float *scores = c->scores + i * BLOCK;
        uint32_t n = seen_of(c, i, begin, count);
        vfloat most = all(c->best[i]);
        for (uint32_t p = 0; p < n; p += W) store(scores + p, load(scores + p) * c->a->scale);
        for (uint32_t p = n; p % OB_LANES; p++) scores[p] = ob_float_from_bits(0xff800000u); /* minus infinity: weight 0 */
        for (uint32_t p = 0; p < n; p += W) most = max(load(scores + p), most);
        float best = largest_lane(most);
        c->factor[i] = c->best[i] - best;
        c->best[i] = best;
    }
    for (uint32_t i = first / W * W; i < c->queries; i += W) store(c->factor + i, exp_lanes(load(c->factor + i)));
    for (uint32_t i = first; i < c->queries; i++) {
        float *scores = c->scores + i * BLOCK, *lanes = c->lanes + i * OB_LANES;
        uint32_t n = seen_of(c, i, begin, count);
        vfloat sums[PARTS];
        UNROLL for (int p = 0; p < PARTS; p++) sums[p] = load(lanes + p * W) * c->factor[i];
        for (uint32_t at = 0; at < n; at += OB_LANES)
            UNROLL for (int p = 0; p < PARTS; p++) {
                vfloat e = exp_lanes(load(scores + at + p * W) - c->best[i]);
                store(scores + at + p * W, e);
                sums[p] += e;
            }
        UNROLL for (int p = 0; p < PARTS; p++) store(lanes + p * W, sums[p]);
    }
}

/* Values that all queries of a tile see together, then those that only its later tokens see. */
INLINE void add_values(const chunk *c, uint32_t query, uint32_t queries, uint32_t type, const rows *r, uint32_t begin, uint32_t count) {
    static const float one[QUERIES] = {1.0f, 1.0f, 1.0f, 1.0f};
    tile t;
    make_tile(c, query, queries, &t);
    uint32_t shared = seen_of(c, query, begin, count);
    values_of(type, &t, queries, r, 0, shared);
    for (uint32_t i = 1; i < queries; i++) {
        uint32_t end = seen_of(c, query + i, begin, count);
        if (end == shared) continue;
        tile single = {{NULL}, {t.out[i]}, {t.scores[i]}, one, t.dim};
        values_of(type, &single, 1, r, shared, end);
    }
}

INLINE void attend_block(const chunk *c, uint32_t first, uint32_t begin, uint32_t count) {
    const ob_attention *a = c->a;
    rows keys = {a->keys + begin * a->row_bytes, a->row_bytes, c->key_scales, c->num_scales, a->values + begin * a->row_bytes};
    rows values = {a->values + begin * a->row_bytes, a->row_bytes, c->value_scales, c->num_scales, a->keys + (begin + BLOCK) * a->row_bytes};
    uint32_t type = a->kv_type;
    if (type == OB_KV_FLOAT32 && c->queries - first > QUERIES) keys.ahead = values.ahead = NULL; /* read over and over */
    if (c->num_scales) {
        read_scales(keys.data, keys.stride, a->head_dim, count, c->num_scales, c->key_scales);
        read_scales(values.data, values.stride, a->head_dim, count, c->num_scales, c->value_scales);
    }
    if (c->copies || (type != OB_KV_FLOAT32 && c->queries - first > QUERIES)) {
        keys = widen(c, &keys, count, c->keys), values = widen(c, &values, count, c->values);
        type = OB_KV_FLOAT32;
    }
    for (uint32_t i = first; i < c->queries; i += QUERIES) {
        uint32_t queries = c->queries - i < QUERIES ? c->queries - i : QUERIES;
        tile t;
        make_tile(c, i, queries, &t);
        scores_of(type, &t, queries, &keys, seen_of(c, i + queries - 1, begin, count));
    }
    weigh(c, first, begin, count);
    for (uint32_t i = first; i < c->queries; i += QUERIES)
        add_values(c, i, c->queries - i < QUERIES ? c->queries - i : QUERIES, type, &values, begin, count);
}

INLINE void attend_chunk(chunk *c) {
    start_queries(c);
    uint32_t end = c->seen[c->queries - 1], first = 0;
    for (uint32_t begin = 0; begin < end; begin += BLOCK) {
        while (c->seen[first] <= begin) first++; /* queries that see nothing of this block */
        attend_block(c, first, begin, end - begin < BLOCK ? end - begin : BLOCK);
    }
    finish_queries(c);
}

TARGET static void attend(const ob_attention *a, uint8_t *work) {
    uint32_t total = a->num_tokens * a->heads, copies = a->head_dim % OB_LANES != 0;
    uint32_t num_scales = a->kv_type == OB_KV_INT8 && !copies ? (a->head_dim + OB_KV_GROUP - 1) / OB_KV_GROUP : 0;
    uint32_t most = copies ? CHUNK / 4 : CHUNK;
    for (uint32_t first = 0; first < total; first += most) {
        chunk c = {.a = a, .first = first, .queries = total - first < most ? total - first : most,
                   .dim = (a->head_dim + OB_LANES - 1) / OB_LANES * OB_LANES, .num_scales = num_scales, .copies = copies};
        if (!lay_out(&c, work)) {
            ob_attend_ref(a, NULL);
            return;
        }
        attend_chunk(&c);
    }
}

OB_INLINE void enter_attend(ob_kernels *k, uint8_t isa) {
    k->attend = attend;
    k->isa_attend = isa;
}
