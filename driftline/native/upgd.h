/* The first-order step of UPGD with one utility for each weight (Elsayed & Mahmood, ICLR 2024, Algorithm 1), on slices
 * of contiguous floats; driftline/learners/optimizers/utility.py says the same in PyTorch, with the notation used here.
 */
#ifndef DRIFTLINE_UPGD_H
#define DRIFTLINE_UPGD_H

#include "philox.h"
#include "sums.h"

/* What one parameter of one replica is stepped with. */
typedef struct {
    float trace_keep, trace_take; /* u <- keep u + take g w, with keep = beta and take = beta - 1 */
    float correction;             /* 1 - beta^t */
    float keep, rate;             /* w <- keep w + rate (...), with keep = 1 - lr decay and rate = -lr */
    float sigma, noise_rate;      /* of the noise: with g, or on its own (-lr sigma) */
} upgd_numbers;

/* The larger one, and not a number if any is not. */
static inline float highest(float a, float b) { return (b > a) | (b != b) ? b : a; }

/* Updates the trace of one weight. */
static inline float traced(const upgd_numbers *n, float trace, float gradient, float weight)
{
    return multiply_add(n->trace_take, gradient * weight, n->trace_keep * trace);
}

/* Updates a trace and returns its largest value. */
OUT_OF_LINE float upgd_trace(const upgd_numbers *n, int64_t size, float *restrict trace,
                               const float *restrict gradient, const float *restrict weight)
{
    enum { WIDTH = 32 };
    float top[WIDTH];
    for (int j = 0; j < WIDTH; j++)
        top[j] = -__builtin_inff();
    int64_t i = 0;
    for (; i + WIDTH <= size; i += WIDTH)
        for (int j = 0; j < WIDTH; j++) {
            trace[i + j] = traced(n, trace[i + j], gradient[i + j], weight[i + j]);
            top[j] = highest(top[j], trace[i + j]);
        }
    for (int j = 0; i < size; i++, j++) {
        trace[i] = traced(n, trace[i], gradient[i], weight[i]);
        top[j] = highest(top[j], trace[i]);
    }
    float all = top[0];
    for (int j = 1; j < WIDTH; j++)
        all = highest(all, top[j]);
    return all;
}

/* The largest corrected utility that divides all others; "released": the largest uncorrected one. */
static inline float upgd_eta(float eta, float top, float correction, int released)
{
    return highest(eta, released ? top : top / correction);
}

/* What a trace is multiplied by before the sigmoid: 0 where eta is no number to divide by. */
static inline float upgd_scale(float eta, float correction, int released)
{
    float divisor = eta * correction;
    return (released ? absolute(divisor) : divisor) >= 0x1p-126f ? 1.0f / divisor : 0.0f;
}

/* One over the norm of a unit's utilities. */
static inline float upgd_unit_scale(const float *trace, int64_t size, float correction)
{
    float norm = sqrtf(sum_of_squares(trace, size)), low = 1e-12f * correction;
    return 1.0f / (norm < low ? low : norm);
}

/* Moves one weight; noise is a standard normal number. */
static inline float upgd_moved(const upgd_numbers *n, int protecting, float scale, float weight, float trace,
                               float gradient, float noise)
{
    float open = sigmoid(-trace * scale);
    float kept = n->keep * weight;
    if (protecting)
        return multiply_add(n->rate * open, multiply_add(n->sigma, noise, gradient), kept);
    return multiply_add(n->noise_rate * noise, open, multiply_add(n->rate, gradient, kept));
}

/* Moves weights; noise may be NULL. */
OUT_OF_LINE void upgd_move(const upgd_numbers *numbers, int protecting, float scale, int64_t size,
                             float *restrict weight, const float *restrict trace, const float *restrict gradient,
                             const float *restrict noise)
{
    upgd_numbers n = *numbers;
    if (protecting && noise)
        for (int64_t i = 0; i < size; i++)
            weight[i] = upgd_moved(&n, 1, scale, weight[i], trace[i], gradient[i], noise[i]);
    else if (protecting)
        for (int64_t i = 0; i < size; i++)
            weight[i] = upgd_moved(&n, 1, scale, weight[i], trace[i], gradient[i], 0.0f);
    else if (noise)
        for (int64_t i = 0; i < size; i++)
            weight[i] = upgd_moved(&n, 0, scale, weight[i], trace[i], gradient[i], noise[i]);
    else
        for (int64_t i = 0; i < size; i++)
            weight[i] = upgd_moved(&n, 0, scale, weight[i], trace[i], gradient[i], 0.0f);
}

/* Moves weights whose noise begins at ``offset`` in the replica's draw, and is made a group at a time. */
static inline void upgd_move_making(const upgd_numbers *n, int protecting, float scale, int64_t size, float *weight,
                                    const float *trace, const float *gradient, const address *a, int64_t offset)
{
    float noise[GROUP];
    for (int64_t i = 0; i < size;) {
        int64_t place = (offset + i) % GROUP, count = GROUP - place < size - i ? GROUP - place : size - i;
        normal_group(a, (uint32_t)((offset + i - place) / 4), noise);
        if (count == GROUP)
            upgd_move(n, protecting, scale, GROUP, weight + i, trace + i, gradient + i, noise);
        else
            upgd_move(n, protecting, scale, count, weight + i, trace + i, gradient + i, noise + place);
        i += count;
    }
}

/* The same where utilities are scaled by the norm of each unit's; noise may be NULL. */
static inline void upgd_move_units(const upgd_numbers *n, int protecting, int64_t size, int64_t unit, float *weight,
                                   const float *trace, const float *gradient, const float *noise)
{
    for (int64_t i = 0; i < size; i += unit) {
        float scale = upgd_unit_scale(trace + i, unit, n->correction);
        upgd_move(n, protecting, scale, unit, weight + i, trace + i, gradient + i, noise ? noise + i : NULL);
    }
}

#endif
