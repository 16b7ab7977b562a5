/* Checks csrc/fdplan.c against a model, for every map over a few descriptors.
 *
 *   plan [FDS]          6 by default; 7 takes about a minute
 *
 * Every partial map of FDS targets to FDS sources, with every choice of which
 * other descriptors are open, of close_rest, and of a reserved descriptor. The
 * steps run on a simulated table as the child runs them (arrange_fds() and
 * park() in spawnhelper.c). A second pass leaves gaps between the numbers.
 * Prints one JSON object.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fdplan.h"

enum { MAX_KEYS = 8, TABLE = 32, CLOSED = -1 };

/* What stands behind a number: the number that it had at the start. */
struct slot {
    int file, inheritable;
};

struct table {
    struct slot slots[TABLE];
};

struct problem {
    struct sh_fdpair pairs[MAX_KEYS];
    uint32_t n;
    int close_rest, reserved;
    unsigned keys, sources, open; /* sets of numbers */
};

static unsigned long long cases, bad;
static char first[600];

static int has(unsigned set, int number) { return (int)(set >> number & 1U); }

static void complain(const struct problem *problem, const char *what, int fd) {
    if (bad++)
        return;
    int used = snprintf(first, sizeof first, "%s %d; open %#x, close_rest %d, reserved %d, map",
                        what, fd, problem->open, problem->close_rest, problem->reserved);
    for (uint32_t i = 0; i < problem->n; i++)
        used += snprintf(first + used, sizeof first - (size_t)used, " %d:%d",
                         problem->pairs[i].target, problem->pairs[i].source);
}

/* ---- the child ---- */

static int is_open(const struct table *table, int fd) {
    return fd >= 0 && fd < TABLE && table->slots[fd].file != CLOSED;
}

static int park(const struct problem *problem, struct table *table, int source) {
    for (int from = 0;;) {
        int fd = from;
        while (fd < TABLE && table->slots[fd].file != CLOSED)
            fd++;
        if (fd >= TABLE)
            return CLOSED;
        table->slots[fd] = (struct slot){table->slots[source].file, 0};
        if (sh_fdplan_find(problem->pairs, problem->n, fd) < 0)
            return fd;
        from = fd + 1;
    }
}

/* 0, or that the step cannot be done. */
static int obey(const struct problem *problem, struct table *table, int *parked,
                const struct sh_fdstep *step) {
    int slot = step->op == SH_FD_PARK ? step->to : step->from, from = step->from;
    if ((step->op == SH_FD_PARK || step->op == SH_FD_FETCH) &&
        (slot < 0 || slot >= (int)problem->n))
        return -1;
    switch (step->op) {
    case SH_FD_PARK:
        if (!is_open(table, from))
            return -1;
        parked[step->to] = park(problem, table, from);
        return parked[step->to] == CLOSED ? -1 : 0;
    case SH_FD_FETCH:
        from = parked[step->from];
        /* fall through */
    case SH_FD_PLACE:
        if (!is_open(table, from) || from == step->to || step->to < 0 || step->to >= TABLE)
            return -1; /* EBADF, EINVAL */
        table->slots[step->to] = (struct slot){table->slots[from].file, 1};
        return 0;
    case SH_FD_KEEP:
        if (!is_open(table, step->to))
            return -1;
        table->slots[step->to].inheritable = 1;
        return 0;
    case SH_FD_CLOSE:
        if (from < 0 || from > step->to)
            return -1;
        for (int fd = from; fd <= step->to && fd < TABLE; fd++)
            table->slots[fd].file = CLOSED;
        return 0;
    default:
        return -1;
    }
}

/* ---- the model ---- */

static struct table start(const struct problem *problem) {
    struct table table;
    for (int fd = 0; fd < TABLE; fd++) {
        int ours = has(problem->sources, fd) || fd == problem->reserved;
        table.slots[fd] = (struct slot){has(problem->open, fd) ? fd : CLOSED, !ours};
    }
    return table;
}

static void compare(const struct problem *problem, const struct table *before,
                    const struct table *after) {
    for (uint32_t i = 0; i < problem->n; i++) {
        const struct slot *slot = &after->slots[problem->pairs[i].target];
        if (slot->file != problem->pairs[i].source || !slot->inheritable)
            complain(problem, "wrong file at target", problem->pairs[i].target);
    }
    for (int fd = 0; fd < TABLE; fd++) {
        const struct slot *was = &before->slots[fd], *is = &after->slots[fd];
        if (has(problem->keys, fd))
            continue;
        if (fd == problem->reserved) {
            if (is->file != fd || is->inheritable != was->inheritable)
                complain(problem, "reserved touched", fd);
        } else if (problem->close_rest || has(problem->sources, fd)) {
            /* A parked duplicate may stand there; exec closes it. */
            if (is->file != CLOSED && (problem->close_rest || is->inheritable || is->file == fd))
                complain(problem, "left open", fd);
        } else if (was->file == CLOSED) {
            if (is->file != CLOSED && is->inheritable)
                complain(problem, "appeared", fd);
        } else if (is->file != was->file || is->inheritable != was->inheritable) {
            complain(problem, "touched", fd);
        }
    }
}

enum { CANARY = 0x5ca1ab1e };

static void check(const struct problem *problem) {
    struct sh_fdstep steps[SH_FDSTEPS(MAX_KEYS) + 1];
    int parked[MAX_KEYS + 1];
    struct table before = start(problem), table = before;
    uint32_t room = SH_FDSTEPS(problem->n);
    cases++;
    steps[room].op = CANARY;
    parked[problem->n] = CANARY;
    uint32_t count = sh_fdplan(problem->pairs, problem->n, problem->close_rest, problem->reserved,
                               parked, steps);
    if (count > room || steps[room].op != CANARY || parked[problem->n] != CANARY) {
        complain(problem, "too many steps", (int)count);
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        if (obey(problem, &table, parked, &steps[i]) < 0) {
            complain(problem, "impossible step", (int)i);
            return;
        }
    compare(problem, &before, &table);
}

/* ---- enumeration: the numbers are 0, stride, 2 * stride, ... ---- */

static void vary_reserved(struct problem *problem, int count, int stride) {
    unsigned open = problem->open;
    for (problem->close_rest = 0; problem->close_rest <= 1; problem->close_rest++) {
        problem->reserved = -1;
        check(problem);
        /* The last is above all others, as the report pipe usually is. */
        for (int i = 0; i <= count; i++) {
            int fd = i * stride + (stride > 1);
            if (has(problem->keys | problem->sources, fd))
                continue;
            problem->reserved = fd;
            problem->open = open | 1U << fd;
            check(problem);
            problem->open = open;
        }
    }
}

static void vary_open(struct problem *problem, int count, int stride) {
    for (unsigned chosen = 0; chosen < 1U << count; chosen++) {
        unsigned extra = 0;
        for (int i = 0; i < count; i++)
            extra |= has(chosen, i) ? 1U << (i * stride) : 0;
        if (extra & problem->sources)
            continue;
        problem->open = problem->sources | extra;
        vary_reserved(problem, count, stride);
    }
}

static void vary_map(struct problem *problem, int count, int stride, int target) {
    if (target == count) {
        vary_open(problem, count, stride);
        return;
    }
    vary_map(problem, count, stride, target + 1);
    struct problem kept = *problem;
    for (int source = 0; source < count; source++) {
        problem->pairs[problem->n++] = (struct sh_fdpair){target * stride, source * stride};
        problem->keys |= 1U << (target * stride);
        problem->sources |= 1U << (source * stride);
        vary_map(problem, count, stride, target + 1);
        *problem = kept;
    }
}

/* The largest number: nothing may overflow. */
static void check_last(void) {
    struct sh_fdpair pair = {INT_MAX, INT_MAX};
    struct sh_fdstep steps[SH_FDSTEPS(1)];
    int parked[1];
    uint32_t count = sh_fdplan(&pair, 1, 1, -1, parked, steps);
    struct problem problem = {.n = 0};
    cases++;
    if (count != 2 || steps[1].op != SH_FD_CLOSE || steps[1].from != 0 ||
        steps[1].to != INT_MAX - 1)
        complain(&problem, "wrong steps for the last number", (int)count);
}

int main(int argc, char **argv) {
    int fds = argc > 1 ? atoi(argv[1]) : 6;
    if (fds < 1 || fds >= MAX_KEYS)
        return 2;
    for (int count = 1; count <= fds; count++) {
        struct problem problem = {.n = 0};
        vary_map(&problem, count, 1, 0);
    }
    for (int count = 1; count < fds; count++) {
        struct problem problem = {.n = 0};
        vary_map(&problem, count, 2, 0);
    }
    check_last();
    printf("{\"fds\": %d, \"cases\": %llu, \"bad\": %llu, \"first\": \"%s\"}\n", fds, cases, bad,
           first);
    return 0;
}
