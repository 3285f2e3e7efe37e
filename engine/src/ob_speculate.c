/* Several tokens a step: proposing, the pass, accepting. */
#include "ob_speculate.h"

#include "ob_error.h"
#include "ob_platform.h"
#include "ob_sample.h"
#include "ob_session.h"

enum {
    LONGEST_MATCH = 12,
    LOOK_BACK = 16384, /* tokens of the text that are searched: some microseconds */
    DEFAULT_PROPOSED = 15, /* 16 tokens a pass */
    PROBE_EVERY = 24,  /* steps after which a draft that was not worth its time is asked again */
};

struct ob_speculation {
    ob_speculation_options options;
    ob_session *target, *draft;
    ob_sampler draft_sampler;
    ob_speculation_counts counts;
    ob_gain gain;
    uint32_t vocab_size, steps_without_draft, learns_costs;
    uint32_t proposed[OB_MAX_PROPOSED], num_proposed;
    uint8_t levels[OB_MAX_PROPOSED];
    float *logits;       /* [max_proposed + 1, vocab_size] */
    float *draft_logits; /* [vocab_size] */
    float *q;            /* [max_proposed, vocab_size]; NULL where proposals are chosen, not drawn */
    uint32_t *recent;    /* [repetition_window + max_proposed] */
    uint32_t num_recent; /* before the proposed ones */
    void *sampler_arena;
};

/* ---- look-up ---- */

uint32_t ob_lookup(const uint32_t *tokens, uint32_t num_tokens, uint32_t most, uint32_t *proposed, uint32_t *match) {
    uint32_t best = 0, after = 0, begin = num_tokens > LOOK_BACK ? num_tokens - LOOK_BACK : 0;
    *match = 0;
    if (num_tokens < 2) return 0;
    const uint32_t last = tokens[num_tokens - 1];
    for (uint32_t i = num_tokens - 1; i-- > begin && best < LONGEST_MATCH;) { /* backwards: of equals, the latest */
        if (tokens[i] != last) continue;
        uint32_t length = 1;
        while (length < LONGEST_MATCH && length <= i && tokens[i - length] == tokens[num_tokens - 1 - length]) length++;
        if (length <= best) continue;
        best = length;
        after = i + 1;
    }
    if (!best) return 0;
    *match = best;
    for (uint32_t i = 0; i < most; i++) /* a piece that reaches the end of the text goes round */
        proposed[i] = after + i < num_tokens ? tokens[after + i] : proposed[after + i - num_tokens];
    return most;
}

/* ---- acceptance ---- */

static double above(const ob_choice *p, const float *q, uint32_t token) {
    double more = ob_choice_probability(p, token) - q[token];
    return more > 0.0 ? more : 0.0;
}

/* From (p - q)+, made to sum to 1. */
static uint32_t draw_rest(const ob_choice *p, const float *q, double uniform) {
    double total = 0.0, sum = 0.0;
    uint32_t token = p->best;
    for (uint32_t i = 0; i < p->vocab_size; i++) total += above(p, q, i);
    if (!(total > 0.0)) return ob_choice_draw(p, uniform); /* p is q but for rounding */
    for (uint32_t i = 0; i < p->vocab_size; i++) {
        double more = above(p, q, i);
        if (more == 0.0) continue;
        sum += more;
        token = i;
        if (sum > uniform * total) break;
    }
    return token;
}

/* The token that follows. A proposal that was chosen and not drawn is right when the ordinary draw gives it: the same text as
 * without it. */
static uint32_t next_token(const ob_choice *p, ob_sampler *sampler, uint32_t proposed, const float *q) {
    if (!p->weights) return p->best;
    double uniform = ob_sampler_next(sampler);
    if (!q) return ob_choice_draw(p, uniform);
    if (uniform * q[proposed] < ob_choice_probability(p, proposed)) return proposed;
    return draw_rest(p, q, ob_sampler_next(sampler));
}

ob_status ob_verify(ob_sampler *sampler, const float *logits, uint32_t vocab_size, const uint32_t *recent, uint32_t num_recent,
                    uint32_t window, uint32_t num_proposed, const float *q, void *arena, size_t arena_bytes,
                    uint32_t *new_tokens, uint32_t *num_new, ob_error *error) {
    if (!sampler || !logits || !vocab_size || !arena || !new_tokens || !num_new || (!recent && (num_recent || num_proposed)))
        return ob_fail(error, OB_ERROR_ARGUMENT, "ob_verify: a null pointer or an empty vocabulary");
    if (arena_bytes < ob_sampler_arena_bytes(vocab_size))
        return ob_fail(error, OB_ERROR_MEMORY, "the sampler's arena has %U bytes and needs %U", (uint64_t)arena_bytes,
                       (uint64_t)ob_sampler_arena_bytes(vocab_size));
    const uint32_t *proposed = num_proposed ? recent + num_recent : NULL;
    for (uint32_t i = 0; i < num_proposed; i++)
        if (proposed[i] >= vocab_size)
            return ob_fail(error, OB_ERROR_ARGUMENT, "proposed token %u is outside the vocabulary of %u", proposed[i], vocab_size);
    *num_new = 0;
    for (uint32_t i = 0; i <= num_proposed; i++) {
        ob_choice choice;
        uint32_t seen = num_recent + i, count = seen < window ? seen : window;
        ob_status status = ob_choice_make(&sampler->options, logits + (size_t)i * vocab_size, vocab_size,
                                          count ? recent + seen - count : NULL, count, 0, arena, &choice, error);
        if (status) return i ? OB_OK : status; /* what came before is right; the next step meets this again */
        const float *q_row = q && i < num_proposed ? q + (size_t)i * vocab_size : NULL;
        uint32_t token = next_token(&choice, sampler, i < num_proposed ? proposed[i] : 0, q_row);
        new_tokens[(*num_new)++] = token;
        if (i < num_proposed && token != proposed[i]) break;
    }
    return OB_OK;
}

/* ---- proposing ---- */

static double now(const ob_speculation *s) { return s->options.clock ? s->options.clock() : 0.0; }

/* Keeps what the penalty will see: the end of the text, with the proposed tokens behind it as they come. */
static void begin_recent(ob_speculation *s, const uint32_t *tokens, uint32_t num_tokens) {
    uint32_t window = s->options.repetition_window;
    s->num_recent = num_tokens < window ? num_tokens : window;
    memcpy(s->recent, tokens + num_tokens - s->num_recent, s->num_recent * sizeof *tokens);
}

static void propose(ob_speculation *s, uint32_t token, uint32_t level) {
    s->recent[s->num_recent + s->num_proposed] = token;
    s->levels[s->num_proposed] = (uint8_t)level;
    s->proposed[s->num_proposed++] = token;
}

/* What the best number of looked-up tokens brings. */
static double look_up(ob_speculation *s, const uint32_t *tokens, uint32_t num_tokens, uint32_t most) {
    uint32_t found[OB_MAX_PROPOSED], match, count = ob_lookup(tokens, num_tokens, most, found, &match);
    double rate = 0.0;
    s->num_proposed = 0;
    for (uint32_t i = 0; i < count; i++) propose(s, found[i], ob_level_of_match(match + i));
    uint32_t best = ob_gain_best(&s->gain, s->levels, count, OB_LOOKUP_MEAN, 0, count, -1, &rate);
    if (!s->options.fixed) s->num_proposed = best;
    return rate;
}

/* Whether one more drafted token pays, given those proposed and the kind of the next one, if known. Decided before it is
 * drawn and never taken back: a proposal that was dropped for what it is would no longer be distributed as q. */
static int draft_pays(const ob_speculation *s, uint32_t known, uint32_t most) {
    double with, without;
    if (s->options.fixed) return 1;
    ob_gain_best(&s->gain, s->levels, known, OB_DRAFT_MEAN, s->num_proposed + 1, most, (int)known, &with);
    ob_gain_best(&s->gain, s->levels, known, OB_DRAFT_MEAN, s->num_proposed, s->num_proposed, (int)known, &without);
    return with > without;
}

/* Draws a token from the draft's logits, and keeps what from. */
static uint32_t draw_draft(ob_speculation *s, const ob_choice *choice) {
    if (!s->q) return choice->best;
    float *q = s->q + (size_t)s->num_proposed * s->vocab_size;
    for (uint32_t i = 0; i < s->vocab_size; i++) q[i] = (float)ob_choice_probability(choice, i);
    return ob_choice_draw(choice, ob_sampler_next(&s->draft_sampler));
}

/* After what the model accepted entirely the draft reads two tokens, after a pause many: those say nothing about its cost. */
static void count_draft(ob_speculation *s, uint32_t num_tokens, double seconds) {
    s->counts.drafted++;
    s->counts.draft_seconds += seconds;
    if (num_tokens <= 2 && s->learns_costs) ob_gain_learn_cost(&s->gain.draft, seconds);
}

static void draft(ob_speculation *s, const uint32_t *tokens, uint32_t num_tokens, uint32_t most) {
    uint32_t held = ob_session_position(s->draft);
    const uint32_t *next = tokens + held;
    uint32_t count = num_tokens - held;
    s->num_proposed = 0;
    while (s->num_proposed < most) {
        ob_choice choice;
        if (count > ob_session_max_positions(s->draft) - ob_session_position(s->draft)) break; /* a shorter context than the target's */
        double begin = now(s);
        if (ob_forward(s->draft, next, count, OB_LOGITS_LAST, s->draft_logits, NULL)) break;
        count_draft(s, count, now(s) - begin);
        uint32_t seen = s->num_recent + s->num_proposed, window = s->options.repetition_window;
        uint32_t used = seen < window ? seen : window;
        if (ob_choice_make(&s->draft_sampler.options, s->draft_logits, s->vocab_size, s->recent + seen - used, used, 1,
                           s->sampler_arena, &choice, NULL))
            break; /* a draft that is broken proposes nothing */
        uint32_t level = ob_level_of_margin(choice.margin);
        s->levels[s->num_proposed] = (uint8_t)level;
        if (!draft_pays(s, s->num_proposed + 1, most)) break;
        propose(s, draw_draft(s, &choice), level);
        if (s->num_proposed == most || !draft_pays(s, s->num_proposed, most)) break;
        next = &s->proposed[s->num_proposed - 1];
        count = 1;
    }
}

/* Chooses a source and lets it propose; returns whether it was the draft. */
static int find_proposals(ob_speculation *s, const uint32_t *tokens, uint32_t num_tokens, uint32_t most) {
    double looked_up = s->options.lookup ? look_up(s, tokens, num_tokens, most) : 1.0, drafted = 0.0;
    if (!s->draft || !most) return 0;
    ob_gain_best(&s->gain, s->levels, 0, OB_DRAFT_MEAN, 1, most, 0, &drafted);
    int probe = ++s->steps_without_draft >= PROBE_EVERY;
    if (!probe && drafted <= looked_up && !(s->options.fixed && !s->num_proposed)) return 0;
    s->steps_without_draft = 0;
    draft(s, tokens, num_tokens, most);
    return s->num_proposed > 0;
}

/* ---- the step ---- */

static void forget_beyond(ob_session *session, uint32_t position) {
    if (ob_session_position(session) > position) ob_session_truncate(session, position, NULL);
}

/* A look-up that was not tried is still right or wrong: it costs nothing to learn from. */
static void learn(ob_speculation *s, const uint32_t *tokens, uint32_t num_tokens, uint32_t num_new, uint32_t first_new) {
    uint32_t found, match;
    uint8_t level;
    if (s->num_proposed) {
        ob_gain_learn(&s->gain, s->levels, s->num_proposed, num_new - 1);
    } else if (s->options.lookup && ob_lookup(tokens, num_tokens, 1, &found, &match)) {
        level = (uint8_t)ob_level_of_match(match);
        ob_gain_learn(&s->gain, &level, 1, found == first_new);
    }
}

static uint32_t room(const ob_speculation *s, uint32_t most) {
    uint32_t places = ob_session_max_positions(s->target) - ob_session_position(s->target), limit = s->options.max_proposed;
    if (most - 1 < limit) limit = most - 1;
    return places - 1 < limit ? places - 1 : limit;
}

ob_status ob_speculation_step(ob_speculation *s, ob_sampler *sampler, const uint32_t *tokens, uint32_t num_tokens, uint32_t most,
                              uint32_t *new_tokens, uint32_t *num_new, ob_error *error) {
    uint32_t batch[OB_MAX_PROPOSED + 1];
    if (!s || !sampler || !tokens || !num_tokens || !most || !new_tokens || !num_new)
        return ob_fail(error, OB_ERROR_ARGUMENT, "ob_speculation_step: a null pointer or nothing to do");
    const uint32_t position = ob_session_position(s->target);
    if (position + 1 != num_tokens)
        return ob_fail(error, OB_ERROR_ARGUMENT, "the text has %u tokens, so the session must hold %u; it holds %u", num_tokens,
                       num_tokens - 1, position);
    if (position >= ob_session_max_positions(s->target))
        return ob_fail(error, OB_ERROR_FULL, "the context is full: %u tokens", position);
    if (s->draft) forget_beyond(s->draft, position);
    double begin = now(s);
    begin_recent(s, tokens, num_tokens);
    s->num_proposed = 0;
    int drawn = find_proposals(s, tokens, num_tokens, room(s, most)) && s->q;
    double asked = now(s);
    batch[0] = tokens[num_tokens - 1];
    memcpy(batch + 1, s->proposed, s->num_proposed * sizeof *batch);
    ob_status status = ob_forward(s->target, batch, s->num_proposed + 1, OB_LOGITS_ALL, s->logits, error);
    if (status == OB_OK)
        status = ob_verify(sampler, s->logits, s->vocab_size, s->recent, s->num_recent, s->options.repetition_window,
                           s->num_proposed, drawn ? s->q : NULL, s->sampler_arena, ob_sampler_arena_bytes(s->vocab_size),
                           new_tokens, num_new, error);
    forget_beyond(s->target, status ? position : position + *num_new);
    if (s->draft) forget_beyond(s->draft, ob_session_position(s->target));
    if (status) return status;
    double end = now(s);
    learn(s, tokens, num_tokens, *num_new, new_tokens[0]);
    if (s->learns_costs) ob_gain_learn_cost(&s->gain.verify[s->num_proposed + 1], end - asked);
    s->counts.steps++;
    s->counts.proposed += s->num_proposed;
    s->counts.accepted += *num_new - 1;
    s->counts.seconds += end - begin;
    return OB_OK;
}

/* ---- making one ---- */

static size_t align8(size_t bytes) { return (bytes + 7) & ~(size_t)7; }

/* Hands out the arena's parts; with a NULL arena it only counts. */
static size_t lay_out(ob_speculation *s, const ob_speculation_options *o, uint32_t vocab_size, int has_draft, uint8_t *arena) {
    uint32_t most = o->max_proposed ? o->max_proposed : DEFAULT_PROPOSED;
    size_t row = vocab_size * sizeof(float), at = align8(sizeof *s);
    size_t q_bytes = has_draft && o->sampling.temperature != 0.0f ? most * row : 0;
    size_t parts[] = {(most + 1) * row, has_draft ? row : 0, q_bytes,
                      ((size_t)o->repetition_window + most) * sizeof(uint32_t), ob_sampler_arena_bytes(vocab_size)};
    void *places[5];
    for (int i = 0; i < 5; i++) {
        places[i] = arena && parts[i] ? arena + at : NULL;
        at += align8(parts[i]);
    }
    if (s) {
        s->logits = places[0];
        s->draft_logits = places[1];
        s->q = places[2];
        s->recent = places[3];
        s->sampler_arena = places[4];
    }
    return at;
}

static ob_status check(const ob_speculation_options *o, const ob_session *target, const ob_session *draft, ob_error *error) {
    if (!o || !target) return ob_fail(error, OB_ERROR_ARGUMENT, "speculation: options or target is a null pointer");
    if (!o->lookup && !draft) return ob_fail(error, OB_ERROR_ARGUMENT, "speculation needs a draft or look-up");
    if (draft == target) return ob_fail(error, OB_ERROR_ARGUMENT, "the draft and the model need sessions of their own");
    if (o->max_proposed > OB_MAX_PROPOSED)
        return ob_fail(error, OB_ERROR_ARGUMENT, "at most %u tokens can be proposed in a step, got %u", (uint32_t)OB_MAX_PROPOSED,
                       o->max_proposed);
    if (o->repetition_window > 1u << 20)
        return ob_fail(error, OB_ERROR_ARGUMENT, "the repetition window is at most 1048576 tokens, got %u", o->repetition_window);
    if (draft && draft->model->description.vocab_size != target->model->description.vocab_size)
        return ob_fail(error, OB_ERROR_ARGUMENT, "the draft has a vocabulary of %u tokens, the model of %u: they must be the same",
                       draft->model->description.vocab_size, target->model->description.vocab_size);
    return OB_OK;
}

ob_status ob_speculation_arena_bytes(const ob_speculation_options *o, const ob_session *target, const ob_session *draft,
                                     size_t *bytes, ob_error *error) {
    if (!bytes) return ob_fail(error, OB_ERROR_ARGUMENT, "bytes is a null pointer");
    ob_status status = check(o, target, draft, error);
    if (status == OB_OK) *bytes = lay_out(NULL, o, target->model->description.vocab_size, draft != NULL, NULL);
    return status;
}

/* Bytes of a model's tensors: what a pass reads. */
static double size_of(const ob_model *model) {
    ob_tensor_info info;
    double bytes = 0.0;
    for (uint32_t i = 0; i < ob_model_num_tensors(model); i++)
        if (!ob_model_tensor(model, i, &info, NULL)) bytes += (double)info.data_bytes;
    return bytes;
}

ob_status ob_speculation_init(const ob_speculation_options *o, ob_session *target, ob_session *draft, void *arena,
                              size_t arena_bytes, ob_speculation **speculation, ob_error *error) {
    size_t needed;
    if (!speculation || !arena) return ob_fail(error, OB_ERROR_ARGUMENT, "speculation or arena is a null pointer");
    ob_status status = ob_speculation_arena_bytes(o, target, draft, &needed, error);
    if (status) return status;
    if (arena_bytes < needed)
        return ob_fail(error, OB_ERROR_MEMORY, "the arena has %U bytes and needs %U", (uint64_t)arena_bytes, (uint64_t)needed);
    ob_speculation *s = arena;
    memset(s, 0, sizeof *s);
    s->options = *o;
    if (!o->max_proposed) s->options.max_proposed = DEFAULT_PROPOSED;
    s->target = target;
    s->draft = draft;
    s->vocab_size = target->model->description.vocab_size;
    lay_out(s, o, s->vocab_size, draft != NULL, arena);
    ob_sampler_options own = o->sampling;
    own.seed ^= 0xd1b54a32d192ed03ull; /* the draft's numbers must not be those that accept */
    if ((status = ob_sampler_init(&s->draft_sampler, &own, error))) return status;
    s->learns_costs = o->clock && !s->q; /* see onebit.h */
    ob_gain_init(&s->gain, draft ? size_of(draft->model) / size_of(target->model) : 0.0);
    *speculation = s;
    return OB_OK;
}

void ob_speculation_count(const ob_speculation *s, ob_speculation_counts *counts) { *counts = s->counts; }
