/* Text in, text out: one model, its tokenizer and one sequence. */
#ifndef ONEBIT_RUN_GENERATE_H
#define ONEBIT_RUN_GENERATE_H

#include <signal.h>

#include "options.h"

typedef struct runner {
    const options *options;
    ob_model *model;
    ob_session *session;
    ob_model *draft_model; /* NULL without --draft, as the next */
    ob_session *draft;
    ob_speculation *speculation; /* NULL without --draft and --lookup */
    void *speculation_arena;
    ob_tokenizer tokenizer;
    ob_description description;
    ob_sampler sampler;
    float *logits;        /* [vocab_size] */
    void *sampler_arena;
    uint32_t *tokens;     /* [max_positions + 1] everything in the context, for the repetition penalty */
    uint32_t num_tokens;
    uint32_t num_stops;   /* texts that end an answer: the user's and, in a chat, the end of a turn */
    const char *stops[MAX_STOPS + 1];
    uint32_t stop_token;  /* in a chat: the token that ends a turn; else NO_TOKEN */
    uint32_t ready[OB_MAX_PROPOSED + 1], num_ready; /* chosen in one pass and not shown yet, the next one last */
    uint64_t prompt_tokens, new_tokens;
    double prompt_seconds, answer_seconds;
} runner;

/* Set by Ctrl-C; an answer ends at the next token. */
extern volatile sig_atomic_t interrupted;

/* All return NULL, or one line that says what is wrong (static storage). */
const char *runner_open(runner *r, const options *o);
/* Appends a text to the context; begins: with the model's first token before it, when it has one. */
const char *runner_read(runner *r, const char *text, size_t bytes, int begins);
/* Continues the context and streams to stdout. */
const char *runner_answer(runner *r);
void runner_forget(runner *r);
void runner_close(runner *r);

#endif
