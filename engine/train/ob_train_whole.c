/* A deposit in one call, where one process holds the whole matrix: what onebit.optim.pure_deposit does step by step. */
#include "ob_train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double sum_of(const float *x, uint32_t count) {
    double sum = 0.0;
    for (uint32_t i = 0; i < count; i++) sum += x[i];
    return sum;
}

static double at_least(double x, double least) { return x > least ? x : least; }

static void move(float *moments, const double *sums, uint32_t count, double terms, double decay) {
    for (uint32_t i = 0; i < count; i++) moments[i] = (float)(moments[i] * decay + sums[i] / terms * (1.0 - decay));
}

int32_t ob_train_update_moments(const ob_train_normalisation *n, float peak, double settled, const double *row_O,
                                const double *column_I, const ob_train_moments *m) {
    const int32_t is_finite = isfinite(peak * peak);
    if (is_finite) {
        move(m->row_O, row_O, m->rows, m->cols, n->decay);
        move(m->column_I, column_I, m->cols, m->rows, n->decay);
    }
    const double row_mean = at_least(sum_of(m->row_O, m->rows) / m->rows, n->tiny);
    for (uint32_t i = 0; i < m->rows; i++)
        m->row_factors_O[i] = (float)(1.0 / sqrt(at_least(m->row_O[i] / row_mean, n->floor)));
    double column_sum = 0.0;
    for (uint32_t i = 0; i < m->cols; i++) column_sum += m->column_I[i] / settled;
    const double least = at_least(column_sum / m->cols * n->floor, n->tiny);
    for (uint32_t i = 0; i < m->cols; i++)
        m->column_factors_I[i] = (float)(1.0 / sqrt(at_least(m->column_I[i] / settled, least)));
    return is_finite;
}

/* square_shift: 1.5 * 2^k, so that `count` squares of at most peak^2 have an exact sum. */
static double square_shift(float peak, uint32_t count) {
    int exponent, bits = 0;
    while (bits < 32 && (1ull << bits) < count) bits++;
    frexp((double)peak * peak, &exponent);
    return ldexp(1.5, exponent + bits);
}

static float coefficient_of(const ob_train_normalisation *n, const ob_train_counters *counters, float eta,
                            double mean_square, int32_t forgets) {
    const float clipped = (float)(1.0 / at_least(sqrt(mean_square) / n->clip, 1.0));
    if (forgets) return -(eta * eta / 4.0f) * (clipped * clipped * clipped);
    return -(eta * (float)counters->threshold) * clipped;
}

int32_t ob_train_deposit_whole(const ob_train_gradient *g, const ob_train_counters *counters,
                               const ob_train_normalisation *n, float *row_moments_O, float *column_moments_I,
                               double settled, float eta, int32_t forgets, uint32_t seed, uint32_t tensor, uint64_t step) {
    const float peak = ob_train_peak(g);
    if (!isfinite(peak * peak)) return 1;
    const size_t count = (size_t)g->rows + g->cols;
    double *sums = malloc(count * (sizeof *sums + sizeof(float)));
    if (!sums) return 0;
    float *factors = (float *)(sums + count);
    const ob_train_moments m = {row_moments_O, column_moments_I, factors, factors + g->rows, g->rows, g->cols};
    const uint32_t most = g->rows > g->cols ? g->rows : g->cols;
    const int32_t fits = ob_train_square_sums(g, square_shift(peak, most), sums, sums + g->rows);
    if (fits) {
        ob_train_update_moments(n, peak, settled, sums, sums + g->rows, &m);
        const double energy = ob_train_update_energy(g, m.row_factors_O, m.column_factors_I, n->largest, n->energy_shift);
        const float coefficient = coefficient_of(n, counters, eta, energy / ((double)g->rows * g->cols), forgets);
        ob_train_deposit(g, counters, m.row_factors_O, m.column_factors_I, coefficient, forgets ? 3 : 1, seed, tensor, step,
                         0);
    }
    free(sums);
    return fits;
}
