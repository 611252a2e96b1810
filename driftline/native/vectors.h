/* Loops over contiguous floats; those that sum are in sums.h. */
#ifndef DRIFTLINE_VECTORS_H
#define DRIFTLINE_VECTORS_H

#include "sums.h"

/* y <- y + a x */
static inline void add_scaled(float *restrict y, float a, const float *restrict x, int64_t size)
{
    for (int64_t i = 0; i < size; i++)
        y[i] = multiply_add(a, x[i], y[i]);
}

/* y <- y + a[0] x[0] + ... + a[3] x[3], with the rows of x one ``stride`` apart: y is read and written once. */
OUT_OF_LINE void add_four_scaled(float *restrict y, const float a[4], const float *restrict x, int64_t stride,
                                   int64_t size)
{
    const float *second = x + stride, *third = second + stride, *fourth = third + stride;
    float a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3];
    for (int64_t i = 0; i < size; i++) {
        float sum = multiply_add(a0, x[i], y[i]);
        sum = multiply_add(a1, second[i], sum);
        sum = multiply_add(a2, third[i], sum);
        y[i] = multiply_add(a3, fourth[i], sum);
    }
}

/* y <- k y + a x */
static inline void keep_and_add(float *restrict y, float k, float a, const float *restrict x, int64_t size)
{
    for (int64_t i = 0; i < size; i++)
        y[i] = multiply_add(a, x[i], k * y[i]);
}

/* y <- a x */
static inline void set_scaled(float *restrict y, float a, const float *restrict x, int64_t size)
{
    for (int64_t i = 0; i < size; i++)
        y[i] = a * x[i];
}

/* y <- y + w (x - y) */
static inline void approach(float *restrict y, float w, const float *restrict x, int64_t size)
{
    for (int64_t i = 0; i < size; i++)
        y[i] = multiply_add(w, x[i] - y[i], y[i]);
}

static inline void set_zero(float *y, int64_t size) { memset(y, 0, (size_t)size * sizeof *y); }

#endif
