/* Philox 4x32-10 (Salmon et al., SC 2011) and the numbers drawn with it, as in driftline/learners/draws.py.
 *
 * Numbers are made in groups of 8 blocks of 4 words, the width of a vector; a draw that ends inside a group makes the
 * whole group, so that each number is computed in the same way whatever the length of the draw.
 */
#ifndef DRIFTLINE_PHILOX_H
#define DRIFTLINE_PHILOX_H

#include <math.h>

#include "arithmetic.h"

enum { ROUNDS = 10, BLOCKS = 8, GROUP = 4 * BLOCKS };

/* Whose numbers, and which of them: the key of each round, and the words of the counter that all blocks share. */
typedef struct {
    uint32_t key[ROUNDS][2][BLOCKS];
    uint32_t counter[3];
} address;

static inline address address_of(const int64_t *keys, int64_t replica, int64_t step, int64_t lane)
{
    address a = {.counter = {(uint32_t)lane, (uint32_t)step, (uint32_t)((uint64_t)step >> 32)}};
    for (uint32_t turn = 0; turn < ROUNDS; turn++)
        for (int i = 0; i < BLOCKS; i++) {
            a.key[turn][0][i] = (uint32_t)keys[2 * replica] + turn * 0x9E3779B9u;
            a.key[turn][1][i] = (uint32_t)keys[2 * replica + 1] + turn * 0xBB67AE85u;
        }
    return a;
}

#ifdef __AVX2__
/* One round for four blocks, one in each 64-bit place. Upper halves hold rubbish, which no product reads. */
static inline void philox_round(__m256i c[4], __m256i key0, __m256i key1)
{
    __m256i product0 = _mm256_mul_epu32(c[0], _mm256_set1_epi64x(0xD2511F53));
    __m256i product1 = _mm256_mul_epu32(c[2], _mm256_set1_epi64x(0xCD9E8D57));
    c[0] = _mm256_xor_si256(_mm256_srli_epi64(product1, 32), _mm256_xor_si256(c[1], key0));
    c[2] = _mm256_xor_si256(_mm256_srli_epi64(product0, 32), _mm256_xor_si256(c[3], key1));
    c[1] = product1;
    c[3] = product0;
}

/* The even blocks of a group lie in the lower halves of its vector's places, the odd ones in the upper. */
static inline void philox_group(const address *a, uint32_t first, uint32_t words[4][BLOCKS])
{
    __m256i even[4], odd[4];
    even[0] = _mm256_add_epi64(_mm256_set1_epi64x(first), _mm256_setr_epi64x(0, 2, 4, 6));
    odd[0] = _mm256_add_epi64(_mm256_set1_epi64x(first), _mm256_setr_epi64x(1, 3, 5, 7));
    for (int j = 1; j < 4; j++)
        even[j] = odd[j] = _mm256_set1_epi32((int)a->counter[j - 1]);
    for (int turn = 0; turn < ROUNDS; turn++) {
        __m256i key0 = _mm256_loadu_si256((const __m256i *)a->key[turn][0]);
        __m256i key1 = _mm256_loadu_si256((const __m256i *)a->key[turn][1]);
        philox_round(even, key0, key1);
        philox_round(odd, key0, key1);
    }
    for (int j = 0; j < 4; j++) {
        __m256i both = _mm256_blend_epi32(even[j], _mm256_slli_epi64(odd[j], 32), 0xAA);
        _mm256_storeu_si256((__m256i *)words[j], both);
    }
}
#else
static inline void philox_group(const address *a, uint32_t first, uint32_t words[4][BLOCKS])
{
    for (int i = 0; i < BLOCKS; i++) {
        words[0][i] = first + (uint32_t)i;
        for (int j = 1; j < 4; j++)
            words[j][i] = a->counter[j - 1];
    }
    for (int turn = 0; turn < ROUNDS; turn++)
        for (int i = 0; i < BLOCKS; i++) {
            uint64_t product0 = (uint64_t)words[0][i] * 0xD2511F53u;
            uint64_t product1 = (uint64_t)words[2][i] * 0xCD9E8D57u;
            words[0][i] = (uint32_t)(product1 >> 32) ^ words[1][i] ^ a->key[turn][0][i];
            words[2][i] = (uint32_t)(product0 >> 32) ^ words[3][i] ^ a->key[turn][1][i];
            words[1][i] = (uint32_t)product1;
            words[3][i] = (uint32_t)product0;
        }
}
#endif

/* Uniform in [1, 2): the word's upper bits behind the binary point. */
static inline float one_and_fraction(uint32_t word) { return float_of(word >> 9 | 0x3F800000u); }

/* Uniform in (0, 1): the middle of one of 2^23 steps, so that nothing is rounded. */
static inline float uniform_of(uint32_t word) { return one_and_fraction(word) - (1.0f - 0x1p-24f); }

static inline void uniform_group(const address *a, uint32_t first, float numbers[GROUP])
{
    uint32_t words[4][BLOCKS];
    philox_group(a, first, words);
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < BLOCKS; i++)
            numbers[BLOCKS * j + i] = uniform_of(words[j][i]);
}

/* Standard normal numbers (Box & Muller 1958) from words 0 and 1, and from 2 and 3, of each block. */
static inline void normal_group(const address *a, uint32_t first, float numbers[GROUP])
{
    uint32_t words[4][BLOCKS];
    philox_group(a, first, words);
    for (int pair = 0; pair < 4; pair += 2)
        for (int i = 0; i < BLOCKS; i++) {
            float cosine, sine;
            float radius = sqrtf(-2.0f * logarithm(uniform_of(words[pair][i])));
            cosine_and_sine(one_and_fraction(words[pair + 1][i]) - 1.5f, &cosine, &sine);
            numbers[BLOCKS * pair + i] = radius * cosine;
            numbers[BLOCKS * (pair + 1) + i] = radius * sine;
        }
}

typedef void (*group_of_numbers)(const address *a, uint32_t first, float numbers[GROUP]);

/* Draws ``count`` numbers and those that complete the last group, for which there must be room. */
static inline void draw_groups(group_of_numbers group, const address *a, int64_t count, float *numbers)
{
    for (int64_t i = 0; i < count; i += GROUP)
        group(a, (uint32_t)(i / 4), numbers + i);
}

#endif
