/* The process-wide state, and what a fork does to it. */
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "parent.h"
#include "state.h"
#include "sys.h"

struct sh_state_of_process sh_state;

static __thread uint32_t sequence_before_fork;

static void before_fork(void) {
    sh_lock(&sh_state.dropped_lock);
    sh_lock(&sh_state.sets_lock);
    sh_lock(&sh_state.report_lock);
    sequence_before_fork = atomic_load(&sh_state.id_sequence);
}

static void after_fork_here(void) {
    sh_unlock(&sh_state.report_lock);
    sh_unlock(&sh_state.sets_lock);
    sh_unlock(&sh_state.dropped_lock);
}

/* The child of a fork starts with no lock held. If another thread's id change
 * overlapped the fork, the child may have inherited the undumpable flag that
 * was its price; the kernel copies flag and memory at different moments, so
 * the lock's copy alone would not tell. */
static void restore_dumpable(void) {
    uint32_t now = atomic_load(&sh_state.id_sequence);
    int overlapped = (sequence_before_fork & 1) || now != sequence_before_fork;
    if (overlapped && sh_state.dumpable < 2)
        SYS(prctl, PR_SET_DUMPABLE, sh_state.dumpable);
    atomic_store(&sh_state.id_sequence, (now + 1) & ~1U);
    atomic_store(&sh_state.id_lock, 0);
}

__thread int sh_own_report = -1;

/* A stranger's fork must not hold a report pipe open: we wait for its end. Our
 * own forked child (pyfork.c) keeps the one by which it reports. The number may
 * be another file's by now: the kernel copied it before the memory. */
static void close_reports(void) {
    for (int i = 0; i < SH_REPORTS; i++) {
        int fd = sh_state.reports[i].fd - 1;
        if (fd >= 0 && fd == sh_own_report)
            continue; /* stays noted: a fork that pre_exec makes closes it */
        sh_state.reports[i].fd = 0;
        struct stat status;
        if (fd >= 0 && fstat(fd, &status) == 0 && S_ISFIFO(status.st_mode) &&
            status.st_ino == sh_state.reports[i].inode)
            SYS(close, fd);
    }
}

static void after_fork(void) {
    sh_state.forks++;
    sh_forget_dropped();
    sh_forget_orphans();
    sh_forget_sets();
    atomic_store(&sh_state.sets_lock, 0);
    atomic_store(&sh_state.dropped_lock, 0);
    sh_forget_pidfds();
    restore_dumpable();
    close_reports();
    atomic_store(&sh_state.report_lock, 0);
}

/* A second import (reload, subinterpreter) must not register the handlers
 * again: before_fork would wait for itself. */
int sh_initialize(void) {
    static _Atomic int initialized;
    if (atomic_exchange(&initialized, 1))
        return 0;
    return -pthread_atfork(before_fork, after_fork_here, after_fork);
}

void sh_avoid(uint32_t features) {
    atomic_store(&sh_state.avoid, features);
    atomic_store(&sh_state.start_mode, SH_START_CLONE3);
}

int sh_start_mode(void) { return atomic_load(&sh_state.start_mode); }
