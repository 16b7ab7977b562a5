/* The few process-wide things, in one place, and how they survive a fork. */
#ifndef SPAWNHELPER_STATE_H
#define SPAWNHELPER_STATE_H

#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>

#include "sys.h"

enum { SH_POOL = 16 };

struct sh_state_of_process {
    uint32_t forks; /* forks between the import and this process */
    /* Held from clone to exec of a child that shares our memory and changes
     * its ids; see start_shared(). */
    _Atomic uint32_t id_lock;
    _Atomic uint32_t id_sequence; /* odd while such a child is on its way */
    int dumpable;                 /* PR_GET_DUMPABLE before the last of them */
    _Atomic(void *) scratch[SH_POOL];
};

extern struct sh_state_of_process sh_state;

/* A lock whose word is the holder's pid: after a fork the copy of a held lock
 * names another process, and is free. */
#define SH_LOCK_WAITERS 0x80000000U

static inline void sh_lock(_Atomic uint32_t *word) {
    uint32_t me = (uint32_t)sh_raw(SYS_getpid, 0, 0, 0, 0, 0, 0);
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
            sh_raw(SYS_futex, (long)word, FUTEX_WAIT_PRIVATE, (long)waited, 0, 0, 0);
    }
}

static inline void sh_unlock(_Atomic uint32_t *word) {
    if (atomic_exchange(word, 0) & SH_LOCK_WAITERS)
        sh_raw(SYS_futex, (long)word, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0);
}

#endif
