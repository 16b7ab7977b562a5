/* The few process-wide things, in one place, and how they survive a fork. */
#ifndef SPAWNHELPER_STATE_H
#define SPAWNHELPER_STATE_H

#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>

#include "sys.h"

enum { SH_POOL = 16, SH_REPORTS = 64, SH_PIDFDS = 65536 };

struct sh_process;
struct sh_orphan;
struct sh_set;

struct sh_state_of_process {
    uint32_t forks; /* forks between the import and this process */
    /* Held from clone to exec of a child that shares our memory and changes
     * its ids; see start_shared(). */
    _Atomic uint32_t id_lock;
    _Atomic uint32_t id_sequence; /* odd while such a child is on its way */
    int dumpable;                 /* PR_GET_DUMPABLE before the last of them */
    _Atomic(void *) scratch[SH_POOL];
    _Atomic int start_mode;       /* enum sh_start */
    _Atomic uint32_t avoid;       /* enum sh_avoid: forced by a test, or found missing */
    _Atomic uint32_t report_lock; /* no fork between opening a pipe and its note here */
    struct {
        int fd; /* plus 1; 0: unused */
        uint64_t inode;
    } reports[SH_REPORTS]; /* report pipes of the starts under way */
    /* Running children without a handle, oldest first (drop.c). */
    struct sh_process *_Atomic dropped;
    struct sh_process *dropped_last;
    _Atomic uint32_t dropped_lock;
    struct sh_set *sets; /* open ones (sets.c) */
    _Atomic uint32_t sets_lock;
    struct sh_orphan *_Atomic orphans; /* holders whose commands the caller reaps (sets.c) */
    /* Which numbers of the region hold our pidfds (pidfds.c), and how many we have at all. */
    _Atomic uint64_t pidfds[SH_PIDFDS / 64];
    _Atomic int pidfd_count;
};

extern struct sh_state_of_process sh_state;
extern __thread int sh_own_report; /* write end kept by the fork that this thread is making */

static inline int sh_avoids(uint32_t feature) {
    return (atomic_load_explicit(&sh_state.avoid, memory_order_relaxed) & feature) != 0;
}

/* A lock whose word tells the holder's process: after a fork the copy of a held
 * lock names another one, and is free. */
#define SH_LOCK_WAITERS 0x80000000U
enum { SH_FUTEX_WAIT_PRIVATE = 128, SH_FUTEX_WAKE_PRIVATE = 129 }; /* linux/futex.h */

static inline void sh_lock(_Atomic uint32_t *word) {
    uint32_t me = sh_state.forks + 1;
    for (;;) {
        uint32_t seen = 0;
        if (atomic_compare_exchange_strong(word, &seen, me))
            return;
        if ((seen & ~SH_LOCK_WAITERS) != me) {
            if (atomic_compare_exchange_strong(word, &seen, me))
                return;
            continue;
        }
        uint32_t waited = me | SH_LOCK_WAITERS;
        if (seen == waited || atomic_compare_exchange_strong(word, &seen, waited))
            sh_raw(SYS_futex, (long)word, SH_FUTEX_WAIT_PRIVATE, (long)waited, 0, 0, 0);
    }
}

static inline void sh_unlock(_Atomic uint32_t *word) {
    if (atomic_exchange(word, 0) & SH_LOCK_WAITERS)
        sh_raw(SYS_futex, (long)word, SH_FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0);
}

#endif
