/* fd map -> ordered steps. Pure: no system call, no allocation. */
#ifndef SPAWNHELPER_FDPLAN_H
#define SPAWNHELPER_FDPLAN_H

#include <stdint.h>

/* The command's descriptor `target` is a duplicate of our `source`. */
struct sh_fdpair {
    int32_t target, source;
};

enum sh_fdop {
    SH_FD_PARK,  /* duplicate `from` out of everybody's way, note it as parked[to] */
    SH_FD_FETCH, /* move parked[from] to `to` */
    SH_FD_PLACE, /* duplicate `from` to `to`; inheritable */
    SH_FD_KEEP,  /* make `to` inheritable where it is */
    SH_FD_CLOSE, /* close everything from `from` to `to`, both included */
};

struct sh_fdstep {
    int32_t op, from, to;
};

/* Steps that a map of n pairs may need. */
#define SH_FDSTEPS(n) (4 * (uint32_t)(n) + 4)

/* Writes the steps for n pairs (ascending by target, targets distinct, nothing
 * negative) and returns their number. `parked` has room for n ints. With
 * close_rest everything that is no target is closed, else only sources that
 * are no target. `reserved` (-1: none) is neither target nor source and is
 * left alone. */
uint32_t sh_fdplan(const struct sh_fdpair *pairs, uint32_t n, int close_rest, int reserved,
                   int *parked, struct sh_fdstep *steps);

/* Index of the pair with this target, or -1. Here because the child needs it too. */
static inline int sh_fdplan_find(const struct sh_fdpair *pairs, uint32_t n, int target) {
    uint32_t low = 0, high = n;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (pairs[middle].target < target)
            low = middle + 1;
        else
            high = middle;
    }
    return low < n && pairs[low].target == target ? (int)low : -1;
}

#endif
