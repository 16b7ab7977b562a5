/* Where our pidfds live, so that thousands of them do not slow the next start.
 *
 * A child copies the descriptor table, and exec closes in the copy whatever is
 * close-on-exec: 0.08 us for each handle alive. But a child that shares the
 * table can detach without one range of it (close_range with UNSHARE). So all
 * pidfds beyond the first few go to a region of high numbers. What is not
 * ours there is looked at before every start: the child must inherit it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "parent.h"
#include "state.h"
#include "sys.h"

enum {
    LOW = 32,         /* so many may lie anywhere: select(2) and people like small numbers */
    REGION = 512,     /* its first number; below it there is room for other people's files */
    MOST_FOREIGN = 64 /* numbers in the region to look at, 0.1 us each */
};

static _Atomic uint64_t *word_of(int fd) { return &sh_state.pidfds[(fd - REGION) / 64]; }
static uint64_t bit_of(int fd) { return 1ULL << ((fd - REGION) % 64); }
static int in_region(int fd) { return fd >= REGION && fd < REGION + SH_PIDFDS; }

static long duplicate(int fd, int from) { return SYS(fcntl, fd, F_DUPFD_CLOEXEC, from); }

/* A pidfd on 0, 1 or 2, closed in this program, would be the next command's. If
 * there is no other number it is given up. */
int sh_place_pidfd(int fd) {
    if (atomic_fetch_add(&sh_state.pidfd_count, 1) >= LOW) {
        long high = duplicate(fd, REGION);
        if (high >= 0) {
            SYS(close, fd);
            if (in_region((int)high))
                atomic_fetch_or(word_of((int)high), bit_of((int)high));
            return (int)high;
        }
    }
    if (fd > STDERR_FILENO)
        return fd;
    long moved = duplicate(fd, STDERR_FILENO + 1);
    SYS(close, fd);
    if (moved < 0)
        atomic_fetch_sub(&sh_state.pidfd_count, 1);
    return moved < 0 ? 0 : (int)moved;
}

void sh_disown_pidfd(int fd) {
    if (in_region(fd))
        atomic_fetch_and(word_of(fd), ~bit_of(fd));
    atomic_fetch_sub(&sh_state.pidfd_count, 1);
}

void sh_close_pidfd(int fd) {
    sh_disown_pidfd(fd); /* first: the number may be another's as soon as it is closed */
    SYS(close, fd);
}

void sh_forget_pidfds(void) {
    if (atomic_load(&sh_state.pidfd_count) == 0)
        return;
    memset((void *)sh_state.pidfds, 0, sizeof sh_state.pidfds);
    atomic_store(&sh_state.pidfd_count, 0);
}

static int last_of_ours(void) {
    for (int i = SH_PIDFDS / 64 - 1; i >= 0; i--) {
        uint64_t word = atomic_load_explicit(&sh_state.pidfds[i], memory_order_relaxed);
        if (word)
            return REGION + i * 64 + 63 - __builtin_clzll(word);
    }
    return -1;
}

static int stays_behind(int fd) {
    long flags = SYS(fcntl, fd, F_GETFD);
    return flags == -EBADF || (flags >= 0 && (flags & FD_CLOEXEC));
}

/* Whether a child may leave out these numbers, because it would inherit none of them. */
int sh_pidfd_region(int *from, int *to) {
    if (atomic_load_explicit(&sh_state.pidfd_count, memory_order_relaxed) <= LOW)
        return 0;
    *from = REGION;
    *to = last_of_ours();
    int foreign = 0;
    for (int base = REGION; base <= *to; base += 64) {
        uint64_t others = ~atomic_load_explicit(word_of(base), memory_order_relaxed);
        if (*to - base < 63)
            others &= (1ULL << (*to - base + 1)) - 1;
        for (; others; others &= others - 1)
            if (++foreign > MOST_FOREIGN || !stays_behind(base + __builtin_ctzll(others)))
                return 0;
    }
    return *to >= *from;
}
