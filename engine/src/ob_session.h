/* A session: the KV cache of its sequences and the work memory of a batch. Legend: T tokens of the batch, H hidden_size,
 * Q num_heads * head_dim, K num_key_value_heads * head_dim, I intermediate_size, W the largest of H, Q and I. */
#ifndef OB_SESSION_H
#define OB_SESSION_H

#include "ob_model.h"

/* [T, a size of the model]: row t at `at` + t * stride. Strides are odd multiples of 64 bytes, so that the rows of a
 * batch do not fall on the same lines of the first cache (4 KiB apart they would). */
typedef struct ob_rows {
    float *at;
    size_t stride;
} ob_rows;

static inline float *ob_row(ob_rows rows, uint32_t t) { return rows.at + t * rows.stride; }

/* Which inputs the shared buffers hold at present, so that q, k and v quantise their input once. */
typedef struct ob_prepared {
    const float *x; /* NULL: nothing */
    const float *turn;
    uint32_t cols, tile, group;
    uint8_t activation, integer; /* integer: int8 codes, else floats */
    ob_inputs inputs;
} ob_prepared;

/* One sequence. Row p of its cache has the rotary position p + offset: a shift moves rows, not angles. */
typedef struct ob_sequence {
    uint32_t position, offset; /* rows in use; rows dropped before them */
    uint32_t wanted;           /* tokens a batch means to add: work space of its check */
} ob_sequence;

/* A token of the batch and the cache row it gets. */
typedef struct ob_place {
    uint32_t token, sequence, position;
} ob_place;

/* Consecutive tokens of the batch that belong to one sequence, as attention takes them. */
typedef struct ob_stretch {
    uint32_t first, count;
} ob_stretch;

struct ob_session {
    const ob_model *model;
    ob_parallel parallel;
    ob_trace trace;
    void *trace_user;
    uint32_t max_positions, max_batch, num_sequences, num_stretches;
    ob_sequence *sequences;       /* [num_sequences] */
    ob_place *places;             /* [T] */
    ob_stretch *stretches;        /* [num_stretches] of at most T */
    uint32_t kv_type;             /* OB_KV_*, DEFAULT resolved */
    size_t kv_row_bytes;          /* a cached key or value of one position and key-value head */
    size_t codes_stride, num_sums;/* int8 codes and group sums of one token, for the most demanding tensor */
    uint8_t *keys, *values;       /* [num_layers, num_sequences, num_key_value_heads, max_positions, kv_row_bytes] */
    ob_rows x_TH;                 /* residual stream; no gaps between rows, as a trace sees it */
    ob_rows normed_TH;            /* inputs of a block, then its output */
    ob_rows q_TQ, k_TK, v_TK, attended_TQ; /* attention; the MLP uses the same memory */
    ob_rows gate_TI, up_TI;
    ob_rows code_floats_TW;       /* int8 codes as floats, where float weights ask for quantised inputs; else NULL */
    int8_t *codes_T;              /* [T, codes_stride] */
    float *scales_T, *ones_T;
    int32_t *sums_T;              /* [T, num_sums] */
    uint8_t *work;                /* [num_threads, OB_WORK_BYTES] */
    float *cos_T, *sin_T;         /* [T, head_dim / 2] */
    double *inverse_frequencies;  /* [head_dim / 2]; the file's, or those of rope_theta */
    ob_prepared prepared;
};

/* ob_inputs.c: norm(x) as the kernels of w want it; the normed rows are in y (may be x). */
const ob_inputs *ob_prepare_inputs(ob_session *s, const ob_norm *norm, const ob_weights *w, ob_rows x, ob_rows y,
                                   uint32_t num_tokens);

/* Whether the buffers hold the prepared input of w as well. */
static inline int ob_prepared_serves(const ob_prepared *p, const ob_weights *w) {
    return p->turn == w->turn && p->cols == w->cols && p->tile == w->tile && p->group == w->group && p->activation == w->activation &&
           p->integer == (w->activation != OB_ACTIVATION_NONE && w->layout >= OB_LAYOUT_INT8);
}

/* ob_linear.c: one or more layers that read the same x, and what follows row by row, shared out by output rows. */
typedef struct ob_product {
    const ob_weights *w;
    ob_rows y;
} ob_product;
enum { OB_THEN_NOTHING,
       OB_THEN_ACTIVATE, /* products are {up} or {up, gate}: the MLP's activation in up */
       OB_THEN_ADD };    /* x_TH += residual_scale * y */
void ob_multiply(ob_session *s, const ob_norm *norm, ob_rows x, ob_rows normed, uint32_t num_tokens,
                 const ob_product *products, uint32_t count, int then);

/* ob_layers.c */
void ob_run(ob_session *s, ob_task task, void *argument, uint32_t num_items);
void ob_begin_batch(ob_session *s, uint32_t num_tokens); /* embedding and rotary angles */
void ob_rotary_angle(const ob_session *s, uint32_t position, float *cosines, float *sines);
void ob_attention_block(ob_session *s, uint32_t layer, uint32_t num_tokens);
void ob_mlp_block(ob_session *s, uint32_t layer, uint32_t num_tokens);

/* A sequence's rows of one layer and key-value head in s->keys or s->values. */
static inline uint8_t *ob_cache_rows(const ob_session *s, uint8_t *cache, uint32_t layer, uint32_t sequence, uint32_t head) {
    uint64_t index = ((uint64_t)layer * s->num_sequences + sequence) * s->model->description.num_key_value_heads + head;
    return cache + index * s->max_positions * s->kv_row_bytes;
}

/* How many items to cut `total` things into, at least `smallest` of them each: several for each thread, so that nobody
 * waits long for one that got a slow processor. */
static inline uint32_t ob_num_items(const ob_session *s, uint64_t total, uint32_t smallest) {
    uint64_t most = total / smallest, wanted = s->parallel.num_threads > 1 ? 4ull * s->parallel.num_threads : 1;
    return (uint32_t)(most < 1 ? 1 : most < wanted ? most : wanted);
}

/* Part `index` of `count` equal ones: [*begin, *end). */
static inline void ob_share(uint64_t total, uint32_t index, uint32_t count, uint32_t *begin, uint32_t *end) {
    *begin = (uint32_t)(total * index / count);
    *end = (uint32_t)(total * (index + 1) / count);
}

#endif
