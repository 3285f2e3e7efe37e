/* See generate.h. */
#include "generate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { REPETITION_WINDOW = 64 }; /* as in onebit.engine */

volatile sig_atomic_t interrupted;

static char problem[320];

static const char *explain(const ob_error *error) {
    snprintf(problem, sizeof problem, "%s", error->message);
    return problem;
}

static double now(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The vocabularies must be one: as many tokens, each the same bytes. */
static const char *check_draft(const runner *r) {
    ob_description theirs;
    ob_tokenizer tokenizer;
    ob_error error;
    uint64_t bytes;
    const void *section = ob_model_section(r->draft_model, "TOKBIN", &bytes);
    ob_model_describe(r->draft_model, &theirs);
    if (theirs.vocab_size != r->description.vocab_size) {
        snprintf(problem, sizeof problem, "the draft has %u tokens, the model %u: a draft must have the model's tokenizer",
                 theirs.vocab_size, r->description.vocab_size);
        return problem;
    }
    if (!section) return NULL;
    if (ob_tokenizer_open(&tokenizer, section, (size_t)bytes, &error)) return explain(&error);
    for (uint32_t i = 0; i < theirs.vocab_size; i++) {
        size_t ours_bytes, their_bytes;
        const char *ours = ob_tokenizer_token(&r->tokenizer, i, 0, &ours_bytes);
        const char *their = ob_tokenizer_token(&tokenizer, i, 0, &their_bytes);
        if (ours_bytes != their_bytes || (ours_bytes && memcmp(ours, their, ours_bytes)))
            return "the draft's tokenizer is another one: a draft must have the model's tokenizer";
    }
    return NULL;
}

static const char *open_speculation(runner *r, const options *o) {
    ob_error error;
    ob_speculation_options settings = {o->speculate_tokens, (uint32_t)o->lookup, 0, 0, ob_seconds, o->sampling};
    size_t bytes;
    settings.repetition_window = o->sampling.repetition_penalty != 1.0f ? REPETITION_WINDOW : 0;
    if (o->draft) {
        ob_model_options model_options = {o->isa, (uint32_t)o->no_verify, o->num_threads, 0};
        ob_session_options session_options;
        memset(&session_options, 0, sizeof session_options);
        session_options.num_threads = o->num_threads;
        if (ob_load(o->draft, &model_options, &r->draft_model, &error)) return explain(&error);
        const char *wrong = check_draft(r);
        if (wrong) return wrong;
        if (ob_session_create(r->draft_model, &session_options, &r->draft, &error)) return explain(&error);
    }
    if (ob_speculation_arena_bytes(&settings, r->session, r->draft, &bytes, &error)) return explain(&error);
    if (!(r->speculation_arena = malloc(bytes))) return "out of memory";
    if (ob_speculation_init(&settings, r->session, r->draft, r->speculation_arena, bytes, &r->speculation, &error))
        return explain(&error);
    return NULL;
}

const char *runner_open(runner *r, const options *o) {
    ob_error error;
    ob_model_options model_options = {o->isa, (uint32_t)o->no_verify, o->num_threads, 0};
    ob_session_options session_options = {.num_threads = o->num_threads, .kv_type = o->kv_type};
    uint64_t bytes;
    memset(r, 0, sizeof *r);
    r->options = o;
    r->stop_token = OB_NO_TOKEN;
    if (ob_load(o->model, &model_options, &r->model, &error)) return explain(&error);
    ob_model_describe(r->model, &r->description);
    if (o->info) return NULL;
    const void *section = ob_model_section(r->model, "TOKBIN", &bytes);
    if (!section) {
        snprintf(problem, sizeof problem, "%.200s has no tokenizer for the C engine; export it again with one", o->model);
        return problem;
    }
    if (ob_tokenizer_open(&r->tokenizer, section, (size_t)bytes, &error)) return explain(&error);
    if (ob_session_create(r->model, &session_options, &r->session, &error)) return explain(&error);
    if (ob_sampler_init(&r->sampler, &o->sampling, &error)) return explain(&error);
    r->logits = malloc(r->description.vocab_size * sizeof(float));
    r->sampler_arena = malloc(ob_sampler_arena_bytes(r->description.vocab_size));
    r->tokens = malloc(((size_t)ob_session_max_positions(r->session) + 1) * sizeof(uint32_t));
    if (!r->logits || !r->sampler_arena || !r->tokens) return "out of memory";
    for (uint32_t i = 0; i < o->num_stops; i++) r->stops[r->num_stops++] = o->stops[i];
    if (o->keep != UINT32_MAX && o->keep + 2 > ob_session_max_positions(r->session)) return "--context-shift keeps too much";
    return o->draft || o->lookup ? open_speculation(r, o) : NULL;
}

void runner_close(runner *r) {
    free(r->logits);
    free(r->sampler_arena);
    free(r->tokens);
    free(r->speculation_arena);
    if (r->draft) ob_session_free(r->draft);
    if (r->draft_model) ob_unload(r->draft_model);
    if (r->session) ob_session_free(r->session);
    if (r->model) ob_unload(r->model);
    memset(r, 0, sizeof *r);
}

void runner_forget(runner *r) {
    ob_session_truncate(r->session, 0, NULL);
    if (r->draft) ob_session_truncate(r->draft, 0, NULL);
    r->num_tokens = 0;
}

static const char *forward(runner *r, const uint32_t *tokens, uint32_t n) {
    ob_error error;
    if (ob_forward(r->session, tokens, n, OB_LOGITS_LAST, r->logits, &error)) return explain(&error);
    memcpy(r->tokens + r->num_tokens, tokens, n * sizeof *tokens);
    r->num_tokens += n;
    return NULL;
}

const char *runner_read(runner *r, const char *text, size_t bytes, int begins) {
    ob_error error;
    size_t most = ob_tokenizer_max_tokens(&r->tokenizer, bytes), count = 0;
    size_t arena_bytes = ob_tokenizer_arena_bytes(&r->tokenizer, bytes);
    uint32_t begin = begins ? r->description.bos_token : OB_NO_TOKEN;
    uint32_t *tokens = malloc((most + 1) * sizeof *tokens), room = ob_session_max_positions(r->session) - r->num_tokens;
    void *arena = malloc(arena_bytes);
    const char *wrong = tokens && arena ? NULL : "out of memory";
    double start = now();
    if (!wrong && ob_tokenizer_encode(&r->tokenizer, text, bytes, 0, tokens, most, &count, arena, arena_bytes, &error))
        wrong = explain(&error);
    if (!wrong && begin != OB_NO_TOKEN && (count == 0 || tokens[0] != begin)) {
        memmove(tokens + 1, tokens, count++ * sizeof *tokens);
        tokens[0] = begin;
    }
    if (!wrong && count == 0 && r->num_tokens == 0) wrong = "the prompt is empty and the model has no token that begins a text";
    if (!wrong && count > room) {
        snprintf(problem, sizeof problem, "the prompt has %zu tokens, but only %u of the model's %u are free", count,
                 room, ob_session_max_positions(r->session));
        wrong = problem;
    }
    if (!wrong && count) wrong = forward(r, tokens, (uint32_t)count);
    r->prompt_tokens += count;
    r->prompt_seconds += now() - start;
    free(tokens);
    free(arena);
    return wrong;
}

/* Text that is generated but not shown yet, because a stop text or a character may be unfinished at its end. */
typedef struct pending { char *text; size_t bytes, capacity; } pending;

static int append(pending *p, const char *text, size_t bytes) {
    if (p->bytes + bytes > p->capacity) {
        size_t capacity = 2 * (p->bytes + bytes) + 64;
        char *grown = realloc(p->text, capacity);
        if (!grown) return 0;
        p->text = grown;
        p->capacity = capacity;
    }
    if (bytes) memcpy(p->text + p->bytes, text, bytes);
    p->bytes += bytes;
    return 1;
}

/* Where the first stop text begins, or p->bytes; *safe: how much cannot be part of one. */
static size_t find_stop(const runner *r, const pending *p, size_t *safe) {
    *safe = p->bytes;
    for (size_t at = 0; at < p->bytes; at++) {
        for (uint32_t i = 0; i < r->num_stops; i++) {
            size_t length = strlen(r->stops[i]), left = p->bytes - at;
            if (memcmp(p->text + at, r->stops[i], length < left ? length : left)) continue;
            if (length <= left) { *safe = at; return at; }
            if (at < *safe) *safe = at;
        }
    }
    return p->bytes;
}

static void show(pending *p, size_t bytes) {
    fwrite(p->text, 1, bytes, stdout);
    fflush(stdout);
    p->bytes -= bytes;
    memmove(p->text, p->text + bytes, p->bytes);
}

/* Drops the older half of what is not kept; models that cannot be shifted read the rest again. */
static const char *make_room(runner *r) {
    ob_error error;
    uint32_t keep = r->options->keep, discard = (r->num_tokens - keep) / 2, rest = r->num_tokens - keep - discard;
    if (r->draft) {
        uint32_t held = ob_session_position(r->draft);
        if (held <= keep + discard || ob_sequence_shift(r->draft, 0, keep, discard, NULL))
            ob_session_truncate(r->draft, held < keep ? held : keep, NULL);
    }
    ob_status status = ob_sequence_shift(r->session, 0, keep, discard, &error);
    memmove(r->tokens + keep, r->tokens + keep + discard, rest * sizeof *r->tokens);
    r->num_tokens = keep + rest;
    if (status != OB_ERROR_UNSUPPORTED) return status ? explain(&error) : NULL;
    if (ob_session_truncate(r->session, keep, &error) ||
        ob_forward(r->session, r->tokens + keep, rest, OB_LOGITS_NONE, NULL, &error))
        return explain(&error);
    return NULL;
}

static const char *sample(runner *r, uint32_t *token) {
    ob_error error;
    uint32_t recent = r->num_tokens < REPETITION_WINDOW ? r->num_tokens : REPETITION_WINDOW;
    if (ob_sample(&r->sampler, r->logits, r->description.vocab_size, r->tokens + r->num_tokens - recent, recent,
                  r->sampler_arena, ob_sampler_arena_bytes(r->description.vocab_size), token, &error))
        return explain(&error);
    return NULL;
}

/* The token after `*token`, of which at most `most` are wanted (0: no limit); *full where the context ends. */
static const char *next(runner *r, uint32_t most, uint32_t *token, int *full) {
    ob_error error;
    const char *wrong;
    if (r->num_ready) {
        *token = r->ready[--r->num_ready];
        return NULL;
    }
    if (ob_session_position(r->session) >= ob_session_max_positions(r->session)) {
        *full = r->options->keep == UINT32_MAX;
        if (*full) return NULL;
        if ((wrong = make_room(r))) return wrong;
    }
    if (!r->speculation) return (wrong = forward(r, token, 1)) ? wrong : sample(r, token);
    uint32_t new_tokens[OB_MAX_PROPOSED + 1], count;
    r->tokens[r->num_tokens] = *token;
    if (ob_speculation_step(r->speculation, &r->sampler, r->tokens, r->num_tokens + 1, most ? most : UINT32_MAX, new_tokens,
                            &count, &error))
        return explain(&error);
    memcpy(r->tokens + r->num_tokens + 1, new_tokens, (count - 1) * sizeof *new_tokens);
    r->num_tokens += count;
    while (count > 1) r->ready[r->num_ready++] = new_tokens[--count];
    *token = new_tokens[0];
    return NULL;
}

/* Forgets what was chosen beyond the end of an answer. */
static void drop_ready(runner *r) {
    if (!r->num_ready) return;
    r->num_tokens -= r->num_ready;
    r->num_ready = 0;
    ob_session_truncate(r->session, r->num_tokens, NULL);
    if (r->draft && ob_session_position(r->draft) > r->num_tokens) ob_session_truncate(r->draft, r->num_tokens, NULL);
}

const char *runner_answer(runner *r) {
    pending p = {NULL, 0, 0};
    uint32_t most = r->options->max_new_tokens, token;
    int stopped = 0, full = 0;
    double start = now();
    const char *wrong = sample(r, &token);
    for (uint32_t n = 1; !wrong; n++) {
        if (token == r->description.eos_token || token == r->stop_token) break;
        r->new_tokens++;
        if (!ob_tokenizer_is_special(&r->tokenizer, token)) {
            size_t bytes, safe;
            const char *text = ob_tokenizer_token(&r->tokenizer, token, r->num_tokens == 0, &bytes);
            if (!append(&p, text, bytes)) { wrong = "out of memory"; break; }
            size_t end = find_stop(r, &p, &safe);
            if (end < p.bytes) { p.bytes = end; stopped = 1; }
            else show(&p, ob_utf8_complete(p.text, safe));
        }
        if (n == most || interrupted || stopped) break;
        wrong = next(r, most ? most - n : 0, &token, &full);
        if (full) {
            fprintf(stderr, "\nnote: the context of %u tokens is full\n", ob_session_max_positions(r->session));
            break;
        }
    }
    drop_ready(r);
    if (p.bytes) show(&p, p.bytes);
    r->answer_seconds += now() - start;
    free(p.text);
    return wrong;
}
