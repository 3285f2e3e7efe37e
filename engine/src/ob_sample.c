/* Choosing a token. Order: repetition penalty, temperature, top-k, top-p, min-p, draw. Sums are double and run in a fixed
 * order (index, or falling weight with the smaller index first), so a seed gives the same tokens everywhere. */
#include "ob_sample.h"

#include "ob_error.h"
#include "ob_math.h"

ob_status ob_sampler_init(ob_sampler *sampler, const ob_sampler_options *o, ob_error *error) {
    if (!sampler || !o) return ob_fail(error, OB_ERROR_ARGUMENT, "sampler or options is a null pointer");
    if (!(o->temperature >= 0.0f && ob_is_finite(o->temperature)))
        return ob_fail(error, OB_ERROR_ARGUMENT, "temperature must be 0 (greedy) or a positive number");
    if (!(o->top_p > 0.0f && o->top_p <= 1.0f))
        return ob_fail(error, OB_ERROR_ARGUMENT, "top_p must be above 0 and at most 1 (off)");
    if (!(o->min_p >= 0.0f && o->min_p <= 1.0f))
        return ob_fail(error, OB_ERROR_ARGUMENT, "min_p must be from 0 (off) to 1");
    if (!(o->repetition_penalty > 0.0f && ob_is_finite(o->repetition_penalty)))
        return ob_fail(error, OB_ERROR_ARGUMENT, "repetition_penalty must be a positive number; 1 is off");
    sampler->options = *o;
    sampler->state = o->seed;
    return OB_OK;
}

/* splitmix64; 53 bits to [0, 1) */
double ob_sampler_next(ob_sampler *sampler) {
    uint64_t z = sampler->state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    return (double)(z >> 11) * (1.0 / 9007199254740992.0);
}

size_t ob_sampler_arena_bytes(uint32_t vocab_size) { return (size_t)vocab_size * (sizeof(float) + sizeof(uint32_t)); }

/* Penalised copy of the logits. Computed from the original each time, so a token seen twice is penalised once. */
static void penalise(const float *logits, uint32_t vocab_size, float penalty, const uint32_t *recent, uint32_t num_recent,
                     float *copy) {
    memcpy(copy, logits, vocab_size * sizeof(float));
    for (uint32_t i = 0; i < num_recent; i++) {
        if (recent[i] >= vocab_size) continue;
        float logit = logits[recent[i]];
        copy[recent[i]] = logit > 0.0f ? logit / penalty : logit * penalty;
    }
}

enum { LANES = 16 };

/* The largest of logits [count], which holds no NaN; -inf for none. In lanes, so that it becomes vector instructions. */
static float largest(const float *logits, uint32_t count) {
    float lanes[LANES], best = -ob_float_from_bits(0x7f800000u);
    uint32_t i = 0;
    for (uint32_t l = 0; l < LANES; l++) lanes[l] = best;
    for (; i + LANES <= count; i += LANES)
        for (uint32_t l = 0; l < LANES; l++) lanes[l] = logits[i + l] > lanes[l] ? logits[i + l] : lanes[l];
    for (; i < count; i++) best = logits[i] > best ? logits[i] : best;
    for (uint32_t l = 0; l < LANES; l++) best = lanes[l] > best ? lanes[l] : best;
    return best;
}

static int has_nan(const float *logits, uint32_t count) {
    uint32_t found = 0;
    for (uint32_t i = 0; i < count; i++) found |= (ob_bits_from_float(logits[i]) & 0x7fffffffu) > 0x7f800000u;
    return found != 0;
}

/* The first largest; vocab_size when there is a NaN, an infinite best or nothing but -inf. */
static uint32_t argmax(const float *logits, uint32_t vocab_size) {
    if (has_nan(logits, vocab_size)) return vocab_size;
    float best = largest(logits, vocab_size);
    uint32_t first = 0;
    if (!ob_is_finite(best)) return vocab_size;
    while (logits[first] != best) first++;
    return first;
}

/* ---- heap of token ids, the heaviest on top ---- */

static int heavier(const float *weights, uint32_t a, uint32_t b) {
    return weights[a] > weights[b] || (weights[a] == weights[b] && a < b);
}

static void sift_down(uint32_t *heap, uint32_t size, uint32_t at, const float *weights) {
    for (;;) {
        uint32_t top = at, left = 2 * at + 1, right = left + 1;
        if (left < size && heavier(weights, heap[left], heap[top])) top = left;
        if (right < size && heavier(weights, heap[right], heap[top])) top = right;
        if (top == at) return;
        uint32_t id = heap[at];
        heap[at] = heap[top];
        heap[top] = id;
        at = top;
    }
}

/* Moves the heaviest `limit` ids, or as many as reach `mass`, to the end of the heap array in falling order (the n-th at
 * heap[vocab_size - 1 - n]); returns how many and their mass. */
static uint32_t pop_heaviest(uint32_t *heap, uint32_t vocab_size, const float *weights, uint32_t limit, double mass,
                             double *total) {
    uint32_t popped = 0;
    *total = 0.0;
    for (uint32_t i = vocab_size / 2; i-- > 0;) sift_down(heap, vocab_size, i, weights);
    while (popped < limit && (popped == 0 || *total < mass)) {
        uint32_t last = vocab_size - 1 - popped, id = heap[0];
        heap[0] = heap[last];
        heap[last] = id;
        popped++;
        *total += weights[id];
        sift_down(heap, last, 0, weights);
    }
    return popped;
}

static double sum_above(const float *weights, uint32_t vocab_size, float least) {
    double sum = 0.0;
    for (uint32_t i = 0; i < vocab_size; i++)
        if (weights[i] >= least) sum += weights[i];
    return sum;
}

/* Keeps the heaviest ids. The best one's weight is 1, so min_p is a threshold on weights. */
static void keep_heaviest(const ob_sampler_options *o, uint32_t *heap, ob_choice *c) {
    const uint32_t vocab_size = c->vocab_size, limit = o->top_k && o->top_k < vocab_size ? o->top_k : vocab_size;
    double total;
    for (uint32_t i = 0; i < vocab_size; i++) heap[i] = i;
    double mass = limit < vocab_size ? 1e300 : (double)o->top_p * sum_above(c->weights, vocab_size, 0.0f);
    uint32_t popped = pop_heaviest(heap, vocab_size, c->weights, limit, mass, &total);
    if (limit < vocab_size) mass = (double)o->top_p * total;
    c->heap = heap;
    for (; c->kept < popped && (c->kept == 0 || c->total < mass); c->kept++) {
        float weight = c->weights[heap[vocab_size - 1 - c->kept]];
        if (c->kept && weight < o->min_p) break;
        c->total += weight;
    }
    c->last = heap[vocab_size - c->kept];
}

ob_status ob_choice_make(const ob_sampler_options *o, const float *logits, uint32_t vocab_size, const uint32_t *recent,
                         uint32_t num_recent, int with_margin, void *arena, ob_choice *c, ob_error *error) {
    float *weights = arena;
    const float *penalised = logits;
    if (o->repetition_penalty != 1.0f && num_recent) {
        penalise(logits, vocab_size, o->repetition_penalty, recent, num_recent, weights);
        penalised = weights;
    }
    memset(c, 0, sizeof *c);
    c->vocab_size = vocab_size;
    c->best = argmax(penalised, vocab_size);
    if (c->best == vocab_size)
        return ob_fail(error, OB_ERROR_NUMERIC, "the logits are not numbers (NaN or infinite): the model's weights are broken");
    const float top = penalised[c->best];
    if (with_margin) {
        float before = largest(penalised, c->best), after = largest(penalised + c->best + 1, vocab_size - c->best - 1);
        c->margin = top - (before > after ? before : after);
    }
    if (o->temperature == 0.0f) return OB_OK;
    for (uint32_t i = 0; i < vocab_size; i++) weights[i] = ob_exp((penalised[i] - top) / o->temperature);
    c->weights = weights;
    c->least = o->min_p;
    if ((!o->top_k || o->top_k >= vocab_size) && o->top_p >= 1.0f) c->total = sum_above(weights, vocab_size, o->min_p);
    else keep_heaviest(o, (uint32_t *)(weights + vocab_size), c);
    return OB_OK;
}

uint32_t ob_choice_draw(const ob_choice *c, double uniform) {
    double target = uniform * c->total, sum = 0.0;
    uint32_t last = c->best;
    if (!c->weights) return last;
    for (uint32_t n = 0; n < c->kept; n++) {
        last = c->heap[c->vocab_size - 1 - n];
        sum += c->weights[last];
        if (sum > target) return last;
    }
    for (uint32_t i = 0; i < c->vocab_size && !c->kept; i++) {
        if (!(c->weights[i] >= c->least) || c->weights[i] == 0.0f) continue;
        sum += c->weights[i];
        last = i;
        if (sum > target) break;
    }
    return last;
}

double ob_choice_probability(const ob_choice *c, uint32_t token) {
    if (!c->weights) return token == c->best;
    float weight = c->weights[token];
    int is_kept = !c->kept ? weight >= c->least : weight > c->weights[c->last] || (weight == c->weights[c->last] && token <= c->last);
    return is_kept ? weight / c->total : 0.0;
}

ob_status ob_sample(ob_sampler *sampler, const float *logits, uint32_t vocab_size, const uint32_t *recent, uint32_t num_recent,
                    void *arena, size_t arena_bytes, uint32_t *token, ob_error *error) {
    if (!sampler || !logits || !vocab_size || !arena || !token || (num_recent && !recent))
        return ob_fail(error, OB_ERROR_ARGUMENT, "ob_sample: a null pointer or an empty vocabulary");
    if (arena_bytes < ob_sampler_arena_bytes(vocab_size))
        return ob_fail(error, OB_ERROR_MEMORY, "the sampler's arena has %U bytes and needs %U", (uint64_t)arena_bytes,
                       (uint64_t)ob_sampler_arena_bytes(vocab_size));
    ob_choice choice;
    ob_status status = ob_choice_make(&sampler->options, logits, vocab_size, recent, num_recent, 0, arena, &choice, error);
    if (status) return status;
    *token = ob_choice_draw(&choice, choice.weights ? ob_sampler_next(sampler) : 0.0);
    return OB_OK;
}
