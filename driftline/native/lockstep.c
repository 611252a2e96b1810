/* A whole training loop: R networks, each over many batches, one update for each batch.
 *
 * Replicas have nothing to do with each other, so each goes through all batches before the next one begins, with its
 * weights in the cache all the time; and any range of replicas can be trained by a thread of its own.
 */
#include <stdlib.h>

#include "moving.h"
#include "network.h"
#include "renewing.h"

/* A linear layer of R networks, and the activation function behind it. */
typedef struct {
    int64_t inputs, outputs;
    int32_t activation;
    float slope;
    parameter weight, bias;
} layer;

typedef struct {
    int64_t replicas, layers, samples, batch;
    const layer *layer;
    const float *x; /* (R or 1, samples, inputs) */
    const void *y;  /* (R or 1, samples): int64 labels; or (R or 1, samples, outputs): float targets */
    int64_t x_stride, y_stride; /* from one replica's to the next one's; 0: they share them */
    float *scores;              /* (R, samples, outputs) */
    int32_t loss, unused;
    optimizer optimizer;
    renewal renewal;
} training;

/* One replica's place to work in. */
typedef struct {
    const training *task;
    int64_t replica;
    float *value, *trace; /* its own copy of all parameters, and of their traces */
    const float **heard;  /* by layer: what it received */
    float **said;         /* by layer: what it gave */
    float *delta, *delta_before;
    float *gradient; /* of all parameters (UPGD), or of a row */
    float *noise, *room;
    upgd_numbers *upgd;     /* by span */
    int64_t **chosen, *due; /* by unit group */
} place;

static float *value_of(const place *w, const parameter *p) { return p->value ? w->value + p->place : NULL; }

static float *trace_of(const place *w, const parameter *p) { return p->trace ? w->trace + p->place : NULL; }

static const float *initial_of(const place *w, const parameter *p)
{
    return p->initial ? p->initial + w->replica * p->size : NULL;
}

static const float *noise_at(const place *w, int64_t drawn)
{
    return w->task->optimizer.noise != QUIET && drawn >= 0 ? w->noise + drawn : NULL;
}

/* Copies a replica's parameters and traces: to its place, or back. */
static void copy_parameters(place *w, int back)
{
    for (int64_t l = 0; l < w->task->layers; l++)
        for (int i = 0; i < 2; i++) {
            const parameter *p = i ? &w->task->layer[l].bias : &w->task->layer[l].weight;
            size_t size = (size_t)p->size * sizeof(float);
            float *outside[] = {p->value, p->trace}, *inside[] = {value_of(w, p), trace_of(w, p)};
            for (int j = 0; j < 2; j++)
                if (outside[j]) {
                    float *there = outside[j] + w->replica * p->size;
                    memcpy(back ? there : inside[j], back ? inside[j] : there, size);
                }
        }
}

static void forward(place *w, const float *x, int64_t batch)
{
    w->heard[0] = x;
    for (int64_t l = 0; l < w->task->layers; l++) {
        const layer *layer = w->task->layer + l;
        const float *weight = value_of(w, &layer->weight), *bias = value_of(w, &layer->bias);
        affine(weight, bias, layer->inputs, layer->outputs, w->heard[l], batch, w->said[l]);
        activate(layer->activation, layer->slope, w->said[l], batch * layer->outputs);
        w->heard[l + 1] = w->said[l];
    }
}

/* Puts the loss's gradient by the last layer's output into delta. */
static void differentiate(place *w, int64_t sample, int64_t batch)
{
    const training *task = w->task;
    const layer *last = task->layer + task->layers - 1;
    const float *scores = w->said[task->layers - 1];
    int64_t size = batch * last->outputs, at = w->replica * task->y_stride;
    if (task->loss == SQUARED_ERROR)
        squared_error_gradient(scores, (const float *)task->y + at + sample * last->outputs, size, w->delta);
    else
        cross_entropy_gradient(scores, (const int64_t *)task->y + at + sample, batch, last->outputs, w->delta);
    times_derivative(last->activation, last->slope, scores, w->delta, size);
}

/* gradient <- sum over the batch of one output's delta times the inputs. */
static void row_gradient(const place *w, int64_t l, int64_t output, int64_t batch, float *gradient)
{
    const layer *layer = w->task->layer + l;
    const float *delta = w->delta + output, *x = w->heard[l];
    int64_t inputs = layer->inputs, outputs = layer->outputs, b = 1;
    set_scaled(gradient, delta[0], x, inputs);
    for (; b + 4 <= batch; b += 4) {
        const float *d = delta + b * outputs;
        float four[4] = {d[0], d[outputs], d[2 * outputs], d[3 * outputs]};
        add_four_scaled(gradient, four, x + b * inputs, inputs, inputs);
    }
    for (; b < batch; b++)
        add_scaled(gradient, delta[b * outputs], x + b * inputs, inputs);
}

/* Adds the share of some outputs, up to four, to the delta of the layer before. */
static void pass_back(place *w, int64_t l, int64_t first, int64_t count, int64_t batch)
{
    const layer *layer = w->task->layer + l;
    int64_t inputs = layer->inputs;
    const float *rows = value_of(w, &layer->weight) + first * inputs;
    for (int64_t b = 0; b < batch; b++) {
        const float *delta = w->delta + b * layer->outputs + first;
        if (count == 4)
            add_four_scaled(w->delta_before + b * inputs, delta, rows, inputs, inputs);
        else
            for (int64_t k = 0; k < count; k++)
                add_scaled(w->delta_before + b * inputs, delta[k], rows + k * inputs, inputs);
    }
}

/* Takes one row's gradient; by descent, also its step. */
static void learn_row(place *w, int64_t l, int64_t output, int64_t batch)
{
    const layer *layer = w->task->layer + l;
    const parameter *p = &layer->weight;
    const numbers *n = p->each + w->replica;
    int64_t inputs = layer->inputs, at = output * inputs;
    int descent = w->task->optimizer.kind == DESCENT;
    float *row = value_of(w, p) + at, *gradient = w->gradient + (descent ? 0 : p->place + at);
    const float *initial = initial_of(w, p), *noise = noise_at(w, p->drawn);
    noise = noise ? noise + at : NULL;
    if (descent && batch == 1 && n->pull == 0.0 && !initial) {
        descend(n, row, w->delta[output], w->heard[l], noise, inputs);
        return;
    }
    row_gradient(w, l, output, batch, gradient);
    add_pull(n, row, initial ? initial + at : NULL, gradient, inputs);
    if (descent)
        descend(n, row, 1.0f, gradient, noise, inputs);
}

static void learn_bias(place *w, int64_t l, int64_t batch)
{
    const layer *layer = w->task->layer + l;
    const parameter *p = &layer->bias;
    const numbers *n = p->each + w->replica;
    int64_t outputs = layer->outputs;
    int descent = w->task->optimizer.kind == DESCENT;
    float *bias = value_of(w, p), *gradient = w->gradient + (descent ? 0 : p->place);
    memcpy(gradient, w->delta, (size_t)outputs * sizeof *gradient);
    for (int64_t b = 1; b < batch; b++)
        add_scaled(gradient, 1.0f, w->delta + b * outputs, outputs);
    add_pull(n, bias, initial_of(w, p), gradient, outputs);
    if (descent)
        descend(n, bias, 1.0f, gradient, noise_at(w, p->drawn), outputs);
}

/* Goes back through one layer: its gradient and step, and the delta of the layer before, by the old weights. */
static void back(place *w, int64_t l, int64_t batch)
{
    const layer *layer = w->task->layer + l;
    int64_t inputs = layer->inputs, outputs = layer->outputs;
    if (l > 0)
        set_zero(w->delta_before, batch * inputs);
    for (int64_t first = 0; first < outputs; first += 4) {
        int64_t count = outputs - first < 4 ? outputs - first : 4;
        if (l > 0)
            pass_back(w, l, first, count, batch);
        for (int64_t o = first; o < first + count; o++)
            learn_row(w, l, o, batch);
    }
    if (layer->bias.value)
        learn_bias(w, l, batch);
    if (l > 0)
        times_derivative(layer[-1].activation, layer[-1].slope, w->heard[l], w->delta_before, batch * inputs);
    float *done = w->delta;
    w->delta = w->delta_before;
    w->delta_before = done;
}

/* One step of UPGD along the gradient: all traces, then all moves. */
static void move_by_utility(place *w, int64_t step)
{
    const optimizer *o = &w->task->optimizer;
    float eta = -__builtin_inff();
    for (int64_t i = 0; i < o->spans; i++) {
        const span *s = o->span + i;
        int known = i > 0 && s->each == s[-1].each && s->steps == s[-1].steps;
        w->upgd[i] = known ? w->upgd[i - 1] : upgd_numbers_of(s->each + w->replica, s->steps + step + 1);
        float top = upgd_trace(w->upgd + i, s->size, w->trace + s->place, w->gradient + s->place, w->value + s->place);
        eta = upgd_eta(eta, top, w->upgd[i].correction, o->released);
    }
    for (int64_t i = 0; i < o->spans; i++) {
        const span *s = o->span + i;
        const upgd_numbers *n = w->upgd + i;
        float scale = upgd_scale(eta, n->correction, o->released), *value = w->value + s->place;
        const float *trace = w->trace + s->place, *gradient = w->gradient + s->place, *noise = noise_at(w, s->drawn);
        if (o->local)
            upgd_move_units(n, o->protecting, s->size, s->unit, value, trace, gradient, noise);
        else
            upgd_move(n, o->protecting, scale, s->size, value, trace, gradient, noise);
    }
}

static unit_parts parts_of(const place *w, const unit_group *g, int64_t batch)
{
    const layer *in = w->task->layer + g->layer, *out = in + 1;
    return (unit_parts){
        .units = g->units,
        .inputs = in->inputs,
        .outputs = out->outputs,
        .batch = batch,
        .heard = w->said[g->layer],
        .weight = value_of(w, &in->weight),
        .bias = value_of(w, &in->bias),
        .out_weight = value_of(w, &out->weight),
        .out_bias = value_of(w, &out->bias),
        .trace = trace_of(w, &in->weight),
        .bias_trace = trace_of(w, &in->bias),
        .out_trace = trace_of(w, &out->weight),
    };
}

/* Follows up one step: choose in all groups, then renew in all. */
static void renew_units(place *w, int64_t step, int64_t batch)
{
    const renewal *r = &w->task->renewal;
    int64_t now = r->step + step + 1, any = 0;
    for (int64_t i = 0; i < r->groups; i++) {
        unit_parts parts = parts_of(w, r->group + i, batch);
        any += w->due[i] = units_due(r, r->group + i, w->replica, now);
        track(r, r->group + i, &parts, w->replica, now, w->room);
    }
    if (!any)
        return;
    for (int64_t i = 0; i < r->groups; i++) {
        unit_parts parts = parts_of(w, r->group + i, batch);
        if (w->due[i])
            choose(r, r->group + i, &parts, w->replica, now, w->due[i], w->chosen[i], w->room);
    }
    for (int64_t i = 0; i < r->groups; i++) {
        unit_parts parts = parts_of(w, r->group + i, batch);
        if (w->due[i])
            renew(r, r->group + i, &parts, w->replica, now, w->due[i], w->chosen[i]);
    }
}

static void train_replica(place *w)
{
    const training *task = w->task;
    const layer *first = task->layer, *last = first + task->layers - 1;
    const float *x = task->x + w->replica * task->x_stride;
    float *scores = task->scores + w->replica * task->samples * last->outputs;
    copy_parameters(w, 0);
    for (int64_t step = 0, sample = 0; sample < task->samples; step++, sample += task->batch) {
        int64_t left = task->samples - sample, batch = task->batch < left ? task->batch : left;
        draw_noise(&task->optimizer, w->replica, step, w->noise);
        forward(w, x + sample * first->inputs, batch);
        memcpy(scores + sample * last->outputs, w->said[task->layers - 1],
               (size_t)(batch * last->outputs) * sizeof *scores);
        differentiate(w, sample, batch);
        for (int64_t l = task->layers - 1; l >= 0; l--)
            back(w, l, batch);
        if (task->optimizer.kind == UPGD)
            move_by_utility(w, step);
        renew_units(w, step, batch);
    }
    copy_parameters(w, 1);
}

/* Cuts a piece of memory; without any it only measures. */
static void *cut(char *memory, size_t *used, int64_t count, size_t size)
{
    void *piece = memory ? memory + *used : NULL;
    *used += ((size_t)count * size + 63) / 64 * 64;
    return piece;
}

static float *cut_floats(char *memory, size_t *used, int64_t count)
{
    return cut(memory, used, count, sizeof(float));
}

/* Cuts a place out of one piece of memory, and returns how much it takes. */
static size_t lay_out(place *w, char *memory)
{
    const training *task = w->task;
    int64_t batch = task->batch < task->samples ? task->batch : task->samples, widest = 0, total = 0;
    size_t used = 0;
    w->heard = cut(memory, &used, task->layers + 1, sizeof *w->heard);
    w->said = cut(memory, &used, task->layers, sizeof *w->said);
    w->chosen = cut(memory, &used, task->renewal.groups, sizeof *w->chosen);
    w->due = cut(memory, &used, task->renewal.groups, sizeof *w->due);
    for (int64_t l = 0; l < task->layers; l++) {
        const layer *layer = task->layer + l;
        int64_t wider = layer->inputs > layer->outputs ? layer->inputs : layer->outputs;
        widest = wider > widest ? wider : widest;
        total += layer->weight.size + layer->bias.size;
        float *said = cut_floats(memory, &used, batch * layer->outputs);
        if (memory)
            w->said[l] = said;
    }
    for (int64_t i = 0; i < task->renewal.groups; i++) {
        int64_t *chosen = cut(memory, &used, task->renewal.group[i].units, sizeof *chosen);
        if (memory)
            w->chosen[i] = chosen;
    }
    w->delta = cut_floats(memory, &used, batch * widest);
    w->delta_before = cut_floats(memory, &used, batch * widest);
    w->value = cut_floats(memory, &used, total);
    w->trace = cut_floats(memory, &used, task->optimizer.kind == DESCENT ? 0 : total);
    w->gradient = cut_floats(memory, &used, task->optimizer.kind == DESCENT ? widest : total);
    w->upgd = cut(memory, &used, task->optimizer.spans, sizeof *w->upgd);
    w->noise = cut_floats(memory, &used, task->optimizer.draw + GROUP);
    w->room = cut_floats(memory, &used, 8 * widest);
    return used;
}

/* Trains replicas first .. last - 1. Returns 0 when there is no memory, and has changed nothing then. */
int train(const training *task, int64_t first, int64_t last)
{
    place w = {.task = task};
    void *memory = NULL;
    if (posix_memalign(&memory, 64, lay_out(&w, NULL)))
        return 0;
    lay_out(&w, memory);
    uint64_t before = flush_subnormals();
    for (w.replica = first; w.replica < last; w.replica++)
        train_replica(&w);
    restore_subnormals(before);
    free(memory);
    return 1;
}
