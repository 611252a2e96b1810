/* Whole draws of random numbers: (R, count) floats, each replica's from its own key. */
#include "philox.h"

static inline void fill(group_of_numbers group, const address *a, int64_t count, float *numbers)
{
    int64_t whole = count - count % GROUP;
    draw_groups(group, a, whole, numbers);
    if (whole < count) {
        float rest[GROUP];
        group(a, (uint32_t)(whole / 4), rest);
        memcpy(numbers + whole, rest, (size_t)(count - whole) * sizeof *rest);
    }
}

void philox_normal(const int64_t *keys, int64_t replicas, int64_t step, int64_t lane, int64_t count, float *numbers)
{
    for (int64_t r = 0; r < replicas; r++) {
        address a = address_of(keys, r, step, lane);
        fill(normal_group, &a, count, numbers + r * count);
    }
}

void philox_uniform(const int64_t *keys, int64_t replicas, int64_t step, int64_t lane, int64_t count, float *numbers)
{
    for (int64_t r = 0; r < replicas; r++) {
        address a = address_of(keys, r, step, lane);
        fill(uniform_group, &a, count, numbers + r * count);
    }
}
