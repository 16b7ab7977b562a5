#include "fdplan.h"

#include <stdint.h>

enum { NOT_PARKED = -1, TO_PARK = -2 };

/* A source is threatened when it is also a target and will hold something
 * else: placing that target would destroy it. The index of that pair, or -1. */
static int threatened(const struct sh_fdpair *pairs, uint32_t n, const struct sh_fdpair *pair) {
    if (pair->target == pair->source)
        return -1;
    int index = sh_fdplan_find(pairs, n, pair->source);
    return index >= 0 && pairs[index].source != pair->source ? index : -1;
}

static struct sh_fdstep *add(struct sh_fdstep *step, int op, int from, int to) {
    step->op = op;
    step->from = from;
    step->to = to;
    return step + 1;
}

static struct sh_fdstep *park_sources(const struct sh_fdpair *pairs, uint32_t n, int *parked,
                                      struct sh_fdstep *step) {
    for (uint32_t i = 0; i < n; i++)
        parked[i] = NOT_PARKED;
    for (uint32_t i = 0; i < n; i++) {
        int index = threatened(pairs, n, &pairs[i]);
        if (index < 0 || parked[index] == TO_PARK)
            continue;
        parked[index] = TO_PARK;
        step = add(step, SH_FD_PARK, pairs[i].source, index);
    }
    return step;
}

static struct sh_fdstep *place_targets(const struct sh_fdpair *pairs, uint32_t n,
                                       struct sh_fdstep *step) {
    for (uint32_t i = 0; i < n; i++) {
        const struct sh_fdpair *pair = &pairs[i];
        int index = threatened(pairs, n, pair);
        if (pair->target == pair->source)
            step = add(step, SH_FD_KEEP, pair->source, pair->target);
        else if (index >= 0)
            step = add(step, SH_FD_FETCH, index, pair->target);
        else
            step = add(step, SH_FD_PLACE, pair->source, pair->target);
    }
    return step;
}

/* A source named twice is closed twice: harmless, the child has one thread. */
static struct sh_fdstep *close_sources(const struct sh_fdpair *pairs, uint32_t n,
                                       struct sh_fdstep *step) {
    for (uint32_t i = 0; i < n; i++)
        if (sh_fdplan_find(pairs, n, pairs[i].source) < 0)
            step = add(step, SH_FD_CLOSE, pairs[i].source, pairs[i].source);
    return step;
}

static struct sh_fdstep *close_gaps(const struct sh_fdpair *pairs, uint32_t n, int reserved,
                                    struct sh_fdstep *step) {
    int64_t first = 0;
    uint32_t i = 0;
    int pending = reserved >= 0;
    while (i < n || pending) {
        int64_t keep;
        if (pending && (i == n || reserved < pairs[i].target)) {
            keep = reserved;
            pending = 0;
        } else {
            keep = pairs[i++].target;
        }
        if (first < keep)
            step = add(step, SH_FD_CLOSE, (int)first, (int)(keep - 1));
        first = keep + 1;
    }
    if (first <= INT32_MAX)
        step = add(step, SH_FD_CLOSE, (int)first, INT32_MAX);
    return step;
}

uint32_t sh_fdplan(const struct sh_fdpair *pairs, uint32_t n, int close_rest, int reserved,
                   int *parked, struct sh_fdstep *steps) {
    struct sh_fdstep *step = park_sources(pairs, n, parked, steps);
    step = place_targets(pairs, n, step);
    if (close_rest)
        step = close_gaps(pairs, n, reserved, step);
    else
        step = close_sources(pairs, n, step);
    return (uint32_t)(step - steps);
}
