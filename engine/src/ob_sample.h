/* What a sampler may choose and how likely: the one distribution that drawing and speculation use. */
#ifndef OB_SAMPLE_H
#define OB_SAMPLE_H

#include "onebit.h"

/* Kept are the tokens whose weight is above that of `last`, or equal with an id not above it. */
typedef struct ob_choice {
    const float *weights; /* [vocab_size], the best one's is 1; greedy: NULL */
    const uint32_t *heap; /* the kept ids from the end, in falling order; NULL: all of at least `least` */
    uint32_t vocab_size, best, last, kept;
    float least, margin; /* margin: from the best logit to the second, both penalised */
    double total;        /* of the kept weights */
} ob_choice;

/* arena: ob_sampler_arena_bytes(vocab_size); the choice points into it. with_margin: 0 saves a pass. */
ob_status ob_choice_make(const ob_sampler_options *options, const float *logits, uint32_t vocab_size, const uint32_t *recent,
                         uint32_t num_recent, int with_margin, void *arena, ob_choice *choice, ob_error *error);
/* The token at `uniform` in [0, 1). */
uint32_t ob_choice_draw(const ob_choice *choice, double uniform);
double ob_choice_probability(const ob_choice *choice, uint32_t token);
/* The sampler's next number in [0, 1). */
double ob_sampler_next(ob_sampler *sampler);

#endif
