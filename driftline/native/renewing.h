/* Continual backprop for one replica: how many units are due, how useful each is, and what renewing one does.
 *
 * driftline/learners/renewers/continual_backprop.py says the same in PyTorch, with the notation used here.
 */
#ifndef DRIFTLINE_RENEWING_H
#define DRIFTLINE_RENEWING_H

#include "philox.h"
#include "vectors.h"

typedef enum {
    CONTRIBUTION,
    ZERO_CONTRIBUTION,
    ADAPTABLE_CONTRIBUTION,
    ADAPTATION,
    FEATURE_BY_INPUT,
    WEIGHT,
    RANDOM
} utility_kind;

enum { ROWS, RANKS, COINS, LANES, COINS_AT_ONCE = 256 };

/* Counts a layer's eligible units; see driftline/learners/renewers/counting.py. */
typedef struct {
    double rate, carry;
    int64_t maturity, eligible;
    int64_t first, length;    /* past renewals whose units are not eligible yet: a ring of ``units`` places */
    int64_t *steps, *counts;
} counter;

/* The units of one hidden layer, of all R networks. */
typedef struct {
    int64_t layer, number, units;
    float *utility, *activation;        /* (R, units) */
    int64_t *birth;                     /* (R, units) */
    counter *counters;                  /* (R,) */
    const float *decay, *take, *mature; /* (R,): decay, 1 - decay, maturity */
    double bound;
} unit_group;

typedef struct {
    int64_t groups, step;
    const unit_group *group;
    const int64_t *keys; /* (R, 2) */
    int32_t utility, running, accumulate, released, compensate, forget;
    int32_t sweep; /* steps after which faded averages are set to 0 */
    float faded;
} renewal;

/* What a unit group of one replica is computed with. */
typedef struct {
    int64_t units, inputs, outputs, batch;
    const float *heard; /* (batch, units) */
    float *weight, *bias, *out_weight, *out_bias;
    float *trace, *bias_trace, *out_trace; /* of the optimizer, or NULL */
} unit_parts;

/* numbers <- the uniform numbers of a draw from ``first`` on. */
OUT_OF_LINE void uniform_range(const address *a, int64_t first, int64_t count, float *numbers)
{
    float group[GROUP];
    for (int64_t i = 0; i < count;) {
        int64_t place = (first + i) % GROUP, some = GROUP - place < count - i ? GROUP - place : count - i;
        uniform_group(a, (uint32_t)((first + i) / GROUP * BLOCKS), group);
        memcpy(numbers + i, group + place, (size_t)some * sizeof *numbers);
        i += some;
    }
}

static inline double coin(const renewal *r, const unit_group *g, int64_t replica, int64_t step)
{
    address a = address_of(r->keys, replica, step / COINS_AT_ONCE, LANES * g->number + COINS);
    float number;
    uniform_range(&a, step % COINS_AT_ONCE, 1, &number);
    return number;
}

/* How many of a group's units are due at a step; to be asked once at each. */
static inline int64_t units_due(const renewal *r, const unit_group *g, int64_t replica, int64_t step)
{
    counter *c = g->counters + replica;
    while (c->length && step - c->steps[c->first] > c->maturity) {
        c->eligible += c->counts[c->first];
        c->first = (c->first + 1) % g->units;
        c->length--;
    }
    if (!c->eligible || c->rate == 0.0)
        return 0;
    double expected = c->rate * (double)c->eligible;
    int64_t count = (int64_t)expected;
    if (r->accumulate) {
        c->carry += expected;
        count = (int64_t)c->carry < c->eligible ? (int64_t)c->carry : c->eligible;
        c->carry -= (double)count;
    } else if (r->released) {
        if (expected < 1.0)
            count = coin(r, g, replica, step) <= expected;
    } else if (expected > (double)count) {
        count += coin(r, g, replica, step) <= expected - (double)count;
    }
    if (count) {
        int64_t last = (c->first + c->length++) % g->units;
        c->steps[last] = step;
        c->counts[last] = count;
        c->eligible -= count;
    }
    return count;
}

static inline int is_centred(int32_t kind)
{
    return kind == ZERO_CONTRIBUTION || kind == ADAPTABLE_CONTRIBUTION || kind == FEATURE_BY_INPUT;
}

/* averages <- traces corrected for having started at 0 when the unit was born. */
OUT_OF_LINE void correct(const float *trace, const int64_t *birth, int64_t step, float decay, int64_t units,
                           float *average)
{
    for (int64_t i = 0; i < units; i++)
        average[i] = trace[i] / (1.0f - powf(decay, (float)(step - birth[i])));
}

/* means <- mean of h, or of |h - centre|, over the batch. */
OUT_OF_LINE void mean_over_batch(const unit_parts *p, int magnitudes, const float *centre, float *means)
{
    set_zero(means, p->units);
    for (int64_t b = 0; b < p->batch; b++) {
        const float *h = p->heard + b * p->units;
        for (int64_t i = 0; i < p->units; i++)
            means[i] += magnitudes ? absolute(centre ? h[i] - centre[i] : h[i]) : h[i];
    }
    if (p->batch > 1)
        for (int64_t i = 0; i < p->units; i++)
            means[i] /= (float)p->batch;
}

/* out <- the utility that units have for this batch. ``means`` are the corrected mean activations; ``room`` has room
 * for two numbers for each unit, output and input. */
static inline void instantaneous(int32_t kind, const unit_parts *p, const float *means, float *out, float *room)
{
    int64_t units = p->units;
    float *magnitude = room, *outgoing = magnitude + units, *incoming = outgoing + units, *rest = incoming + units;
    if (kind != ADAPTATION && kind != FEATURE_BY_INPUT)
        absolute_matrix(p->out_weight, p->outputs, units, rest, outgoing);
    if (kind == ADAPTATION || kind == FEATURE_BY_INPUT || kind == ADAPTABLE_CONTRIBUTION)
        absolute_matrix(p->weight, units, p->inputs, incoming, rest);
    if (kind != ADAPTATION && kind != WEIGHT)
        mean_over_batch(p, 1, is_centred(kind) ? means : NULL, magnitude);
    float per_output = 1.0f / (float)p->outputs, inputs = (float)p->inputs;
    for (int64_t i = 0; i < units; i++) {
        float from = kind == ADAPTATION || kind == WEIGHT ? 1.0f : magnitude[i];
        float to = kind == ADAPTATION || kind == FEATURE_BY_INPUT ? 1.0f : outgoing[i] * per_output;
        float by = kind == CONTRIBUTION || kind == ZERO_CONTRIBUTION || kind == WEIGHT ? 1.0f : incoming[i] / inputs;
        out[i] = from * to / by;
    }
}

/* Sets averages of units that are silent for good to 0: subnormal numbers make arithmetic slow. */
OUT_OF_LINE void sweep(float *average, int64_t units, float faded)
{
    for (int64_t i = 0; i < units; i++)
        average[i] *= absolute(average[i]) >= faded ? 1.0f : 0.0f;
}

/* Updates the averages of activation and utility. ``room``: as above, and two numbers more for each unit. */
static inline void track(const renewal *r, const unit_group *g, const unit_parts *p, int64_t replica, int64_t step,
                         float *room)
{
    int64_t units = g->units, at = replica * units;
    float *utility = g->utility + at, *activation = g->activation + at, *now = room, *means = now + units;
    mean_over_batch(p, 0, NULL, now);
    approach(activation, g->take[replica], now, units);
    if (r->running && r->utility != RANDOM) {
        if (is_centred(r->utility))
            correct(activation, g->birth + at, step, g->decay[replica], units, means);
        instantaneous(r->utility, p, means, now, means + units);
        approach(utility, g->take[replica], now, units);
    }
    if (step % r->sweep == 0) {
        sweep(utility, units, r->faded);
        sweep(activation, units, r->faded);
    }
}

/* ranks <- what units are ranked by now; room as for tracking. */
static inline void rank(const renewal *r, const unit_group *g, const unit_parts *p, int64_t replica, int64_t step,
                        float *ranks, float *room)
{
    int64_t units = g->units, at = replica * units;
    if (r->utility == RANDOM) {
        address a = address_of(r->keys, replica, step, LANES * g->number + RANKS);
        uniform_range(&a, 0, units, ranks);
    } else if (r->running) {
        correct(g->utility + at, g->birth + at, step, g->decay[replica], units, ranks);
    } else {
        correct(g->activation + at, g->birth + at, step, g->decay[replica], units, room);
        instantaneous(r->utility, p, room, ranks, room + units);
    }
}

/* chosen <- the ``due`` mature units of lowest rank, lowest first, of equal ones the first. */
static inline void choose(const renewal *r, const unit_group *g, const unit_parts *p, int64_t replica, int64_t step,
                          int64_t due, int64_t *chosen, float *room)
{
    const int64_t *birth = g->birth + replica * g->units;
    float *ranks = room;
    rank(r, g, p, replica, step, ranks, room + g->units);
    for (int64_t i = 0; i < g->units; i++) {
        if ((float)(step - birth[i]) <= g->mature[replica])
            ranks[i] = __builtin_inff();
        else if (!(ranks[i] <= 0x1.fffffep127f))
            ranks[i] = 0x1.fffffep127f;
    }
    for (int64_t k = 0; k < due; k++) {
        int64_t lowest = 0;
        for (int64_t i = 1; i < g->units; i++)
            if (ranks[i] < ranks[lowest])
                lowest = i;
        chosen[k] = lowest;
        ranks[lowest] = __builtin_inff();
    }
}

/* The next layer's biases take over what a unit said on average. */
static inline void compensate(const unit_parts *p, int64_t unit, float said)
{
    for (int64_t o = 0; o < p->outputs; o++)
        p->out_bias[o] = multiply_add(said, p->out_weight[o * p->units + unit], p->out_bias[o]);
}

/* Fresh incoming weights and no outgoing ones; ``rows`` are numbers in (0, 1). */
static inline void reset_unit(const unit_parts *p, int64_t unit, float bound, const address *rows, int64_t number)
{
    float *row = p->weight + unit * p->inputs;
    uniform_range(rows, number * p->inputs, p->inputs, row);
    for (int64_t i = 0; i < p->inputs; i++)
        row[i] = row[i] * (2.0f * bound) - bound;
    if (p->bias)
        p->bias[unit] = 0.0f;
    for (int64_t o = 0; o < p->outputs; o++)
        p->out_weight[o * p->units + unit] = 0.0f;
}

/* The optimizer forgets what it remembers of a unit. */
static inline void forget_unit(const unit_parts *p, int64_t unit)
{
    if (!p->trace)
        return;
    set_zero(p->trace + unit * p->inputs, p->inputs);
    if (p->bias_trace)
        p->bias_trace[unit] = 0.0f;
    for (int64_t o = 0; o < p->outputs; o++)
        p->out_trace[o * p->units + unit] = 0.0f;
}

/* Renews chosen units. */
static inline void renew(const renewal *r, const unit_group *g, const unit_parts *p, int64_t replica, int64_t step,
                         int64_t due, const int64_t *chosen)
{
    int64_t at = replica * g->units;
    address rows = address_of(r->keys, replica, step, LANES * g->number + ROWS);
    if (r->compensate && p->out_bias)
        for (int64_t k = 0; k < due; k++) {
            int64_t age = step - g->birth[at + chosen[k]];
            float corrected = 1.0f - powf(g->decay[replica], (float)age);
            compensate(p, chosen[k], g->activation[at + chosen[k]] / corrected);
        }
    for (int64_t k = 0; k < due; k++) {
        reset_unit(p, chosen[k], (float)g->bound, &rows, k);
        if (r->forget)
            forget_unit(p, chosen[k]);
        g->utility[at + chosen[k]] = g->activation[at + chosen[k]] = 0.0f;
        g->birth[at + chosen[k]] = step;
    }
}

#endif
