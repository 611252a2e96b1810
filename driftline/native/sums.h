/* Sums over contiguous floats, each as eight partial sums side by side. */
#ifndef DRIFTLINE_SUMS_H
#define DRIFTLINE_SUMS_H

#include "arithmetic.h"

static inline float dot(const float *x, const float *y, int64_t size)
{
    floats sums = {0};
    float rest = 0.0f;
    int64_t i = 0;
    for (; i + WIDE <= size; i += WIDE)
        sums = multiply_add_wide(load(x + i), load(y + i), sums);
    for (; i < size; i++)
        rest = multiply_add(x[i], y[i], rest);
    return sum_wide(sums) + rest;
}

/* The dot products of x with four vectors one ``stride`` apart: x is read once for all of them. */
static inline void four_dots(const float *x, const float *y, int64_t stride, int64_t size, float dots[4])
{
    const float *second = y + stride, *third = second + stride, *fourth = third + stride;
    floats a = {0}, b = {0}, c = {0}, d = {0};
    int64_t i = 0;
    for (; i + WIDE <= size; i += WIDE) {
        floats now = load(x + i);
        a = multiply_add_wide(now, load(y + i), a);
        b = multiply_add_wide(now, load(second + i), b);
        c = multiply_add_wide(now, load(third + i), c);
        d = multiply_add_wide(now, load(fourth + i), d);
    }
    dots[0] = sum_wide(a);
    dots[1] = sum_wide(b);
    dots[2] = sum_wide(c);
    dots[3] = sum_wide(d);
    for (; i < size; i++)
        for (int k = 0; k < 4; k++)
            dots[k] = multiply_add(x[i], y[k * stride + i], dots[k]);
}

static inline float sum_of_squares(const float *x, int64_t size) { return dot(x, x, size); }

/* Sums of |W| over one row, added to those over columns. */
static inline float absolute_row(const float *row, int64_t columns, float *column_sums)
{
    floats sums = {0};
    float rest = 0.0f;
    int64_t i = 0;
    for (; i + WIDE <= columns; i += WIDE) {
        floats now = absolute_wide(load(row + i));
        sums += now;
        store(column_sums + i, load(column_sums + i) + now);
    }
    for (; i < columns; i++) {
        rest += absolute(row[i]);
        column_sums[i] += absolute(row[i]);
    }
    return sum_wide(sums) + rest;
}

/* The same for four rows at once: the columns' sums are read and written once for all of them. */
static inline void absolute_rows(const float *first, int64_t columns, float *column_sums, float *row_sums)
{
    const float *second = first + columns, *third = second + columns, *fourth = third + columns;
    floats sums[4] = {{0}};
    int64_t i = 0;
    for (; i + WIDE <= columns; i += WIDE) {
        floats a = absolute_wide(load(first + i)), b = absolute_wide(load(second + i));
        floats c = absolute_wide(load(third + i)), d = absolute_wide(load(fourth + i));
        sums[0] += a;
        sums[1] += b;
        sums[2] += c;
        sums[3] += d;
        store(column_sums + i, load(column_sums + i) + ((a + b) + (c + d)));
    }
    for (int k = 0; k < 4; k++)
        row_sums[k] = sum_wide(sums[k]);
    for (; i < columns; i++)
        for (int k = 0; k < 4; k++) {
            float now = absolute(first[k * columns + i]);
            row_sums[k] += now;
            column_sums[i] += now;
        }
}

/* Sums of |W| over each row and over each column of W (rows, columns). */
OUT_OF_LINE void absolute_matrix(const float *w, int64_t rows, int64_t columns, float *row_sums, float *column_sums)
{
    for (int64_t i = 0; i < columns; i++)
        column_sums[i] = 0.0f;
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4)
        absolute_rows(w + i * columns, columns, column_sums, row_sums + i);
    for (; i < rows; i++)
        row_sums[i] = absolute_row(w + i * columns, columns, column_sums);
}

#endif
