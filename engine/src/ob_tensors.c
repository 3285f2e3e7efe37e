/* The tensor table: every tensor must have the shape the model description asks for, lie inside the file, and be there
 * exactly once. After this the forward pass needs no check of its own. */
#include "ob_error.h"
#include "ob_model.h"

/* Where a tensor goes and what it must look like. Exactly one of `vector` and `matrix` is set. */
typedef struct place {
    const float **vector;
    ob_weights *matrix;
    uint32_t rows, cols;
} place;

static place vector_of(const float **slot, uint32_t size) { return (place){slot, NULL, 1, size}; }
static place matrix_of(ob_weights *slot, uint32_t rows, uint32_t cols) { return (place){NULL, slot, rows, cols}; }

static place no_place(void) { return (place){NULL, NULL, 0, 0}; }

static place global_place(ob_model *m, uint32_t kind) {
    const ob_description *d = &m->description;
    switch (kind) {
    case OB_KIND_TOKEN_EMBEDDING: return matrix_of(&m->token_embedding, d->vocab_size, d->hidden_size);
    case OB_KIND_POSITION_EMBEDDING:
        return d->position == OB_POSITION_LEARNED ? matrix_of(&m->position_embedding, d->max_seq_len, d->hidden_size)
                                                  : no_place();
    case OB_KIND_FINAL_NORM: return vector_of(&m->final_norm, d->hidden_size);
    case OB_KIND_FINAL_NORM_BIAS:
        return d->norm == OB_NORM_LAYER ? vector_of(&m->final_norm_bias, d->hidden_size) : no_place();
    case OB_KIND_HEAD:
        return d->flags & OB_FLAG_TIED_HEAD ? no_place() : matrix_of(&m->head, d->vocab_size, d->hidden_size);
    case OB_KIND_ROPE_FREQUENCIES:
        return d->position == OB_POSITION_ROPE ? vector_of(&m->rope_frequencies, d->head_dim / 2) : no_place();
    default: return no_place();
    }
}

static place norm_place(const ob_description *d, ob_layer *l, uint32_t kind) {
    const int layernorm = d->norm == OB_NORM_LAYER, qk = d->flags & OB_FLAG_QK_NORM, sub = d->flags & OB_FLAG_SUB_NORM;
    switch (kind) {
    case OB_KIND_ATTENTION_NORM: return vector_of(&l->attention_norm, d->hidden_size);
    case OB_KIND_MLP_NORM: return vector_of(&l->mlp_norm, d->hidden_size);
    case OB_KIND_ATTENTION_NORM_BIAS: return layernorm ? vector_of(&l->attention_norm_bias, d->hidden_size) : no_place();
    case OB_KIND_MLP_NORM_BIAS: return layernorm ? vector_of(&l->mlp_norm_bias, d->hidden_size) : no_place();
    case OB_KIND_Q_NORM: return qk ? vector_of(&l->q_norm, d->head_dim) : no_place();
    case OB_KIND_K_NORM: return qk ? vector_of(&l->k_norm, d->head_dim) : no_place();
    case OB_KIND_ATTENTION_SUB_NORM:
        return sub ? vector_of(&l->attention_sub_norm, d->num_heads * d->head_dim) : no_place();
    case OB_KIND_MLP_SUB_NORM: return sub ? vector_of(&l->mlp_sub_norm, d->intermediate_size) : no_place();
    default: return no_place();
    }
}

static place layer_place(const ob_description *d, ob_layer *l, uint32_t kind) {
    const uint32_t hidden = d->hidden_size, inner = d->intermediate_size;
    const uint32_t queries = d->num_heads * d->head_dim, keys = d->num_key_value_heads * d->head_dim;
    switch (kind) {
    case OB_KIND_Q: return matrix_of(&l->q, queries, hidden);
    case OB_KIND_K: return matrix_of(&l->k, keys, hidden);
    case OB_KIND_V: return matrix_of(&l->v, keys, hidden);
    case OB_KIND_O: return matrix_of(&l->o, hidden, queries);
    case OB_KIND_GATE: return ob_has_gate(d) ? matrix_of(&l->gate, inner, hidden) : no_place();
    case OB_KIND_UP: return matrix_of(&l->up, inner, hidden);
    case OB_KIND_DOWN: return matrix_of(&l->down, hidden, inner);
    case OB_KIND_Q_BIAS: return vector_of(&l->q.bias, queries);
    case OB_KIND_K_BIAS: return vector_of(&l->k.bias, keys);
    case OB_KIND_V_BIAS: return vector_of(&l->v.bias, keys);
    case OB_KIND_O_BIAS: return vector_of(&l->o.bias, hidden);
    case OB_KIND_GATE_BIAS: return ob_has_gate(d) ? vector_of(&l->gate.bias, inner) : no_place();
    case OB_KIND_UP_BIAS: return vector_of(&l->up.bias, inner);
    case OB_KIND_DOWN_BIAS: return vector_of(&l->down.bias, hidden);
    default: return norm_place(d, l, kind);
    }
}

static int granularity_allowed(uint32_t layout, uint32_t granularity) {
    switch (layout) {
    case OB_LAYOUT_FLOAT32:
    case OB_LAYOUT_FLOAT16: return granularity == OB_GRANULARITY_NONE;
    case OB_LAYOUT_INT8: return granularity == OB_GRANULARITY_ROW;
    case OB_LAYOUT_INT4: return granularity == OB_GRANULARITY_GROUP;
    default: return granularity >= OB_GRANULARITY_TENSOR && granularity <= OB_GRANULARITY_GROUP;
    }
}

static int group_size_allowed(const ob_record *r) {
    if (r->granularity != OB_GRANULARITY_GROUP) return r->group_size == 0;
    if (r->layout == OB_LAYOUT_INT4) return r->group_size == 32;
    return r->group_size == 64 || r->group_size == 128 || r->group_size == 256;
}

static uint32_t divide_up(uint32_t a, uint32_t b) { return a / b + (a % b != 0); }

/* Geometry from a record whose layout, granularity and group size have been checked. */
static ob_weights geometry(const ob_record *r) {
    ob_weights w = {.rows = r->rows, .cols = r->cols, .kind = r->kind, .layer = r->layer, .layout = r->layout,
                    .granularity = r->granularity, .activation = r->activation & ~OB_TURNED, .scale_type = r->scale_type};
    w.group = r->granularity == OB_GRANULARITY_GROUP && r->group_size < r->cols ? r->group_size : r->cols;
    w.num_groups = divide_up(r->cols, w.group);
    w.tile = ob_layout_tile(r->layout);
    w.codes_cols = r->cols;
    if (w.tile) {
        uint32_t last = r->cols - (w.num_groups - 1) * w.group;
        w.tiles_group = divide_up(w.group, w.tile);
        w.tiles_block = (w.num_groups - 1) * w.tiles_group + divide_up(last, w.tile);
        w.codes_cols = w.tiles_block * w.tile;
    } else {
        w.row_stride = (ob_layout_row_bytes(r->layout, r->cols, w.group) + 63) / 64 * 64;
    }
    return w;
}

static uint64_t data_bytes(const ob_weights *w) {
    if (w->tile) return (uint64_t)divide_up(w->rows, OB_BLOCK_ROWS) * w->tiles_block * OB_TILE_BYTES;
    return w->rows * w->row_stride;
}

static uint64_t scale_bytes(const ob_weights *w) {
    uint64_t rows = w->tile ? (uint64_t)divide_up(w->rows, OB_BLOCK_ROWS) * OB_BLOCK_ROWS : w->rows;
    switch (w->granularity) {
    case OB_GRANULARITY_TENSOR: return 4;
    case OB_GRANULARITY_ROW: return rows * 4;
    case OB_GRANULARITY_GROUP: return rows * w->num_groups * 2;
    default: return 0;
    }
}

static int inside(uint64_t offset, uint64_t bytes, uint64_t limit) { return offset <= limit && bytes <= limit - offset; }

static ob_status check_record(const ob_model *m, const ob_record *r, uint32_t index, const place *p, ob_error *error) {
    static const uint8_t scale_types[] = {OB_SCALE_NONE, OB_SCALE_FLOAT32, OB_SCALE_FLOAT32, OB_SCALE_FLOAT16};
    const char *name = r->name; /* zero terminated: checked by the caller */
    if (r->rows != p->rows || r->cols != p->cols)
        return ob_fail(error, OB_ERROR_FORMAT, "tensor %u (%s) is %u x %u, the model description asks for %u x %u", index, name,
                       r->rows, r->cols, p->rows, p->cols);
    if (r->layout >= OB_NUM_LAYOUTS || !granularity_allowed(r->layout, r->granularity) || !group_size_allowed(r) ||
        (r->activation & ~OB_TURNED) > OB_ACTIVATION_SIGN || r->scale_type != scale_types[r->granularity])
        return ob_fail(error, OB_ERROR_FORMAT,
                       "tensor %u (%s): layout %u, granularity %u, group size %u, activation %u, scale type %u do not go together",
                       index, name, (uint32_t)r->layout, (uint32_t)r->granularity, r->group_size, (uint32_t)r->activation,
                       (uint32_t)r->scale_type);
    if (p->vector && (r->layout != OB_LAYOUT_FLOAT32 || r->activation != OB_ACTIVATION_NONE))
        return ob_fail(error, OB_ERROR_FORMAT, "tensor %u (%s) is a vector and must be float32", index, name);
    ob_weights w = geometry(r);
    if (r->row_stride != w.row_stride || r->data_bytes != data_bytes(&w) || r->scale_bytes != scale_bytes(&w))
        return ob_fail(error, OB_ERROR_FORMAT, "tensor %u (%s): %U bytes of data and %U of scales, expected %U and %U", index, name,
                       r->data_bytes, r->scale_bytes, data_bytes(&w), scale_bytes(&w));
    if (r->data_offset % 64 || !inside(r->data_offset, r->data_bytes, m->image_bytes) ||
        (r->scale_bytes && (r->scale_offset % 64 || !inside(r->scale_offset, r->scale_bytes, m->image_bytes))))
        return ob_fail(error, OB_ERROR_FORMAT, "tensor %u (%s) lies outside the file or is not aligned to 64 bytes", index, name);
    return OB_OK;
}

static const ob_rotation *rotation_of(const ob_model *m, uint32_t kind) {
    switch (kind) {
    case OB_KIND_TOKEN_EMBEDDING: case OB_KIND_HEAD: case OB_KIND_Q: case OB_KIND_K: case OB_KIND_V: case OB_KIND_GATE: case OB_KIND_UP:
        return &m->rotations[OB_SITE_HIDDEN];
    case OB_KIND_O: return &m->rotations[OB_SITE_ATTENTION];
    case OB_KIND_DOWN: return &m->rotations[OB_SITE_MLP];
    default: return NULL;
    }
}

static ob_status turn_inputs(const ob_model *m, const ob_record *r, uint32_t index, ob_weights *w, ob_error *error) {
    const ob_rotation *rotation = rotation_of(m, r->kind);
    if (!rotation || !rotation->block)
        return ob_fail(error, OB_ERROR_FORMAT, "tensor %u (%s) turns its inputs, for which the file has no rotation", index, r->name);
    w->turn = rotation->factors;
    w->turn_block = rotation->block;
    return OB_OK;
}

static ob_status place_record(ob_model *m, uint32_t index, ob_error *error) {
    ob_record r = ob_read_record(m, index);
    if (r.name[63]) return ob_fail(error, OB_ERROR_FORMAT, "tensor %u: its name has no end", index);
    place p = no_place();
    if (r.layer == OB_NO_LAYER)
        p = global_place(m, r.kind);
    else if (r.layer < m->description.num_layers)
        p = layer_place(&m->description, &m->layers[r.layer], r.kind);
    if (!p.vector && !p.matrix)
        return ob_fail(error, OB_ERROR_FORMAT, "tensor %u (%s): kind %u in layer %u has no place in this model", index, r.name,
                       (uint32_t)r.kind, (uint32_t)r.layer);
    ob_status status = check_record(m, &r, index, &p, error);
    if (status) return status;
    if (p.vector ? *p.vector != NULL : p.matrix->data != NULL)
        return ob_fail(error, OB_ERROR_FORMAT, "tensor %u (%s): kind %u in layer %u is there twice", index, r.name,
                       (uint32_t)r.kind, (uint32_t)r.layer);
    const uint8_t *data = m->image + r.data_offset;
    if (p.vector) {
        *p.vector = (const float *)(const void *)data;
        return OB_OK;
    }
    const float *bias = p.matrix->bias; /* may have come before its matrix */
    *p.matrix = geometry(&r);
    p.matrix->bias = bias;
    p.matrix->data = data;
    p.matrix->scale = r.scale_bytes ? m->image + r.scale_offset : NULL;
    return r.activation & OB_TURNED ? turn_inputs(m, &r, index, p.matrix, error) : OB_OK;
}

static int is_optional(uint32_t kind) { return kind == OB_KIND_ROPE_FREQUENCIES || kind >= OB_KIND_Q_BIAS; }

static ob_status check_complete(ob_model *m, ob_error *error) {
    for (uint32_t kind = 1; kind < OB_KIND_ATTENTION_NORM; kind++) {
        place p = global_place(m, kind);
        if (!is_optional(kind) && ((p.vector && !*p.vector) || (p.matrix && !p.matrix->data)))
            return ob_fail(error, OB_ERROR_FORMAT, "the tensor of kind %u is missing", kind);
    }
    for (uint32_t layer = 0; layer < m->description.num_layers; layer++)
        for (uint32_t kind = OB_KIND_ATTENTION_NORM; kind < OB_NUM_KINDS; kind++) {
            place p = layer_place(&m->description, &m->layers[layer], kind);
            if (!is_optional(kind) && ((p.vector && !*p.vector) || (p.matrix && !p.matrix->data)))
                return ob_fail(error, OB_ERROR_FORMAT, "the tensor of kind %u is missing in layer %u", kind, layer);
        }
    return OB_OK;
}

/* Angles stay as small as those of a theta from 1 on: sine and cosine are right in that range only. */
static ob_status check_frequencies(const ob_model *m, ob_error *error) {
    const uint32_t half = m->rope_frequencies ? m->description.head_dim / 2 : 0;
    for (uint32_t i = 0; i < half; i++)
        if (!(m->rope_frequencies[i] > 0.0f && m->rope_frequencies[i] <= 1.0f))
            return ob_fail(error, OB_ERROR_FORMAT, "rope frequency %u is not a positive number up to 1", i);
    return OB_OK;
}

ob_status ob_read_tensors(ob_model *m, ob_error *error) {
    for (uint32_t i = 0; i < m->num_tensors; i++) {
        ob_status status = place_record(m, i, error);
        if (status) return status;
    }
    ob_status status = check_complete(m, error);
    if (status == OB_OK) status = check_frequencies(m, error);
    if (status == OB_OK && (m->description.flags & OB_FLAG_TIED_HEAD)) m->head = m->token_embedding;
    return status;
}
