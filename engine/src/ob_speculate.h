/* How many tokens to propose: what proposals of a kind were worth so far, and what a pass over several tokens costs. */
#ifndef OB_SPECULATE_H
#define OB_SPECULATE_H

#include "onebit.h"

/* Kinds of proposals by how sure their source is: look-up by the length of the match, a draft by the margin of its best
 * token. The last kind of a source is its average. */
enum { OB_LOOKUP_LEVELS = 7, OB_DRAFT_LEVELS = 8, OB_LEVELS = OB_LOOKUP_LEVELS + OB_DRAFT_LEVELS,
       OB_LOOKUP_MEAN = OB_LOOKUP_LEVELS - 1, OB_DRAFT_MEAN = OB_LEVELS - 1 };

typedef struct ob_gain {
    float right[OB_LEVELS], tried[OB_LEVELS];
    double verify[OB_MAX_PROPOSED + 2]; /* seconds of a pass over so many tokens; 0: not seen */
    double draft, draft_share;          /* seconds of a draft's pass, 0: not seen; and the estimate in passes of the model */
} ob_gain;

void ob_gain_init(ob_gain *g, double draft_share);
uint32_t ob_level_of_match(uint32_t match);
uint32_t ob_level_of_margin(float margin);
/* What came of proposals of these levels: the first `accepted` were right, the next one, if any, was wrong. */
void ob_gain_learn(ob_gain *g, const uint8_t *levels, uint32_t proposed, uint32_t accepted);
void ob_gain_learn_cost(double *cost, double seconds);
/* The best number of tokens from `least` to `most` to propose, the first `known` of these levels, later ones as level
 * `mean`. drafted: each costs a pass of the draft, and so many have run already; -1: they cost nothing. *rate: new tokens
 * for the cost of a pass of the model, with them. */
uint32_t ob_gain_best(const ob_gain *g, const uint8_t *levels, uint32_t known, uint32_t mean, uint32_t least, uint32_t most,
                      int drafted, double *rate);

#endif
