/* One step of UPGD over all parameters of an optimizer, in two passes: traces and their maximum, then the moves. */
#include <stdlib.h>

#include "upgd.h"

/* One parameter (R, ...): its tensors, the numbers in one replica, and in one unit of it. */
typedef struct {
    float *weight, *trace;
    const float *gradient;
    int64_t size, unit;
} upgd_parameter;

typedef struct {
    int64_t parameters, replicas;
    const int64_t *keys; /* (R, 2), or none: there is no noise */
    int64_t step, lane;
    int32_t local, released, protecting;
} upgd_plan;

static int64_t weights_in(const upgd_plan *plan, const upgd_parameter *parameters)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < plan->parameters; i++)
        sum += parameters[i].size;
    return sum;
}

/* ``a``: where noise is made, ``drawn``: where it is; both NULL: there is none. */
static void step_replica(const upgd_plan *plan, const upgd_parameter *parameters, const upgd_numbers *n, int64_t r,
                         const address *a, const float *drawn)
{
    float eta = -__builtin_inff();
    for (int64_t i = 0; i < plan->parameters; i++) {
        const upgd_parameter *p = parameters + i;
        int64_t start = r * p->size;
        float top = upgd_trace(n, p->size, p->trace + start, p->gradient + start, p->weight + start);
        eta = upgd_eta(eta, top, n->correction, plan->released);
    }
    float scale = upgd_scale(eta, n->correction, plan->released);
    int64_t offset = 0;
    for (int64_t i = 0; i < plan->parameters; i++) {
        const upgd_parameter *p = parameters + i;
        float *weight = p->weight + r * p->size;
        const float *trace = p->trace + r * p->size, *gradient = p->gradient + r * p->size;
        const float *noise = drawn ? drawn + offset : NULL;
        if (plan->local)
            upgd_move_units(n, plan->protecting, p->size, p->unit, weight, trace, gradient, noise);
        else if (a)
            upgd_move_making(n, plan->protecting, scale, p->size, weight, trace, gradient, a, offset);
        else
            upgd_move(n, plan->protecting, scale, p->size, weight, trace, gradient, NULL);
        offset += p->size;
    }
}

/* numbers: (R,). Returns 0 when there is no memory, and has changed nothing then. */
int upgd_step(const upgd_plan *plan, const upgd_parameter *parameters, const upgd_numbers *numbers)
{
    /* Units may be shorter than a group, whose numbers would be made again for each; so they are drawn first. */
    int64_t size = plan->local && plan->keys ? weights_in(plan, parameters) : 0;
    float *drawn = size ? malloc((size_t)(size + GROUP) * sizeof *drawn) : NULL;
    if (size && !drawn)
        return 0;
    uint64_t before = flush_subnormals();
    for (int64_t r = 0; r < plan->replicas; r++) {
        address a;
        if (plan->keys)
            a = address_of(plan->keys, r, plan->step, plan->lane);
        if (drawn)
            draw_groups(normal_group, &a, size, drawn);
        step_replica(plan, parameters, numbers + r, r, plan->keys ? &a : NULL, drawn);
    }
    restore_subnormals(before);
    free(drawn);
    return 1;
}
