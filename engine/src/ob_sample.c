/* Choosing a token. Order: repetition penalty, temperature, top-k, top-p, min-p, draw. Sums are double and run in a fixed
 * order (index, or falling weight with the smaller index first), so a seed gives the same tokens everywhere. */
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
static double next_uniform(ob_sampler *sampler) {
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
    if (penalty == 1.0f) return;
    for (uint32_t i = 0; i < num_recent; i++) {
        if (recent[i] >= vocab_size) continue;
        float logit = logits[recent[i]];
        copy[recent[i]] = logit > 0.0f ? logit / penalty : logit * penalty;
    }
}

/* The first largest; vocab_size when there is a NaN, an infinite best or nothing but -inf. */
static uint32_t argmax(const float *logits, uint32_t vocab_size) {
    uint32_t best = 0;
    for (uint32_t i = 0; i < vocab_size; i++) {
        if (logits[i] != logits[i]) return vocab_size;
        if (logits[i] > logits[best]) best = i;
    }
    return ob_is_finite(logits[best]) ? best : vocab_size;
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

static uint32_t draw_any(const float *weights, uint32_t vocab_size, float least, double uniform) {
    double target = uniform * sum_above(weights, vocab_size, least), sum = 0.0;
    uint32_t last = 0;
    for (uint32_t i = 0; i < vocab_size; i++) {
        if (!(weights[i] >= least) || weights[i] == 0.0f) continue;
        sum += weights[i];
        last = i;
        if (sum > target) break;
    }
    return last;
}

/* Draws among the heaviest ids. The best one's weight is 1, so min_p is a threshold on weights. */
static uint32_t draw_heaviest(const ob_sampler_options *o, uint32_t *heap, const float *weights, uint32_t vocab_size,
                              double uniform) {
    double total, sum = 0.0, kept_sum = 0.0;
    uint32_t limit = o->top_k && o->top_k < vocab_size ? o->top_k : vocab_size, kept = 0;
    for (uint32_t i = 0; i < vocab_size; i++) heap[i] = i;
    double mass = limit < vocab_size ? 1e300 : (double)o->top_p * sum_above(weights, vocab_size, 0.0f);
    uint32_t popped = pop_heaviest(heap, vocab_size, weights, limit, mass, &total);
    if (limit < vocab_size) mass = (double)o->top_p * total;
    for (; kept < popped && (kept == 0 || kept_sum < mass); kept++) {
        float weight = weights[heap[vocab_size - 1 - kept]];
        if (kept && weight < o->min_p) break;
        kept_sum += weight;
    }
    for (uint32_t n = 0; n < kept; n++) {
        sum += weights[heap[vocab_size - 1 - n]];
        if (sum > uniform * kept_sum) return heap[vocab_size - 1 - n];
    }
    return heap[vocab_size - kept];
}

ob_status ob_sample(ob_sampler *sampler, const float *logits, uint32_t vocab_size, const uint32_t *recent, uint32_t num_recent,
                    void *arena, size_t arena_bytes, uint32_t *token, ob_error *error) {
    if (!sampler || !logits || !vocab_size || !arena || !token || (num_recent && !recent))
        return ob_fail(error, OB_ERROR_ARGUMENT, "ob_sample: a null pointer or an empty vocabulary");
    if (arena_bytes < ob_sampler_arena_bytes(vocab_size))
        return ob_fail(error, OB_ERROR_MEMORY, "the sampler's arena has %U bytes and needs %U", (uint64_t)arena_bytes,
                       (uint64_t)ob_sampler_arena_bytes(vocab_size));
    const ob_sampler_options *o = &sampler->options;
    float *weights = arena;
    uint32_t *heap = (uint32_t *)(weights + vocab_size);
    penalise(logits, vocab_size, o->repetition_penalty, recent, num_recent, weights);
    uint32_t best = argmax(weights, vocab_size);
    if (best == vocab_size)
        return ob_fail(error, OB_ERROR_NUMERIC, "the logits are not numbers (NaN or infinite): the model's weights are broken");
    *token = best;
    if (o->temperature == 0.0f) return OB_OK;
    const float top = weights[best];
    for (uint32_t i = 0; i < vocab_size; i++) weights[i] = ob_exp((weights[i] - top) / o->temperature);
    double uniform = next_uniform(sampler);
    if ((!o->top_k || o->top_k >= vocab_size) && o->top_p >= 1.0f) *token = draw_any(weights, vocab_size, o->min_p, uniform);
    else *token = draw_heaviest(o, heap, weights, vocab_size, uniform);
    return OB_OK;
}
