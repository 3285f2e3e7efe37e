/* The command line of onebit-run, read into one struct. */
#ifndef ONEBIT_RUN_OPTIONS_H
#define ONEBIT_RUN_OPTIONS_H

#include "onebit.h"

#define MAX_STOPS 8

typedef struct options {
    const char *model, *prompt, *draft;
    const char *stops[MAX_STOPS];
    uint32_t num_stops;
    uint32_t max_new_tokens; /* 0: until the context is full */
    uint32_t num_threads, isa, kv_type;
    uint32_t speculate_tokens; /* 0: as many as the engine likes */
    uint32_t keep;             /* first tokens kept in a context shift; UINT32_MAX: stop where the context is full */
    int chat, lookup, no_verify, info, stats, help;
    ob_sampler_options sampling;
} options;

extern const char options_help[];

/* Returns NULL, or what is wrong with the arguments as one line (static storage). */
const char *options_parse(options *o, int argc, char **argv);

#endif
