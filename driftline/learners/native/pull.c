/* The gradient of squared distances, in one pass where PyTorch takes two. */
#include "arithmetic.h"

/* gradient <- gradient + a value - a target */
void add_away(float *restrict gradient, const float *restrict value, const float *restrict target, float a, int64_t size)
{
    for (int64_t i = 0; i < size; i++)
        gradient[i] = multiply_add(-a, target[i], multiply_add(a, value[i], gradient[i]));
}
