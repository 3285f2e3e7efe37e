/* The parts of a decoder: embedding, norms, rotary positions, attention, MLP. Each works on a batch of T tokens whose
 * first sits at s->position, and shares work out by tokens, heads or output rows. */
#include "ob_math.h"
#include "ob_session.h"

/* Runs a task on the threads, or here when there is too little to share. */
void ob_run(ob_session *s, ob_task task, void *argument, uint32_t amount) {
    if (amount > 1 && s->parallel.num_threads > 1) s->parallel.run(s->parallel.context, task, argument);
    else task(argument, 0, 1);
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

void ob_embed(ob_session *s, const uint32_t *tokens, uint32_t num_tokens) {
    const ob_description *d = &s->model->description;
    for (uint32_t t = 0; t < num_tokens; t++) {
        float *x = s->x_TH + (size_t)t * d->hidden_size;
        read_row(&s->model->token_embedding, tokens[t], x);
        if (d->position != OB_POSITION_LEARNED) continue;
        read_row(&s->model->position_embedding, s->position + t, s->normed_TW);
        for (uint32_t k = 0; k < d->hidden_size; k++) x[k] += s->normed_TW[k];
    }
}

/* ---- norms ---- */

static float sum_of(const float *x, uint32_t size) {
    float lanes[OB_LANES] = {0};
    uint32_t k = 0;
    for (; k + 16 <= size; k += 16)
        for (int l = 0; l < 16; l++) lanes[l] += x[k + l];
    for (int l = 0; k < size; k++, l++) lanes[l] += x[k];
    return ob_tree16(lanes);
}

static float sum_of_squares(const float *x, uint32_t size) {
    float lanes[OB_LANES] = {0};
    ob_dot_lanes(x, x, size, lanes);
    return ob_tree16(lanes);
}

static void rms_norm(const float *x, const float *weight, float eps, uint32_t size, float *y) {
    float factor = 1.0f / ob_sqrt(sum_of_squares(x, size) / (float)size + eps);
    for (uint32_t k = 0; k < size; k++) y[k] = x[k] * factor * weight[k];
}

static void layer_norm(const float *x, const float *weight, const float *bias, float eps, uint32_t size, float *y) {
    float mean = sum_of(x, size) / (float)size;
    for (uint32_t k = 0; k < size; k++) y[k] = x[k] - mean;
    float factor = 1.0f / ob_sqrt(sum_of_squares(y, size) / (float)size + eps);
    for (uint32_t k = 0; k < size; k++) y[k] = bias ? y[k] * factor * weight[k] + bias[k] : y[k] * factor * weight[k];
}

typedef struct norm_job {
    const ob_description *d;
    const float *x, *weight, *bias;
    float *y;
    size_t x_stride, y_stride;
    uint32_t size, num_tokens;
} norm_job;

static void norm_tokens(void *argument, uint32_t index, uint32_t num_threads) {
    const norm_job *j = argument;
    uint32_t begin, end;
    ob_share(j->num_tokens, index, num_threads, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        const float *x = j->x + t * j->x_stride;
        float *y = j->y + t * j->y_stride;
        if (j->d->norm == OB_NORM_LAYER) layer_norm(x, j->weight, j->bias, j->d->norm_eps, j->size, y);
        else rms_norm(x, j->weight, j->d->norm_eps, j->size, y);
    }
}

void ob_norm_rows(ob_session *s, const float *x, size_t x_stride, const float *weight, const float *bias, uint32_t size,
                  float *y, size_t y_stride, uint32_t num_tokens) {
    norm_job j = {&s->model->description, x, weight, bias, y, x_stride, y_stride, size, num_tokens};
    ob_run(s, norm_tokens, &j, num_tokens);
    s->prepared.x = NULL;
}

/* Sub-norms are RMSNorm whatever the model's other norms are. */
static void sub_norm_rows(ob_session *s, float *x, const float *weight, uint32_t size, uint32_t num_tokens) {
    for (uint32_t t = 0; weight && t < num_tokens; t++)
        rms_norm(x + t * s->wide, weight, s->model->description.norm_eps, size, x + t * s->wide);
}

/* x += residual_scale * out */
static void add_residual(ob_session *s, uint32_t num_tokens) {
    const uint32_t hidden = s->model->description.hidden_size;
    const float scale = s->model->description.residual_scale;
    for (uint32_t t = 0; t < num_tokens; t++) {
        float *x = s->x_TH + (size_t)t * hidden;
        const float *out = s->out_TW + t * s->wide;
        for (uint32_t k = 0; k < hidden; k++) x[k] += scale * out[k];
    }
}

/* ---- attention ---- */

/* cos and sin of position * theta^(-2i / head_dim), once for all layers of the batch */
void ob_rotary_angles(ob_session *s, uint32_t num_tokens) {
    const uint32_t half = s->model->description.head_dim / 2;
    if (s->model->description.position != OB_POSITION_ROPE) return;
    for (uint32_t t = 0; t < num_tokens; t++)
        for (uint32_t i = 0; i < half; i++) {
            double sine, cosine;
            ob_sincos64((s->position + t) * s->inverse_frequencies[i], &sine, &cosine);
            s->cos_T[(size_t)t * half + i] = (float)cosine;
            s->sin_T[(size_t)t * half + i] = (float)sine;
        }
}

/* Norm and rotation of one token's heads in place; the halves of a head form the pairs. */
static void finish_heads(const ob_session *s, float *heads, const float *norm, uint32_t num_heads, uint32_t t) {
    const ob_description *d = &s->model->description;
    const uint32_t half = d->head_dim / 2;
    const float *cosines = s->cos_T + (size_t)t * half, *sines = s->sin_T + (size_t)t * half;
    for (uint32_t h = 0; h < num_heads; h++) {
        float *x = heads + (size_t)h * d->head_dim;
        if (norm) rms_norm(x, norm, d->norm_eps, d->head_dim, x);
        for (uint32_t i = 0; d->position == OB_POSITION_ROPE && i < half; i++) {
            float a = x[i], b = x[i + half];
            x[i] = a * cosines[i] - b * sines[i];
            x[i + half] = b * cosines[i] + a * sines[i];
        }
    }
}

typedef struct attend_job {
    ob_session *s;
    const float *keys, *values; /* this layer's cache */
    uint32_t num_tokens;
} attend_job;

/* Items are (token, head) pairs. */
static void attend_heads(void *argument, uint32_t index, uint32_t num_threads) {
    const attend_job *j = argument;
    ob_session *s = j->s;
    const ob_description *d = &s->model->description;
    const uint32_t heads_per_key = d->num_heads / d->num_key_value_heads;
    const float scale = 1.0f / ob_sqrt((float)d->head_dim);
    float *scores = s->scores + (size_t)index * s->max_positions;
    uint32_t begin, end;
    ob_share((uint64_t)j->num_tokens * d->num_heads, index, num_threads, &begin, &end);
    for (uint32_t item = begin; item < end; item++) {
        uint32_t t = item / d->num_heads, head = item % d->num_heads;
        size_t key_column = (size_t)(head / heads_per_key) * d->head_dim, column = (size_t)head * d->head_dim;
        s->model->kernels.attend(s->q_TW + t * s->wide + column, j->keys + key_column, j->values + key_column, s->kv_width,
                                 d->head_dim, s->position + t + 1, scale, scores, s->attended_TW + t * s->wide + column);
    }
}

void ob_attention_block(ob_session *s, uint32_t layer, uint32_t num_tokens) {
    const ob_description *d = &s->model->description;
    const ob_layer *l = &s->model->layers[layer];
    size_t cache = (size_t)layer * s->max_positions * s->kv_width;
    float *keys = s->keys + cache + s->position * s->kv_width, *values = s->values + cache + s->position * s->kv_width;
    ob_norm_rows(s, s->x_TH, d->hidden_size, l->attention_norm, l->attention_norm_bias, d->hidden_size, s->normed_TW, s->wide,
                 num_tokens);
    const ob_product qkv[] = {{&l->q, s->q_TW, s->wide}, {&l->k, keys, s->kv_width}, {&l->v, values, s->kv_width}};
    ob_multiply(s, s->normed_TW, num_tokens, qkv, 3);
    for (uint32_t t = 0; t < num_tokens; t++) {
        finish_heads(s, s->q_TW + t * s->wide, l->q_norm, d->num_heads, t);
        finish_heads(s, keys + t * s->kv_width, l->k_norm, d->num_key_value_heads, t);
    }
    attend_job j = {s, s->keys + cache, s->values + cache, num_tokens};
    ob_run(s, attend_heads, &j, UINT32_MAX);
    sub_norm_rows(s, s->attended_TW, l->attention_sub_norm, d->num_heads * d->head_dim, num_tokens);
    s->prepared.x = NULL;
    const ob_product o = {&l->o, s->out_TW, s->wide};
    ob_multiply(s, s->attended_TW, num_tokens, &o, 1);
    add_residual(s, num_tokens);
}

/* ---- MLP ---- */

static void gelu(float *up, uint32_t size) {
    for (uint32_t k = 0; k < size; k++) up[k] = ob_gelu(up[k]);
}

static void relu2(float *up, uint32_t size) {
    for (uint32_t k = 0; k < size; k++) {
        float r = up[k] > 0.0f ? up[k] : 0.0f;
        up[k] = r * r;
    }
}

static void swiglu(const float *gate, float *up, uint32_t size) {
    for (uint32_t k = 0; k < size; k++) up[k] = ob_silu(gate[k]) * up[k];
}

static void relu2_glu(const float *gate, float *up, uint32_t size) {
    for (uint32_t k = 0; k < size; k++) {
        float r = gate[k] > 0.0f ? gate[k] : 0.0f;
        up[k] = r * r * up[k];
    }
}

typedef struct mlp_job {
    ob_session *s;
    uint32_t num_tokens;
} mlp_job;

static void activate_tokens(void *argument, uint32_t index, uint32_t num_threads) {
    const mlp_job *j = argument;
    const ob_description *d = &j->s->model->description;
    uint32_t begin, end;
    ob_share(j->num_tokens, index, num_threads, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        float *up = j->s->up_TW + t * j->s->wide, *gate = j->s->gate_TW + t * j->s->wide;
        switch (d->mlp) {
        case OB_MLP_GELU: gelu(up, d->intermediate_size); break;
        case OB_MLP_RELU2: relu2(up, d->intermediate_size); break;
        case OB_MLP_SWIGLU: swiglu(gate, up, d->intermediate_size); break;
        default: relu2_glu(gate, up, d->intermediate_size); break;
        }
    }
}

void ob_mlp_block(ob_session *s, uint32_t layer, uint32_t num_tokens) {
    const ob_description *d = &s->model->description;
    const ob_layer *l = &s->model->layers[layer];
    ob_norm_rows(s, s->x_TH, d->hidden_size, l->mlp_norm, l->mlp_norm_bias, d->hidden_size, s->normed_TW, s->wide, num_tokens);
    const ob_product products[] = {{&l->up, s->up_TW, s->wide}, {&l->gate, s->gate_TW, s->wide}};
    ob_multiply(s, s->normed_TW, num_tokens, products, ob_has_gate(d) ? 2 : 1);
    mlp_job j = {s, num_tokens};
    ob_run(s, activate_tokens, &j, num_tokens);
    sub_norm_rows(s, s->up_TW, l->mlp_sub_norm, d->intermediate_size, num_tokens);
    s->prepared.x = NULL;
    const ob_product down = {&l->down, s->out_TW, s->wide};
    ob_multiply(s, s->up_TW, num_tokens, &down, 1);
    add_residual(s, num_tokens);
}
