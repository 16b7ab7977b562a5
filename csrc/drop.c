/* Handles that go away while their child lives: no child is ever forgotten. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "parent.h"
#include "state.h"
#include "sys.h"

enum { SWEEP = 16 }; /* looked at by one start; the others have their turn later */

static const int64_t PATIENCE_NSEC = 1000000000; /* for a process that was killed */

void sh_drop(struct sh_process *process) {
    if (process->state == SH_NEW || !sh_mine(process))
        return; /* another process's table: that number may be anybody's here */
    sh_lock((_Atomic uint32_t *)&process->lock);
    if (process->pidfd > 0)
        sh_close_pidfd(process->pidfd);
    process->pidfd = 0;
    if (process->report > 0)
        sh_report_close(process->report);
    process->report = 0;
    sh_unlock((_Atomic uint32_t *)&process->lock);
}

void *sh_allocate(size_t size) { return calloc(1, size); }

static void destroy(struct sh_process *process) {
    sh_drop(process);
    free(process);
}

/* Under the lock. */
static void append(struct sh_process *process) {
    process->next = NULL;
    if (atomic_load(&sh_state.dropped))
        sh_state.dropped_last->next = process;
    else
        atomic_store(&sh_state.dropped, process);
    sh_state.dropped_last = process;
}

/* It dies at once, unless it sleeps in the kernel. */
static void kill_and_wait(struct sh_process *process) {
    int64_t deadline = sh_now() + PATIENCE_NSEC;
    sh_signal(process, SIGKILL);
    for (int64_t left = PATIENCE_NSEC; left > 0; left = deadline - sh_now())
        if (sh_wait(process, left) != 0)
            return;
}

void sh_abandon(struct sh_process *process) {
    if ((process->state == SH_RUNNING || process->state == SH_ENDING) && sh_mine(process)) {
        if (!process->kept)
            kill_and_wait(process);
        if (sh_reap(process) == 0) {
            sh_lock(&sh_state.dropped_lock);
            append(process);
            sh_unlock(&sh_state.dropped_lock);
            return;
        }
    }
    destroy(process);
}

/* Under the lock. */
static struct sh_process *take_first(void) {
    struct sh_process *first = atomic_load(&sh_state.dropped);
    if (first)
        atomic_store(&sh_state.dropped, first->next);
    return first;
}

void sh_sweep(void) {
    if (!atomic_load_explicit(&sh_state.dropped, memory_order_relaxed))
        return;
    sh_lock(&sh_state.dropped_lock);
    struct sh_process *last = sh_state.dropped_last;
    for (int i = 0; i < SWEEP; i++) {
        struct sh_process *process = take_first();
        if (!process)
            break;
        if (sh_reap_now(process) != 0)
            destroy(process);
        else
            append(process);
        if (process == last)
            break;
    }
    sh_unlock(&sh_state.dropped_lock);
}

int sh_list_dropped(int32_t *pids, int size) {
    int count = 0;
    sh_lock(&sh_state.dropped_lock);
    for (struct sh_process *process = atomic_load(&sh_state.dropped); process;
         process = process->next) {
        if (count < size)
            pids[count] = process->pid;
        count++;
    }
    sh_unlock(&sh_state.dropped_lock);
    return count;
}

/* They are the parent's children, and it reaps them. The memory is left: after
 * a fork of a threaded program free() could find its lock held. */
void sh_forget_dropped(void) { atomic_store(&sh_state.dropped, NULL); }
