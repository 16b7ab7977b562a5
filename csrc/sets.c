/* Namespace sets that serve many commands, and holders that outlive their handle. */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "parent.h"
#include "state.h"
#include "sys.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

static void lock(struct sh_set *set) { sh_lock((_Atomic uint32_t *)&set->lock); }
static void unlock(struct sh_set *set) { sh_unlock((_Atomic uint32_t *)&set->lock); }

/* ---- holders to be reaped later ---- */

static long look(int type, int id, siginfo_t *info, int flags) {
    memset(info, 0, sizeof *info);
    return SYS(waitid, type, id, info, WEXITED | WNOHANG | __WALL | flags, NULL);
}

/* ECHILD: somebody else did it. */
int sh_reap_holder(int pid, int32_t *pidfd) {
    siginfo_t info;
    long error = *pidfd > 0 ? look(P_PIDFD, *pidfd, &info, 0) : -EBADF;
    if (error == -EBADF || error == -EINVAL) {
        if (*pidfd > 0)
            sh_disown_pidfd(*pidfd); /* closed behind our back: no longer ours to close */
        *pidfd = 0;
        error = look(P_PID, pid, &info, 0);
    }
    return error == 0 ? info.si_pid != 0 : error == -ECHILD;
}

/* By pid where a filter denies the other: it is ours until it is reaped. */
void sh_kill_holder(int pid, int pidfd) {
    siginfo_t info;
    if (pid <= 0)
        return; /* nobody yet; kill(2) would take 0 for our whole group */
    long error = pidfd > 0 ? SYS(pidfd_send_signal, pidfd, SIGKILL, NULL, 0) : -EBADF;
    if (error < 0 && error != -ESRCH && look(P_PID, pid, &info, WNOWAIT) != -ECHILD)
        SYS(kill, pid, SIGKILL);
}

struct sh_orphan {
    struct sh_orphan *next;
    int32_t pid, pidfd;
    uint64_t id;     /* what pidfd stands for */
    atomic_int used; /* of the reserve */
};

/* For when memory is short: a zombie that nobody remembers stays for ever. */
static struct sh_orphan reserve[16];
enum { RESERVE_SIZE = sizeof reserve / sizeof *reserve };

static struct sh_orphan *new_orphan(void) {
    struct sh_orphan *orphan = malloc(sizeof *orphan);
    for (int i = 0; !orphan && i < RESERVE_SIZE; i++)
        if (!atomic_exchange(&reserve[i].used, 1))
            orphan = &reserve[i];
    return orphan;
}

static void free_orphan(struct sh_orphan *orphan) {
    if (orphan >= reserve && orphan < reserve + RESERVE_SIZE)
        atomic_store(&orphan->used, 0);
    else
        free(orphan);
}

/* In a child of fork: they are its parent's. */
void sh_forget_orphans(void) {
    atomic_store(&sh_state.orphans, NULL);
    for (int i = 0; i < RESERVE_SIZE; i++)
        atomic_store(&reserve[i].used, 0);
}

/* The program may have closed it, and the number be another child's pidfd since. */
static void check_number(int32_t *pidfd, uint64_t id) {
    if (*pidfd <= 0 || sh_identify(*pidfd) == id)
        return;
    sh_disown_pidfd(*pidfd);
    *pidfd = 0;
}

static void push(struct sh_orphan *orphan) {
    orphan->next = atomic_load(&sh_state.orphans);
    while (!atomic_compare_exchange_weak(&sh_state.orphans, &orphan->next, orphan))
        ;
}

/* It ends by itself, with its command. */
void sh_reap_later(int pid, int pidfd, uint64_t id) {
    check_number(&pidfd, id);
    struct sh_orphan *orphan = sh_reap_holder(pid, &pidfd) ? NULL : new_orphan();
    if (orphan) {
        orphan->pid = pid;
        orphan->pidfd = pidfd;
        orphan->id = id;
        push(orphan);
    } else if (pidfd > 0) {
        sh_close_pidfd(pidfd);
    }
}

void sh_reap_orphans(void) {
    if (!atomic_load_explicit(&sh_state.orphans, memory_order_relaxed))
        return;
    struct sh_orphan *orphan = atomic_exchange(&sh_state.orphans, NULL);
    while (orphan) {
        struct sh_orphan *next = orphan->next;
        check_number(&orphan->pidfd, orphan->id);
        if (sh_reap_holder(orphan->pid, &orphan->pidfd)) {
            if (orphan->pidfd > 0)
                sh_close_pidfd(orphan->pidfd);
            free_orphan(orphan);
        } else {
            push(orphan);
        }
        orphan = next;
    }
}

/* ---- preparing ---- */

/* What a descriptor stands for, as a number; 0: nothing. A pidfd has an inode of
 * its own since 6.9; before, all have one. */
static uint64_t to_id(const struct stat *status) {
    return (uint64_t)status->st_dev << 40 ^ status->st_ino;
}

uint64_t sh_identify(int fd) {
    struct stat status;
    return fd >= 0 && fstat(fd, &status) == 0 ? to_id(&status) : 0;
}

static void close_ours(int *fd, uint64_t id) {
    if (*fd >= 0 && (id == 0 || sh_identify(*fd) == id))
        SYS(close, *fd);
    *fd = -1;
}

void sh_set_close_fds(struct sh_set *set) {
    for (int i = 0; i < SH_NAMESPACE_COUNT; i++) {
        if (set->fds[i] == set->holder_pidfd)
            set->fds[i] = -1;
        close_ours(&set->fds[i], set->ids[i]);
    }
    close_ours(&set->root, set->root_id);
    close_ours(&set->line, set->line_id);
}

/* Daemons close all descriptors that they do not know; the numbers may have
 * become strangers' since. */
static int is_intact(struct sh_set *set) {
    for (int i = 0; i < SH_NAMESPACE_COUNT; i++)
        if (set->fds[i] >= 0 && sh_identify(set->fds[i]) != set->ids[i])
            return 0;
    return set->root < 0 || sh_identify(set->root) == set->root_id;
}

static void check_pidfd(struct sh_set *set) { check_number(&set->holder_pidfd, set->pidfd_id); }

/* ---- after a fork ---- */

static void enlist(struct sh_set *set) {
    sh_lock(&sh_state.sets_lock);
    set->next = sh_state.sets;
    sh_state.sets = set;
    sh_unlock(&sh_state.sets_lock);
}

static void strike_off(struct sh_set *set) {
    sh_lock(&sh_state.sets_lock);
    struct sh_set **place = &sh_state.sets;
    while (*place && *place != set)
        place = &(*place)->next;
    if (*place)
        *place = set->next;
    sh_unlock(&sh_state.sets_lock);
}

/* In the child, where the table is still the parent's: its copies would keep
 * namespaces alive after their owner's close(). A child of our own (pyfork.c)
 * may have one of them still to enter; its exec closes all. */
void sh_forget_sets(void) {
    if (sh_own_report >= 0)
        return;
    for (struct sh_set *set = sh_state.sets; set; set = set->next) {
        int pidfd = set->holder_pidfd > 0 ? set->holder_pidfd : -1;
        sh_set_close_fds(set);
        close_ours(&pidfd, set->pidfd_id);
        set->holder_pidfd = 0;
    }
    sh_state.sets = NULL;
}

/* ---- making ---- */

static struct sh_set *allocate(void) {
    struct sh_set *set = calloc(1, sizeof *set);
    if (!set)
        return NULL;
    for (int i = 0; i < SH_NAMESPACE_COUNT; i++)
        set->fds[i] = -1;
    set->root = set->line = -1;
    set->users = 1;
    set->forks = sh_state.forks;
    return set;
}

/* Long-lived descriptors stay clear of 0, 1 and 2, which the program may have closed. */
static int settle_fds(struct sh_set *set) {
    int error = set->holder_pidfd > 0 ? 0 : -EMFILE;
    for (int i = 0; i < SH_NAMESPACE_COUNT; i++) {
        if (!(set->namespaces & sh_namespace_flags[i]))
            continue;
        set->fds[i] = set->fds[i] < 0 ? set->holder_pidfd : sh_off_standard(set->fds[i]);
        set->ids[i] = sh_identify(set->fds[i]);
        if (set->fds[i] < 0)
            error = -EMFILE;
    }
    set->root = sh_off_standard(set->root);
    if (set->namespaces & SH_NEWNS && set->root < 0)
        error = -EMFILE;
    set->root_id = sh_identify(set->root);
    set->line_id = sh_identify(set->line);
    set->pidfd_id = sh_identify(set->holder_pidfd);
    return error;
}

struct sh_set *sh_set_new(void) { return allocate(); }

int sh_set_open(struct sh_set *set, uint32_t namespaces, uint32_t flags) {
    struct sh_request request = {
        .argv = "",
        .env = "",
        .flags = SH_STANDARD_FDS | flags,
        .namespaces = namespaces,
    };
    struct sh_process process = {0};
    sh_sweep();
    sh_reap_orphans();
    int error = sh_start_set(&request, &process, set);
    set->result = process.result;
    if (error < 0) {
        sh_set_close_fds(set);
        set->closed = 1;
        return error;
    }
    enlist(set);
    if (settle_fds(set) == 0)
        return 0;
    set->result.stage = SH_STAGE_CLONE;
    set->result.error = EMFILE;
    while (sh_set_close(set) == 0)
        ;
    return -EMFILE;
}

void sh_set_take(struct sh_set *set, struct sh_isolation *isolation) {
    struct sh_birth *holder = &isolation->births->holder;
    set->namespaces = isolation->births->namespaces;
    set->holder = holder->pid;
    int pidfd = holder->pidfd >= 0 ? holder->pidfd : sh_pidfd_open(holder->pid);
    set->holder_pidfd = pidfd < 0 ? 0 : sh_place_pidfd(pidfd);
    set->line = isolation->line[1];
    isolation->line[1] = -1;
}

/* ---- using ---- */

int sh_set_mine(const struct sh_set *set) { return set->forks == sh_state.forks; }

int sh_set_is_dead(const struct sh_set *set) {
    struct pollfd fd = {.fd = set->holder_pidfd, .events = POLLIN};
    struct timespec none = {0, 0};
    return SYS(ppoll, &fd, 1, &none, NULL, 0) > 0;
}

int sh_set_use(struct sh_set *set) {
    if (!sh_set_mine(set))
        return -EPERM;
    lock(set);
    check_pidfd(set);
    struct stat root;
    if (set->root >= 0 && (stat("/", &root) != 0 || to_id(&root) != set->root_id)) {
        unlock(set);
        return -EXDEV; /* it would lead out of our present root */
    }
    int error = set->closed || set->holder_pidfd <= 0 || !is_intact(set) ? -EBADF : 0;
    if (error == 0 && sh_set_is_dead(set))
        error = -ESRCH;
    if (error == 0) {
        set->users++;
        set->starts++;
    }
    unlock(set);
    return error;
}

/* Under the lock. */
static void settle(struct sh_set *set) {
    if (!set->closed || set->starts > 0)
        return;
    sh_set_close_fds(set);
    if (set->commands > 0 || set->holder == 0)
        return;
    sh_reap_later(set->holder, set->holder_pidfd, set->pidfd_id);
    set->holder = set->holder_pidfd = 0;
}

/* Unlocks, too. */
static void let_go(struct sh_set *set) {
    int last = --set->users == 0;
    unlock(set);
    if (!last)
        return;
    strike_off(set);
    free(set->given);
    free(set);
}

void sh_set_unuse(struct sh_set *set) {
    lock(set);
    set->starts--;
    settle(set);
    let_go(set);
}

void sh_set_join(struct sh_set *set) {
    lock(set);
    set->users++;
    set->commands++;
    unlock(set);
}

/* Commands that the caller reaps, as far as it has not yet: how many. */
static int prune_given(struct sh_set *set) {
    siginfo_t info;
    int kept = 0;
    for (int i = 0; i < set->ngiven; i++)
        if (look(P_PID, set->given[i], &info, WNOWAIT) != -ECHILD)
            set->given[kept++] = set->given[i];
    set->ngiven = kept;
    return kept;
}

static void note_given(struct sh_set *set, int32_t pid) {
    if (set->ngiven >= 16 && (set->ngiven & (set->ngiven - 1)) == 0)
        prune_given(set);
    int32_t *longer = realloc(set->given, ((size_t)set->ngiven + 1) * sizeof *longer);
    if (!longer)
        return; /* close() may then wait for what the caller must do first */
    set->given = longer;
    longer[set->ngiven++] = pid;
}

/* The last command's handle takes the holder of a closed set along. */
void sh_set_leave(struct sh_set *set, struct sh_process *process) {
    lock(set);
    set->commands--;
    if (process->state == SH_GIVEN)
        note_given(set, process->pid);
    else if (set->closed && set->commands == 0 && set->starts == 0 && set->holder > 0 &&
             prune_given(set) == 0) {
        process->holder = set->holder;
        process->holder_pidfd = set->holder_pidfd;
        process->holder_id = set->pidfd_id;
        set->holder = set->holder_pidfd = 0;
    }
    settle(set);
    let_go(set);
}

/* ---- closing ---- */

/* Whether to wait for the holder. With commands still to be reaped it cannot
 * finish (zap_pid_ns_processes): then nobody waits for it here. */
static int begin_close(struct sh_set *set) {
    int waits = 0;
    lock(set);
    if (sh_set_mine(set)) { /* else the numbers may be anybody's in this process */
        check_pidfd(set);
        if (!set->closed && set->holder > 0)
            sh_kill_holder(set->holder, set->holder_pidfd);
        set->closed = 1;
        int blocked = set->commands > 0 || set->starts > 0 || prune_given(set) > 0;
        waits = set->holder > 0 && !(blocked && set->namespaces & SH_NEWPID);
        if (!waits)
            settle(set);
    }
    set->closed = 1;
    unlock(set);
    return waits;
}

/* Without a pidfd, which the program must have closed, it looks again soon. */
static long await_holder(int pidfd) {
    struct pollfd fd = {.fd = pidfd > 0 ? pidfd : -1, .events = POLLIN};
    struct timespec slice = {.tv_nsec = pidfd > 0 ? SH_SLICE_NSEC : 1000000};
    return SYS(ppoll, &fd, 1, &slice, NULL, 0);
}

int sh_set_close(struct sh_set *set) {
    if (!begin_close(set))
        return 1;
    if (await_holder(set->holder_pidfd) == -EINTR)
        return 0;
    lock(set);
    if (set->holder > 0 && sh_reap_holder(set->holder, &set->holder_pidfd)) {
        if (set->starts == 0)
            sh_set_close_fds(set);
        if (set->holder_pidfd > 0)
            sh_close_pidfd(set->holder_pidfd);
        set->holder = set->holder_pidfd = 0;
    }
    int done = set->holder == 0;
    unlock(set);
    return done;
}

int sh_set_drop(struct sh_set *set) {
    int open = !set->closed && sh_set_mine(set);
    if (open)
        begin_close(set);
    lock(set);
    if (sh_set_mine(set))
        settle(set);
    let_go(set);
    return open;
}
