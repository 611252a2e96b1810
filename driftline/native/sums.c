/* Sums of |W| over rows and over columns in one pass over W. */
#include "sums.h"

/* weight: (R, rows, columns); row_sums: (R, rows); column_sums: (R, columns). */
void absolute_sums(const float *weight, int64_t replicas, int64_t rows, int64_t columns, float *row_sums,
                   float *column_sums)
{
    for (int64_t r = 0; r < replicas; r++)
        absolute_matrix(weight + r * rows * columns, rows, columns, row_sums + r * rows, column_sums + r * columns);
}
