/* The parts of a decoder: embedding, norms, rotary positions, attention, MLP. Each works on the batch of T
 * tokens in s->places and shares work out by tokens, heads or output rows. */
#include "ob_math.h"
#include "ob_session.h"

/* Runs a task on the threads, or here when there is too little to share. */
void ob_run(ob_session *s, ob_task task, void *argument, uint32_t num_items) {
    if (num_items > 1 && s->parallel.num_threads > 1) s->parallel.run(s->parallel.context, task, argument, num_items);
    else
        for (uint32_t i = 0; i < num_items; i++) task(argument, i, num_items, 0);
}

/* ---- embedding ---- */

/* y[k] = row of the table, times its scales */
static void read_row(const ob_weights *w, uint32_t row, float *y) {
    for (uint32_t g = 0; g < w->num_groups; g++) {
        float *part = y + (size_t)g * w->group, scale = ob_scale_at(w, row, g);
        uint32_t count = ob_group_length(w, g);
        ob_unpack_floats(w, row, g, 0, count, part);
        for (uint32_t k = 0; k < count; k++) part[k] *= scale;
    }
}

void ob_embed(ob_session *s, uint32_t num_tokens) {
    const ob_description *d = &s->model->description;
    for (uint32_t t = 0; t < num_tokens; t++) {
        float *x = s->x_TH + (size_t)t * d->hidden_size;
        read_row(&s->model->token_embedding, s->places[t].token, x);
        if (d->position != OB_POSITION_LEARNED) continue;
        read_row(&s->model->position_embedding, s->places[t].position, s->normed_TW);
        for (uint32_t k = 0; k < d->hidden_size; k++) x[k] += s->normed_TW[k];
    }
}

/* ---- attention ---- */

/* cos and sin of position * theta^(-2i / head_dim) */
void ob_rotary_angle(const ob_session *s, uint32_t position, float *cosines, float *sines) {
    for (uint32_t i = 0; i < s->model->description.head_dim / 2; i++) {
        double sine, cosine;
        ob_sincos64(position * s->inverse_frequencies[i], &sine, &cosine);
        cosines[i] = (float)cosine;
        sines[i] = (float)sine;
    }
}

/* Once for all layers of the batch. */
void ob_rotary_angles(ob_session *s, uint32_t num_tokens) {
    const size_t half = s->model->description.head_dim / 2;
    if (s->model->description.position != OB_POSITION_ROPE) return;
    for (uint32_t t = 0; t < num_tokens; t++)
        ob_rotary_angle(s, s->places[t].position + s->sequences[s->places[t].sequence].offset, s->cos_T + t * half,
                        s->sin_T + t * half);
}

static uint8_t *cache_row(const ob_session *s, uint8_t *cache, uint32_t layer, uint32_t head, const ob_place *place) {
    return ob_cache_rows(s, cache, layer, place->sequence, head) + place->position * s->kv_row_bytes;
}

/* Norm and rotation of one token's heads in place; the halves of a head form the pairs. */
static void finish_heads(const ob_session *s, float *heads, const float *weight, uint32_t num_heads, uint32_t t) {
    const ob_description *d = &s->model->description;
    const uint32_t half = d->head_dim / 2;
    const ob_norm norm = {weight, NULL, d->norm_eps, OB_NORM_RMS};
    for (uint32_t h = 0; h < num_heads; h++) {
        float *x = heads + (size_t)h * d->head_dim;
        if (weight) s->model->kernels.norm_quantize(&norm, NULL, x, d->head_dim, x, 0, NULL, NULL, NULL);
        if (d->position == OB_POSITION_ROPE)
            s->model->kernels.rotate(x, s->cos_T + (size_t)t * half, s->sin_T + (size_t)t * half, half);
    }
}

typedef struct attend_job {
    ob_session *s;
    uint32_t layer, num_tokens;
} attend_job;

/* Tokens [first, first + count) of one stretch against one key-value head. */
static void attend_stretch(ob_session *s, uint32_t layer, uint32_t head, uint32_t first, uint32_t count, uint8_t *work) {
    const ob_description *d = &s->model->description;
    const uint32_t heads = d->num_heads / d->num_key_value_heads;
    const ob_place *last = &s->places[first + count - 1];
    size_t place = first * s->wide + (size_t)head * heads * d->head_dim;
    const ob_attention a = {ob_cache_rows(s, s->keys, layer, last->sequence, head),
                            ob_cache_rows(s, s->values, layer, last->sequence, head), s->kv_row_bytes, s->q_TW + place,
                            s->attended_TW + place, s->wide, s->wide, s->kv_type, d->head_dim, heads, count,
                            last->position + 1, 1.0f / ob_sqrt((float)d->head_dim)};
    s->model->kernels.attend(&a, work);
}

/* Items are shares of the key-value heads' (head, token) pairs. */
static void attend_heads(void *argument, uint32_t item, uint32_t num_items, uint32_t thread) {
    const attend_job *j = argument;
    ob_session *s = j->s;
    uint8_t *work = s->work ? s->work + (size_t)thread * OB_WORK_BYTES : NULL;
    uint32_t begin, end;
    ob_share((uint64_t)s->model->description.num_key_value_heads * j->num_tokens, item, num_items, &begin, &end);
    while (begin < end) {
        uint32_t head = begin / j->num_tokens, first = begin % j->num_tokens, stretch = 0;
        while (s->stretches[stretch].first + s->stretches[stretch].count <= first) stretch++;
        uint32_t count = s->stretches[stretch].first + s->stretches[stretch].count - first;
        if (count > end - begin) count = end - begin;
        attend_stretch(s, j->layer, head, first, count, work);
        begin += count;
    }
}

static void store_keys_and_values(ob_session *s, const ob_layer *l, uint32_t layer, uint32_t num_tokens) {
    const ob_description *d = &s->model->description;
    for (uint32_t t = 0; t < num_tokens; t++) {
        float *k = s->k_TW + t * s->wide, *v = s->v_TW + t * s->wide;
        finish_heads(s, s->q_TW + t * s->wide, l->q_norm, d->num_heads, t);
        finish_heads(s, k, l->k_norm, d->num_key_value_heads, t);
        for (uint32_t h = 0; h < d->num_key_value_heads; h++) {
            s->model->kernels.kv_store(s->kv_type, k + (size_t)h * d->head_dim, d->head_dim,
                                       cache_row(s, s->keys, layer, h, &s->places[t]));
            s->model->kernels.kv_store(s->kv_type, v + (size_t)h * d->head_dim, d->head_dim,
                                       cache_row(s, s->values, layer, h, &s->places[t]));
        }
    }
}

/* x += residual_scale * out */
static void add_residual(ob_session *s, uint32_t num_tokens) {
    const ob_description *d = &s->model->description;
    for (uint32_t t = 0; t < num_tokens; t++)
        s->model->kernels.add(s->x_TH + (size_t)t * d->hidden_size, s->out_TW + t * s->wide, d->residual_scale, d->hidden_size);
}

void ob_attention_block(ob_session *s, uint32_t layer, uint32_t num_tokens) {
    const ob_description *d = &s->model->description;
    const ob_layer *l = &s->model->layers[layer];
    const ob_norm norm = {l->attention_norm, l->attention_norm_bias, d->norm_eps, d->norm};
    const ob_norm sub_norm = {l->attention_sub_norm, NULL, d->norm_eps, OB_NORM_RMS}; /* RMSNorm whatever the others are */
    const ob_product qkv[] = {{&l->q, s->q_TW, s->wide}, {&l->k, s->k_TW, s->wide}, {&l->v, s->v_TW, s->wide}};
    ob_multiply(s, &norm, s->x_TH, d->hidden_size, s->normed_TW, num_tokens, qkv, 3);
    store_keys_and_values(s, l, layer, num_tokens);
    attend_job j = {s, layer, num_tokens};
    ob_run(s, attend_heads, &j, s->parallel.num_threads);
    const ob_product o = {&l->o, s->out_TW, s->wide};
    ob_multiply(s, &sub_norm, s->attended_TW, s->wide, s->attended_TW, num_tokens, &o, 1);
    add_residual(s, num_tokens);
}

/* ---- MLP ---- */

typedef struct mlp_job {
    ob_session *s;
    uint32_t num_tokens;
} mlp_job;

static void activate_tokens(void *argument, uint32_t item, uint32_t num_items, uint32_t thread) {
    const mlp_job *j = argument;
    const ob_description *d = &j->s->model->description;
    uint32_t begin, end;
    (void)thread;
    ob_share(j->num_tokens, item, num_items, &begin, &end);
    for (uint32_t t = begin; t < end; t++)
        j->s->model->kernels.activate(d->mlp, j->s->gate_TW + t * j->s->wide, j->s->up_TW + t * j->s->wide, d->intermediate_size);
}

void ob_mlp_block(ob_session *s, uint32_t layer, uint32_t num_tokens) {
    const ob_description *d = &s->model->description;
    const ob_layer *l = &s->model->layers[layer];
    const ob_norm norm = {l->mlp_norm, l->mlp_norm_bias, d->norm_eps, d->norm};
    const ob_norm sub_norm = {l->mlp_sub_norm, NULL, d->norm_eps, OB_NORM_RMS};
    const ob_product products[] = {{&l->up, s->up_TW, s->wide}, {&l->gate, s->gate_TW, s->wide}};
    ob_multiply(s, &norm, s->x_TH, d->hidden_size, s->normed_TW, num_tokens, products, ob_has_gate(d) ? 2 : 1);
    mlp_job j = {s, num_tokens};
    ob_run(s, activate_tokens, &j, num_tokens < s->parallel.num_threads ? num_tokens : s->parallel.num_threads);
    const ob_product down = {&l->down, s->out_TW, s->wide};
    ob_multiply(s, &sub_norm, s->up_TW, s->wide, s->up_TW, num_tokens, &down, 1);
    add_residual(s, num_tokens);
}
