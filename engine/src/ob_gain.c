/* See ob_speculate.h. */
#include "ob_speculate.h"

#include "ob_platform.h"

/* Before anything is seen: how often proposals of a level are right. */
static const float first_guess[OB_LEVELS] = {0.30f, 0.50f, 0.65f, 0.75f, 0.85f, 0.93f, 0.75f,
                                             0.35f, 0.45f, 0.55f, 0.65f, 0.75f, 0.85f, 0.95f, 0.75f};
static const float guess_weight = 1.5f; /* in proposals: three misses end what does not work */
static const float memory = 0.97f;      /* of a level's past, for each proposal it makes */
static const double later_token = 0.20; /* what one token more costs a pass, until it is measured */

void ob_gain_init(ob_gain *g, double draft_share) {
    memset(g, 0, sizeof *g);
    for (uint32_t i = 0; i < OB_LEVELS; i++) {
        g->tried[i] = guess_weight;
        g->right[i] = guess_weight * first_guess[i];
    }
    g->draft_share = draft_share;
}

uint32_t ob_level_of_match(uint32_t match) {
    return match <= 1 ? 0 : match == 2 ? 1 : match == 3 ? 2 : match <= 5 ? 3 : match <= 9 ? 4 : 5;
}

uint32_t ob_level_of_margin(float margin) {
    static const float steps[] = {0.25f, 0.5f, 1.0f, 1.5f, 2.5f, 4.0f};
    uint32_t level = 0;
    while (level < 6 && margin >= steps[level]) level++;
    return OB_LOOKUP_LEVELS + level;
}

static void learn(ob_gain *g, uint32_t level, int right) {
    g->tried[level] = memory * g->tried[level] + 1.0f;
    g->right[level] = memory * g->right[level] + (right ? 1.0f : 0.0f);
}

void ob_gain_learn(ob_gain *g, const uint8_t *levels, uint32_t proposed, uint32_t accepted) {
    for (uint32_t i = 0; i < proposed && i <= accepted; i++) {
        learn(g, levels[i], i < accepted);
        learn(g, levels[i] < OB_LOOKUP_LEVELS ? OB_LOOKUP_MEAN : OB_DRAFT_MEAN, i < accepted);
    }
}

/* Down at once, up slowly and by a factor of two at most: what is slow once was disturbed. */
void ob_gain_learn_cost(double *cost, double seconds) {
    if (*cost == 0.0) *cost = seconds;
    else if (seconds < *cost) *cost += 0.5 * (seconds - *cost);
    else *cost += 0.1 * ((seconds < 2.0 * *cost ? seconds : 2.0 * *cost) - *cost);
}

static double guess(uint32_t num_tokens) { return 1.0 + later_token * (num_tokens - 1); }

/* Of a pass over so many tokens: measured, else from the nearest number that was. One that was disturbed and never ran again
 * must not decide: no pass costs more than a longer one, nor more for each token than a shorter one. */
static double verify_cost(const ob_gain *g, uint32_t num_tokens) {
    double cost = 0.0;
    for (uint32_t away = 0; away <= OB_MAX_PROPOSED + 1 && cost == 0.0; away++) {
        uint32_t below = num_tokens - away, above = num_tokens + away;
        if (away < num_tokens) cost = g->verify[below] * guess(num_tokens) / guess(below);
        if (above <= OB_MAX_PROPOSED + 1 && cost == 0.0) cost = g->verify[above] * guess(num_tokens) / guess(above);
    }
    if (cost == 0.0) return guess(num_tokens);
    for (uint32_t n = 1; n <= OB_MAX_PROPOSED + 1; n++) {
        double most = n >= num_tokens ? g->verify[n] : g->verify[n] * num_tokens / n;
        if (most > 0.0 && most < cost) cost = most;
    }
    return cost;
}

uint32_t ob_gain_best(const ob_gain *g, const uint8_t *levels, uint32_t known, uint32_t mean, uint32_t least, uint32_t most,
                      int drafted, double *rate) {
    const double plain = verify_cost(g, 1), share = g->draft > 0.0 ? g->draft : g->draft_share * plain;
    double tokens = 1.0, reached = 1.0;
    uint32_t best = least;
    *rate = 0.0;
    for (uint32_t n = 0; n <= most; n++) {
        if (n) {
            uint32_t level = n <= known ? levels[n - 1] : mean;
            reached *= g->right[level] / g->tried[level];
            tokens += reached;
        }
        double passes = drafted < 0 ? 0.0 : (double)((int)n < drafted ? drafted : (int)n);
        double here = tokens * plain / (verify_cost(g, n + 1) + passes * share);
        if (n < least || here <= *rate) continue;
        *rate = here;
        best = n;
    }
    return best;
}
