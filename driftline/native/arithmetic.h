/* Elementary functions on floats, written without branches so that a compiler turns loops over them into vectors.
 *
 * Multiply-adds are fused by name only (contraction is off): a number is the same wherever the function is inlined.
 */
#ifndef DRIFTLINE_ARITHMETIC_H
#define DRIFTLINE_ARITHMETIC_H

#include <stdint.h>
#include <string.h>

#ifdef __SSE2__
#include <immintrin.h>
#endif

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define multiply_add(a, b, c) __builtin_fmaf(a, b, c)
#else
#define multiply_add(a, b, c) ((a) * (b) + (c))
#endif

/* Eight floats side by side, which the compiler makes of the machine's vectors, however wide. */
typedef float floats __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(32), aligned(4), may_alias));

enum { WIDE = 8 };

static inline floats load(const float *x) { return *(const floats *)x; }

static inline void store(float *x, floats value) { *(floats *)x = value; }

static inline floats multiply_add_wide(floats a, floats b, floats c)
{
#if defined(__AVX__) && defined(__FMA__)
    return (floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

static inline floats absolute_wide(floats x) { return (floats)((ints)x & 0x7FFFFFFF); }

static inline float sum_wide(floats x) { return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])); }

/* For functions with long vector loops: copies of them wherever they are called cost time to compile, and gain none. */
#define OUT_OF_LINE __attribute__((noinline, unused)) static

/* Numbers below 2^-126 make arithmetic a hundred times slower; here they count as 0, as in torch.set_flush_denormal.
 * Returns what restore_subnormals takes. */
static inline uint64_t flush_subnormals(void)
{
    uint64_t before = 0;
#if defined(__SSE2__)
    before = _mm_getcsr();
    _mm_setcsr((uint32_t)before | 0x8040u);
#elif defined(__aarch64__)
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before | 1u << 24));
#endif
    return before;
}

static inline void restore_subnormals(uint64_t before)
{
#if defined(__SSE2__)
    _mm_setcsr((uint32_t)before);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(before));
#else
    (void)before;
#endif
}

static inline uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float largest(float a, float b) { return a > b ? a : b; }

static inline float absolute(float x) { return float_of(bits_of(x) & 0x7FFFFFFFu); }

/* Natural logarithm of a normal positive number, to 1e-7: x = m 2^e with m in [sqrt 1/2, sqrt 2). */
static inline float logarithm(float x)
{
    uint32_t shifted = bits_of(x) - 0x3F3504F3u;
    float exponent = (float)((int32_t)shifted >> 23);
    float f = float_of((shifted & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
    float p = 8.7004392980e-2f;
    p = multiply_add(p, f, -1.4267490981e-1f);
    p = multiply_add(p, f, 1.4914768527e-1f);
    p = multiply_add(p, f, -1.6577584250e-1f);
    p = multiply_add(p, f, 1.9963063711e-1f);
    p = multiply_add(p, f, -2.5001337048e-1f);
    p = multiply_add(p, f, 3.3333910739e-1f);
    p = multiply_add(p, f, -0.5f);
    return multiply_add(exponent, 0.693147180559945f, multiply_add(p * f, f, f));
}

/* e^x, to 2e-7 (1 + |x| / 4), for x within [-87, 88], to which others are moved; not a number stays so. */
static inline float exponential(float x)
{
    float clipped = 88.0f < x ? 88.0f : x;
    clipped = -87.0f > clipped ? -87.0f : clipped;
    const float magic = 12582912.0f; /* 1.5 * 2^23: a sum with it has no bits for a fraction, and ends in a whole number */
    float sum = multiply_add(clipped, 1.44269504088896341f, magic);
    float f = multiply_add(clipped, 1.44269504088896341f, -(sum - magic));
    float p = 1.3264727271e-3f;
    p = multiply_add(p, f, 9.6715127561e-3f);
    p = multiply_add(p, f, 5.5507337441e-2f);
    p = multiply_add(p, f, 2.4022242084e-1f);
    p = multiply_add(p, f, 6.9314697760e-1f);
    p = multiply_add(p, f, 1.0f);
    return p * float_of((bits_of(sum) << 23) + 0x3F800000u);
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

static inline float hyperbolic_tangent(float x)
{
    float size = absolute(x), square = x * x;
    float p = -5.7170439924e-3f;
    p = multiply_add(p, square, 2.0650586431e-2f);
    p = multiply_add(p, square, -5.3743497849e-2f);
    p = multiply_add(p, square, 1.3331491285e-1f);
    p = multiply_add(p, square, -3.3333283925e-1f);
    float near = multiply_add(p * square, x, x);
    float far = 1.0f - 2.0f / (exponential(size + size) + 1.0f);
    far = float_of(bits_of(far) | (bits_of(x) & 0x80000000u));
    return size < 0.625f ? near : far;
}

/* Cosine and sine of a whole turn times t, for t in [-1/2, 1/2], to 2e-7: from those of half the angle, which lies
 * within a quarter turn, where a polynomial does without cases. */
static inline void cosine_and_sine(float t, float *cosine, float *sine)
{
    float a = t * 3.14159265358979324f;
    float square = a * a;
    float s = 2.6089324475e-06f;
    s = multiply_add(s, square, -1.9811112663e-04f);
    s = multiply_add(s, square, 8.3330881662e-03f);
    s = multiply_add(s, square, -1.6666660462e-01f);
    s = multiply_add(s * square, a, a);
    float c = 2.3194384562e-5f;
    c = multiply_add(c, square, -1.3855927104e-3f);
    c = multiply_add(c, square, 4.1663989445e-2f);
    c = multiply_add(c, square, -4.9999932293e-1f);
    c = multiply_add(c, square, 1.0f);
    float doubled = s + s;
    *cosine = multiply_add(-doubled, s, 1.0f);
    *sine = doubled * c;
}

#endif
