/* A session in the caller's memory, and the forward pass over its layers. */
#include "ob_session.h"

#include "ob_error.h"
#include "ob_math.h"

enum { ALIGNMENT = 64, DEFAULT_BATCH = 128 /* unpacking weights costs next to nothing by then, and
                                                         * the codes of a batch still fit a second-level cache */ };

/* ---- memory: one walk over the buffers, once to measure and once to place them ---- */

typedef struct arena {
    uint8_t *base; /* NULL while measuring */
    uint64_t used;
    int overflow;
} arena;

/* count items of `size` bytes, aligned. All factors are below 2^32, so that one product at a time can be checked. */
static void *take(arena *a, uint64_t count, uint64_t size) {
    const uint64_t limit = SIZE_MAX / 4;
    if (!size) return NULL;
    if (count > limit / size || a->used > limit - count * size) {
        a->overflow = 1;
        return NULL;
    }
    void *at = a->base ? a->base + a->used : NULL;
    a->used += (count * size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
}

static uint32_t most(uint32_t a, uint32_t b) { return a > b ? a : b; }

/* An odd number of 64-byte lines. */
static size_t odd_lines(size_t bytes) { return (bytes + 63) / 64 * 64 | 64; }

static void take_rows(arena *a, ob_rows *rows, uint64_t batch, size_t floats) {
    rows->stride = odd_lines(floats * sizeof(float)) / sizeof(float);
    rows->at = take(a, batch * rows->stride, sizeof(float));
}

/* The codes and group sums of the most demanding matrix. */
static void measure_inputs(ob_session *s, const ob_weights *w, int *code_floats) {
    size_t stride = odd_lines(most(w->codes_cols, w->cols));
    if (stride > s->codes_stride) s->codes_stride = stride;
    if (w->num_groups > s->num_sums) s->num_sums = w->num_groups;
    if (w->activation != OB_ACTIVATION_NONE && w->layout < OB_LAYOUT_INT8) *code_floats = 1;
}

/* Returns whether any matrix wants codes as floats. */
static int measure_model(ob_session *s, const ob_model *m) {
    const ob_description *d = &m->description;
    int code_floats = 0;
    measure_inputs(s, &m->head, &code_floats);
    for (uint32_t i = 0; i < d->num_layers; i++) {
        const ob_layer *l = &m->layers[i];
        const ob_weights *all[] = {&l->q, &l->k, &l->v, &l->o, &l->up, &l->down, ob_has_gate(d) ? &l->gate : &l->up};
        for (size_t j = 0; j < sizeof all / sizeof *all; j++) measure_inputs(s, all[j], &code_floats);
    }
    s->kv_row_bytes = ob_kv_row_bytes(s->kv_type, d->head_dim);
    return code_floats;
}

/* What attention and the MLP use in turn. */
static void place_blocks(ob_session *s, const ob_description *d, arena *a) {
    const uint64_t batch = s->max_batch, begin = a->used;
    const size_t queries = (size_t)d->num_heads * d->head_dim, keys = (size_t)d->num_key_value_heads * d->head_dim;
    take_rows(a, &s->q_TQ, batch, queries);
    take_rows(a, &s->k_TK, batch, keys);
    take_rows(a, &s->v_TK, batch, keys);
    take_rows(a, &s->attended_TQ, batch, queries);
    const uint64_t end = a->used;
    a->used = begin;
    take_rows(a, &s->up_TI, batch, d->intermediate_size);
    if (ob_has_gate(d)) take_rows(a, &s->gate_TI, batch, d->intermediate_size);
    if (a->used < end) a->used = end;
}

static void place_buffers(ob_session *s, const ob_description *d, int code_floats, arena *a) {
    const uint64_t batch = s->max_batch;
    s->sequences = take(a, s->num_sequences, sizeof(ob_sequence));
    s->places = take(a, batch, sizeof(ob_place));
    s->stretches = take(a, batch, sizeof(ob_stretch));
    s->x_TH = (ob_rows){take(a, batch * d->hidden_size, sizeof(float)), d->hidden_size};
    take_rows(a, &s->normed_TH, batch, d->hidden_size);
    place_blocks(s, d, a);
    if (code_floats) take_rows(a, &s->code_floats_TW, batch, most(most(d->hidden_size, d->intermediate_size), d->num_heads * d->head_dim));
    s->codes_T = take(a, batch, s->codes_stride);
    s->sums_T = take(a, batch * s->num_sums, sizeof(int32_t));
    s->scales_T = take(a, batch, sizeof(float));
    s->ones_T = take(a, batch, sizeof(float));
    s->work = take(a, s->parallel.num_threads, s->model->kernels.isa == OB_ISA_SCALAR ? 0 : OB_WORK_BYTES);
    s->cos_T = take(a, batch * (d->head_dim / 2 + 1), sizeof(float));
    s->sin_T = take(a, batch * (d->head_dim / 2 + 1), sizeof(float));
    s->inverse_frequencies = take(a, d->head_dim / 2 + 1, sizeof(double));
    /* last: the host gives what is before it large pages, and this only as many as it comes to hold */
    const uint64_t cached = (uint64_t)d->num_layers * s->num_sequences * s->max_positions; /* < 2^16 * 2^11 * 2^25 */
    s->keys = take(a, cached, d->num_key_value_heads * s->kv_row_bytes);
    s->values = take(a, cached, d->num_key_value_heads * s->kv_row_bytes);
}

/* Fills the sizes of a session and places its buffers behind it (base NULL: only measures). */
static ob_status lay_out(ob_session *s, const ob_model *model, const ob_session_options *o, uint8_t *base, uint64_t *bytes,
                         ob_error *error) {
    const ob_description *d = &model->description;
    memset(s, 0, sizeof *s);
    s->model = model;
    s->max_positions = o && o->max_positions ? o->max_positions : d->max_seq_len;
    s->max_batch = o && o->max_batch ? o->max_batch : DEFAULT_BATCH;
    s->num_sequences = o && o->num_sequences ? o->num_sequences : 1;
    s->kv_type = o && o->kv_type ? o->kv_type : OB_KV_FLOAT16;
    s->parallel.num_threads = 1;
    if (o && o->parallel) s->parallel = *o->parallel;
    if (s->max_positions > d->max_seq_len)
        return ob_fail(error, OB_ERROR_ARGUMENT, "a context of %u tokens was asked for, the model's longest is %u", s->max_positions,
                       d->max_seq_len);
    if (s->max_batch > OB_MAX_BATCH)
        return ob_fail(error, OB_ERROR_ARGUMENT, "max_batch is %u, expected 1 to %u", s->max_batch, (uint32_t)OB_MAX_BATCH);
    if (s->parallel.num_threads < 1 || s->parallel.num_threads > OB_MAX_THREADS)
        return ob_fail(error, OB_ERROR_ARGUMENT, "num_threads is %u, expected 1 to %u", s->parallel.num_threads,
                       (uint32_t)OB_MAX_THREADS);
    if (s->num_sequences > OB_MAX_SEQUENCES)
        return ob_fail(error, OB_ERROR_ARGUMENT, "num_sequences is %u, expected 1 to %u", s->num_sequences, (uint32_t)OB_MAX_SEQUENCES);
    if (s->kv_type >= OB_NUM_KV_TYPES) return ob_fail(error, OB_ERROR_ARGUMENT, "kv_type is %u, expected 0 to 3", s->kv_type);
    int code_floats = measure_model(s, model);
    arena a = {base, 0, 0};
    take(&a, 1, sizeof *s);
    place_buffers(s, d, code_floats, &a);
    if (a.overflow)
        return ob_fail(error, OB_ERROR_MEMORY, "a context of %u tokens (%u sequences) needs more memory than can be addressed",
                       s->max_positions, s->num_sequences);
    *bytes = a.used;
    return OB_OK;
}

ob_status ob_session_arena_bytes(const ob_model *model, const ob_session_options *options, size_t *bytes, ob_error *error) {
    ob_session s;
    uint64_t needed = 0;
    if (!model || !bytes) return ob_fail(error, OB_ERROR_ARGUMENT, "model or bytes is a null pointer");
    ob_status status = lay_out(&s, model, options, NULL, &needed, error);
    *bytes = (size_t)needed;
    return status;
}

ob_status ob_session_init(const ob_model *model, const ob_session_options *options, void *arena, size_t arena_bytes,
                          ob_session **session, ob_error *error) {
    size_t needed = 0;
    uint64_t used;
    if (!arena || !session || (uintptr_t)arena % ALIGNMENT)
        return ob_fail(error, OB_ERROR_ARGUMENT, "the arena is a null pointer or not 64-byte aligned");
    ob_status status = ob_session_arena_bytes(model, options, &needed, error);
    if (status) return status;
    if (arena_bytes < needed)
        return ob_fail(error, OB_ERROR_MEMORY, "the session's arena has %U bytes and needs %U", (uint64_t)arena_bytes,
                       (uint64_t)needed);
    ob_session *s = arena;
    if ((status = lay_out(s, model, options, arena, &used, error))) return status;
    const ob_description *d = &model->description;
    memset(s->sequences, 0, s->num_sequences * sizeof *s->sequences);
    for (uint32_t t = 0; t < s->max_batch; t++) s->ones_T[t] = 1.0f;
    for (uint32_t i = 0; i < d->head_dim / 2; i++)
        s->inverse_frequencies[i] = model->rope_frequencies ? model->rope_frequencies[i]
                                                            : ob_exp64(-(2.0 * i / d->head_dim) * ob_log64(d->rope_theta));
    *session = s;
    return OB_OK;
}

/* ---- forward ---- */

static void trace(ob_session *s, uint32_t point, uint32_t num_tokens) {
    if (s->trace)
        s->trace(s->trace_user, point, s->places[0].position, s->x_TH.at, num_tokens, s->model->description.hidden_size);
}

/* Logits of the first num_tokens rows of the residual stream. */
static void head(ob_session *s, uint32_t num_tokens, float *logits) {
    const ob_model *m = s->model;
    const ob_norm norm = {m->final_norm, m->final_norm_bias, m->description.norm_eps, m->description.norm};
    const ob_product product = {&m->head, {logits, m->description.vocab_size}};
    if (num_tokens) ob_multiply(s, &norm, s->x_TH, s->normed_TH, num_tokens, &product, 1, OB_THEN_NOTHING);
}

/* Gives the next token of the batch the next row of its sequence. */
static void place_token(ob_session *s, uint32_t t, uint32_t token, uint32_t sequence) {
    s->places[t] = (ob_place){token, sequence, s->sequences[sequence].position++};
    if (t == 0) s->num_stretches = 0;
    if (t == 0 || s->places[t - 1].sequence != sequence) s->stretches[s->num_stretches++] = (ob_stretch){t, 0};
    s->stretches[s->num_stretches - 1].count++;
}

/* The layers, for the tokens in s->places. */
static void run_layers(ob_session *s, uint32_t num_tokens) {
    ob_begin_batch(s, num_tokens);
    trace(s, 0, num_tokens);
    for (uint32_t layer = 0; layer < s->model->description.num_layers; layer++) {
        ob_attention_block(s, layer, num_tokens);
        ob_mlp_block(s, layer, num_tokens);
        trace(s, layer + 1, num_tokens);
    }
}

/* Moves row t of the residual stream, which the layers are done with, among the rows that the head reads. */
static void choose_row(ob_session *s, uint32_t t, uint32_t row) {
    if (t != row) memcpy(ob_row(s->x_TH, row), ob_row(s->x_TH, t), s->x_TH.stride * sizeof(float));
}

static ob_status check_token(const ob_session *s, uint32_t token, uint32_t index, ob_error *error) {
    const uint32_t vocab = s->model->description.vocab_size;
    if (token < vocab) return OB_OK;
    return ob_fail(error, OB_ERROR_ARGUMENT, "token %u at place %u is outside the vocabulary of %u", token, index, vocab);
}

static ob_status check_room(const ob_session *s, const ob_sequence *sequence, uint32_t num_tokens, ob_error *error) {
    if (num_tokens <= s->max_positions - sequence->position) return OB_OK;
    return ob_fail(error, OB_ERROR_FULL, "the context is full: %u tokens more do not fit after %u of %u", num_tokens,
                   sequence->position, s->max_positions);
}

static ob_status check_tokens(const ob_session *s, const uint32_t *tokens, uint32_t num_tokens, uint32_t which,
                              const float *logits, ob_error *error) {
    if (!num_tokens || !tokens) return ob_fail(error, OB_ERROR_ARGUMENT, "no tokens were given");
    if (which > OB_LOGITS_ALL || (which != OB_LOGITS_NONE && !logits))
        return ob_fail(error, OB_ERROR_ARGUMENT, "logits are asked for without a place to put them");
    ob_status status = check_room(s, &s->sequences[0], num_tokens, error);
    for (uint32_t i = 0; i < num_tokens && !status; i++) status = check_token(s, tokens[i], i, error);
    return status;
}

ob_status ob_forward(ob_session *s, const uint32_t *tokens, uint32_t num_tokens, uint32_t which, float *logits,
                     ob_error *error) {
    if (!s) return ob_fail(error, OB_ERROR_ARGUMENT, "the session is a null pointer");
    ob_status status = check_tokens(s, tokens, num_tokens, which, logits, error);
    if (status) return status;
    const size_t vocab = s->model->description.vocab_size;
    for (uint32_t done = 0; done < num_tokens;) {
        uint32_t batch = num_tokens - done < s->max_batch ? num_tokens - done : s->max_batch;
        for (uint32_t t = 0; t < batch; t++) place_token(s, t, tokens[done + t], 0);
        run_layers(s, batch);
        if (which == OB_LOGITS_ALL) head(s, batch, logits + done * vocab);
        else if (which == OB_LOGITS_LAST && done + batch == num_tokens) {
            choose_row(s, batch - 1, 0);
            head(s, 1, logits);
        }
        done += batch;
    }
    return OB_OK;
}

static ob_status check_items(const ob_session *s, const ob_batch_item *items, uint32_t num_items, const float *logits,
                             ob_error *error) {
    ob_status status = OB_OK;
    if (!num_items || !items) return ob_fail(error, OB_ERROR_ARGUMENT, "no tokens were given");
    for (uint32_t i = 0; i < s->num_sequences; i++) s->sequences[i].wanted = 0;
    for (uint32_t i = 0; i < num_items && !status; i++) {
        if (items[i].sequence >= s->num_sequences)
            return ob_fail(error, OB_ERROR_ARGUMENT, "sequence %u at place %u, the session has %u", items[i].sequence, i,
                           s->num_sequences);
        if (items[i].wants_logits && !logits)
            return ob_fail(error, OB_ERROR_ARGUMENT, "logits are asked for without a place to put them");
        ob_sequence *sequence = &s->sequences[items[i].sequence];
        status = check_room(s, sequence, ++sequence->wanted, error);
        if (!status) status = check_token(s, items[i].token, i, error);
    }
    return status;
}

ob_status ob_forward_batch(ob_session *s, const ob_batch_item *items, uint32_t num_items, float *logits, ob_error *error) {
    if (!s) return ob_fail(error, OB_ERROR_ARGUMENT, "the session is a null pointer");
    ob_status status = check_items(s, items, num_items, logits, error);
    if (status) return status;
    for (uint32_t done = 0; done < num_items;) {
        uint32_t batch = num_items - done < s->max_batch ? num_items - done : s->max_batch, wanted = 0;
        for (uint32_t t = 0; t < batch; t++) place_token(s, t, items[done + t].token, items[done + t].sequence);
        run_layers(s, batch);
        for (uint32_t t = 0; t < batch; t++)
            if (items[done + t].wants_logits) choose_row(s, t, wanted++);
        head(s, wanted, logits);
        if (wanted) logits += wanted * (size_t)s->model->description.vocab_size;
        done += batch;
    }
    return OB_OK;
}

uint32_t ob_session_max_positions(const ob_session *session) { return session->max_positions; }

void ob_session_set_trace(ob_session *session, ob_trace function, void *user) {
    session->trace = function;
    session->trace_user = user;
}
