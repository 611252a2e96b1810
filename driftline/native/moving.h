/* How parameters move: gradient descent with decay and noise, and UPGD; and the penalties that pull them. */
#ifndef DRIFTLINE_MOVING_H
#define DRIFTLINE_MOVING_H

#include "upgd.h"
#include "vectors.h"

typedef enum { DESCENT, UPGD } optimizer_kind;
typedef enum { QUIET, NORMAL, UNIFORM } noise_kind;

/* What one parameter of one replica is moved with. */
typedef struct {
    double pull, pull_initial; /* g <- g + pull w - pull_initial w0 */
    double keep, rate;         /* w <- keep w + rate g + ... */
    double noise;              /* descent: + noise n; UPGD: its sigma */
    double beta;               /* UPGD: decay of the trace */
} numbers;

/* A weight or a bias of one layer, of all R networks. */
typedef struct {
    float *value;         /* (R, size); NULL: there is none */
    float *trace;         /* (R, size), of UPGD, or NULL */
    const float *initial; /* (R, size), or NULL: what it is pulled to */
    const numbers *each;  /* (R,) */
    int64_t size;         /* numbers in one replica */
    int64_t place;        /* where they begin among all those of a replica */
    int64_t drawn;        /* where its noise begins in a replica's draw; -1: it has none */
} parameter;

/* Parameters one behind the other that UPGD moves as one. */
typedef struct {
    const numbers *each; /* (R,) */
    int64_t size, place, drawn;
    int64_t unit;  /* consecutive ones that share a norm */
    int64_t steps; /* that they have made */
} span;

typedef struct {
    int32_t kind, noise;                 /* optimizer_kind, noise_kind */
    int32_t local, released, protecting; /* UPGD */
    int32_t unused;
    const int64_t *keys; /* (R, 2) */
    int64_t step, draw;  /* address of the first step's noise, and numbers in it */
    int64_t spans;
    const span *span; /* UPGD */
} optimizer;

/* Draws a replica's noise for one step. */
static inline void draw_noise(const optimizer *o, int64_t replica, int64_t step, float *noise)
{
    if (o->noise == QUIET)
        return;
    address a = address_of(o->keys, replica, o->step + step, 0);
    draw_groups(o->noise == NORMAL ? normal_group : uniform_group, &a, o->draw, noise);
    if (o->noise == UNIFORM)
        for (int64_t i = 0; i < o->draw; i++)
            noise[i] = 2.0f * noise[i] - 1.0f;
}

/* Adds what penalties add to a gradient. */
static inline void add_pull(const numbers *n, const float *restrict w, const float *restrict initial,
                            float *restrict gradient, int64_t size)
{
    if (n->pull != 0.0)
        add_scaled(gradient, (float)n->pull, w, size);
    if (initial)
        add_scaled(gradient, -(float)n->pull_initial, initial, size);
}

/* Moves weights by descent along a times g. */
static inline void descend(const numbers *n, float *restrict w, float a, const float *restrict g,
                           const float *restrict noise, int64_t size)
{
    float rate = (float)n->rate * a;
    if (n->keep == 1.0)
        add_scaled(w, rate, g, size);
    else
        keep_and_add(w, (float)n->keep, rate, g, size);
    if (noise)
        add_scaled(w, (float)n->noise, noise, size);
}

static inline upgd_numbers upgd_numbers_of(const numbers *n, int64_t steps)
{
    float rate = (float)n->rate;
    return (upgd_numbers){
        .trace_keep = (float)n->beta,
        .trace_take = (float)(n->beta - 1.0),
        .correction = (float)(1.0 - pow(n->beta, (double)steps)),
        .keep = (float)n->keep,
        .rate = rate,
        .sigma = (float)n->noise,
        .noise_rate = (float)(n->rate * n->noise),
    };
}

#endif
