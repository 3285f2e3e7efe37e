/* What can be done to a sequence besides adding tokens: forgetting its end, copying its beginning, dropping its middle. */
#include "ob_error.h"
#include "ob_session.h"

enum { MOST_POSITIONS = 1 << 30 }; /* what ob_sincos64 is exact for */

static ob_status check_sequence(const ob_session *s, uint32_t sequence, ob_error *error) {
    if (!s) return ob_fail(error, OB_ERROR_ARGUMENT, "the session is a null pointer");
    if (sequence < s->num_sequences) return OB_OK;
    return ob_fail(error, OB_ERROR_ARGUMENT, "sequence %u was asked for, the session has %u", sequence, s->num_sequences);
}

uint32_t ob_sequence_position(const ob_session *s, uint32_t sequence) {
    return sequence < s->num_sequences ? s->sequences[sequence].position : 0;
}

uint32_t ob_session_position(const ob_session *s) { return s->sequences[0].position; }

ob_status ob_sequence_truncate(ob_session *s, uint32_t sequence, uint32_t position, ob_error *error) {
    ob_status status = check_sequence(s, sequence, error);
    if (status) return status;
    ob_sequence *q = &s->sequences[sequence];
    if (position > q->position)
        return ob_fail(error, OB_ERROR_ARGUMENT, "cannot truncate to position %u, the sequence is at %u", position, q->position);
    q->position = position;
    if (!position) q->offset = 0;
    return OB_OK;
}

ob_status ob_session_truncate(ob_session *s, uint32_t position, ob_error *error) {
    return ob_sequence_truncate(s, 0, position, error);
}

/* Rows of every layer and key-value head to another place in the cache; an item is a layer. */
typedef struct move_job {
    ob_session *s;
    uint32_t from_sequence, from, to_sequence, to, count;
} move_job;

static void move_rows(void *argument, uint32_t layer, uint32_t num_items, uint32_t thread) {
    const move_job *j = argument;
    uint8_t *const caches[] = {j->s->keys, j->s->values};
    const size_t row = j->s->kv_row_bytes;
    (void)num_items, (void)thread;
    for (int i = 0; i < 2; i++)
        for (uint32_t head = 0; head < j->s->model->description.num_key_value_heads; head++)
            memmove(ob_cache_rows(j->s, caches[i], layer, j->to_sequence, head) + j->to * row,
                    ob_cache_rows(j->s, caches[i], layer, j->from_sequence, head) + j->from * row, j->count * row);
}

ob_status ob_sequence_copy(ob_session *s, uint32_t from, uint32_t to, uint32_t num_positions, ob_error *error) {
    ob_status status = check_sequence(s, from, error);
    if (!status) status = check_sequence(s, to, error);
    if (status) return status;
    if (from == to) return ob_fail(error, OB_ERROR_ARGUMENT, "sequence %u cannot be copied onto itself", from);
    if (num_positions > s->sequences[from].position)
        return ob_fail(error, OB_ERROR_ARGUMENT, "cannot copy %u positions, sequence %u is at %u", num_positions, from,
                       s->sequences[from].position);
    move_job j = {s, from, 0, to, 0, num_positions};
    ob_run(s, move_rows, &j, s->model->description.num_layers);
    s->sequences[to].position = num_positions;
    s->sequences[to].offset = num_positions ? s->sequences[from].offset : 0;
    return OB_OK;
}

/* Turns the keys of the first `count` rows by `positions`, so that they stay where they were beside rows that moved. */
static void turn_keys(ob_session *s, uint32_t sequence, uint32_t count, uint32_t positions) {
    const ob_description *d = &s->model->description;
    const ob_kernels *k = &s->model->kernels;
    float *key = s->k_TK.at;
    ob_rotary_angle(s, positions, s->cos_T, s->sin_T);
    for (uint32_t layer = 0; layer < d->num_layers; layer++)
        for (uint32_t head = 0; head < d->num_key_value_heads; head++) {
            uint8_t *row = ob_cache_rows(s, s->keys, layer, sequence, head);
            for (uint32_t p = 0; p < count; p++, row += s->kv_row_bytes) {
                k->kv_load(s->kv_type, row, d->head_dim, key);
                k->rotate(key, s->cos_T, s->sin_T, d->head_dim / 2);
                k->kv_store(s->kv_type, key, d->head_dim, row);
            }
        }
}

ob_status ob_sequence_shift(ob_session *s, uint32_t sequence, uint32_t keep, uint32_t discard, ob_error *error) {
    ob_status status = check_sequence(s, sequence, error);
    if (status) return status;
    ob_sequence *q = &s->sequences[sequence];
    if (keep > q->position || discard > q->position - keep)
        return ob_fail(error, OB_ERROR_ARGUMENT, "cannot drop %u positions after %u, the sequence is at %u", discard, keep,
                       q->position);
    if (s->model->description.position != OB_POSITION_ROPE)
        return ob_fail(error, OB_ERROR_UNSUPPORTED, "a model with learned positions cannot shift its context: run the text again");
    if (discard > MOST_POSITIONS - s->max_positions - q->offset)
        return ob_fail(error, OB_ERROR_UNSUPPORTED, "the sequence has dropped %u positions before: run the text again", q->offset);
    move_job j = {s, sequence, keep + discard, sequence, keep, q->position - keep - discard};
    ob_run(s, move_rows, &j, s->model->description.num_layers);
    if (discard) turn_keys(s, sequence, keep, discard);
    q->position -= discard;
    q->offset = q->position ? q->offset + discard : 0;
    return OB_OK;
}
