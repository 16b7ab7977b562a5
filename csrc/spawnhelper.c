/* The child: everything between clone and exec.
 *
 * Another country. The memory is the parent's, whose other threads are
 * running; the libc locks may be held by threads that do not exist here. So:
 *   - raw system calls only, no libc, no allocation, no lock, no errno;
 *   - nothing is written but this stack, the result, the births and the parked slots;
 *   - no function returns to a frame of the parent;
 *   - all signals stay blocked until the last step.
 * The build refuses this file when its object has an undefined symbol.
 */
#define _GNU_SOURCE
#include "spawnhelper.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "sys.h"

typedef const struct sh_orders orders_t;

_Noreturn static void leave(void) {
    for (;;)
        SYS(exit_group, 127);
}

static void write_all(int fd, const char *bytes, uint32_t length) {
    while (length > 0) {
        long written = SYS(write, fd, bytes, length);
        if (written == -EINTR)
            continue;
        if (written <= 0)
            return;
        bytes += written;
        length -= (uint32_t)written;
    }
}

static void report(orders_t *orders) {
    orders->result->started = 1;
    write_all(orders->report, (const char *)orders->result, sizeof *orders->result);
}

void sh_child_fail(orders_t *orders, int stage, int error, int detail, const char *text,
                   uint32_t length) {
    orders->result->detail = detail;
    orders->result->error = error;
    orders->result->stage = stage;
    if (orders->report >= 0) {
        report(orders);
        write_all(orders->report, text, length);
    }
    if (orders->failed)
        orders->failed();
    leave();
}

_Noreturn static void fail(orders_t *orders, int stage, long error, int detail) {
    sh_child_fail(orders, stage, (int)-error, detail, 0, 0);
}

/* So that a child killed on the way is known to have died there. */
static void enter(orders_t *orders, int stage) { orders->result->stage = stage; }

static int set_default(int number) {
    struct sh_sigaction action;
    action.handler = SIG_DFL;
    action.flags = 0;
    action.restorer = 0;
    action.mask = 0;
    return (int)SYS(rt_sigaction, number, &action, 0, sizeof action.mask);
}

/* A caught signal would run the parent's handler in the parent's memory. */
static void clear_caught(orders_t *orders) {
    for (int number = 1; number <= SH_SIGNALS; number++) {
        struct sh_sigaction action;
        if (SYS(rt_sigaction, number, 0, &action, sizeof action.mask) < 0)
            continue; /* no such signal */
        if (action.handler == SIG_DFL || action.handler == SIG_IGN)
            continue;
        long error = set_default(number);
        if (error < 0)
            fail(orders, SH_STAGE_CLONE, error, number);
    }
}

/* Python ignores PIPE and XFSZ for itself; commands expect all of these to work. */
static void reset_dispositions(orders_t *orders) {
    enter(orders, SH_STAGE_CLONE);
    if (orders->clear_signals)
        clear_caught(orders);
    static const unsigned char wanted[] = {SIGINT, SIGTERM, SIGQUIT, SIGCHLD, SIGPIPE, SIGXFSZ};
    for (unsigned i = 0; i < sizeof wanted; i++) {
        long error = set_default(wanted[i]);
        if (error < 0)
            fail(orders, SH_STAGE_CLONE, error, wanted[i]);
    }
}

/* CLONE_FILES saved the copy of a large table; one that leaves out a
 * range is made here. Nothing may be closed in the shared one. */
static void detach_files(orders_t *orders) {
    if (orders->shared_files < 0)
        return;
    enter(orders, SH_STAGE_FDS);
    long error = -ENOSYS;
    if (!(orders->avoid & SH_AVOID_CLOSE_RANGE))
        error = SYS(close_range, orders->shared_files, orders->shared_to, SH_CLOSE_RANGE_UNSHARE);
    if (error < 0)
        error = SYS(unshare, CLONE_FILES);
    if (error < 0)
        fail(orders, SH_STAGE_FDS, error, SH_SHARED_FILES_REFUSED);
}

/* The lowest free number that is no target; a duplicate left on a target is
 * replaced when that target is placed. */
static int park(orders_t *orders, int source) {
    int from = 0;
    for (;;) {
        long fd = SYS(fcntl, source, F_DUPFD_CLOEXEC, from);
        if (fd < 0)
            fail(orders, SH_STAGE_FDS, fd, source);
        if (sh_fdplan_find(orders->fds, orders->nfds, (int)fd) < 0)
            return (int)fd;
        from = (int)fd + 1;
    }
}

static void place(orders_t *orders, int source, int target) {
    long error;
    /* EBUSY: another user of the table is opening this number (dup2(2)). */
    for (int tries = 0; tries < 1000; tries++) {
        error = SYS(dup3, source, target, 0);
        if (error != -EBUSY && error != -EINTR)
            break;
    }
    if (error < 0)
        fail(orders, SH_STAGE_FDS, error, target);
}

struct entry {
    uint64_t inode, offset;
    unsigned short length;
    unsigned char type;
    char name[];
};

static int to_number(const char *name) {
    int number = 0;
    for (; *name; name++) {
        if (*name < '0' || *name > '9')
            return -1;
        number = number * 10 + (*name - '0');
    }
    return number;
}

/* Costs what is open, not what the limit allows. */
static int close_listed(int from, int to) {
    int listing =
        (int)SYS(openat, AT_FDCWD, "/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (listing < 0)
        return listing;
    union {
        char bytes[2048];
        struct entry first;
    } buffer;
    long length;
    while ((length = SYS(getdents64, listing, &buffer, sizeof buffer)) > 0)
        for (long at = 0; at < length;) {
            const struct entry *entry = (const struct entry *)(buffer.bytes + at);
            int fd = to_number(entry->name);
            if (fd >= from && fd <= to && fd != listing)
                SYS(close, fd);
            at += entry->length;
        }
    SYS(close, listing);
    return (int)length;
}

static long close_counted(int from, int to) {
    struct rlimit limit;
    long error = SYS(prlimit64, 0, RLIMIT_NOFILE, 0, &limit);
    if (error < 0)
        return error;
    for (int64_t fd = from; fd <= to && (uint64_t)fd < limit.rlim_cur; fd++)
        SYS(close, fd);
    return 0;
}

static long close_span(orders_t *orders, int from, int to) {
    if (from == to) {
        SYS(close, from); /* never retried: the number is free even on EINTR */
        return 0;
    }
    if (!(orders->avoid & SH_AVOID_CLOSE_RANGE) && SYS(close_range, from, to, 0) == 0)
        return 0;
    if (!(orders->avoid & SH_AVOID_LISTING) && close_listed(from, to) >= 0)
        return 0;
    return close_counted(from, to);
}

static void close_all(orders_t *orders, int from, int to) {
    long error = close_span(orders, from, to);
    if (error < 0)
        fail(orders, SH_STAGE_FDS, error, from);
}

static void keep(orders_t *orders, int fd) {
    /* The standard streams are inherited as they are: a closed one stays closed,
     * and one that is close-on-exec is private, another thread's pidfd perhaps. */
    if (orders->request->flags & SH_STANDARD_FDS)
        return;
    long error = SYS(fcntl, fd, F_SETFD, 0);
    if (error < 0)
        fail(orders, SH_STAGE_FDS, error, fd);
}

void sh_child_arrange(orders_t *orders) {
    enter(orders, SH_STAGE_FDS);
    for (uint32_t i = 0; i < orders->nsteps; i++) {
        const struct sh_fdstep *step = &orders->steps[i];
        switch (step->op) {
        case SH_FD_PARK:
            orders->parked[step->to] = park(orders, step->from);
            break;
        case SH_FD_FETCH:
            place(orders, orders->parked[step->from], step->to);
            break;
        case SH_FD_PLACE:
            place(orders, step->from, step->to);
            break;
        case SH_FD_KEEP:
            keep(orders, step->to);
            break;
        case SH_FD_CLOSE:
            close_all(orders, step->from, step->to);
            break;
        }
    }
}

/* Raw calls: libc's would signal the parent's threads to follow (nptl(7)). */
static void set_groups(orders_t *orders) {
    if (!(orders->request->flags & SH_SET_GROUPS))
        return;
    enter(orders, SH_STAGE_GROUPS);
    long error = SYSNR(SH_SYS_setgroups, orders->request->ngroups, orders->request->groups);
    if (error < 0)
        fail(orders, SH_STAGE_GROUPS, error, (int)orders->request->ngroups);
}

/* A copy of our parent's memory holds its secrets as well. (Where the memory is
 * shared the parent sees to it.) */
static long hide_copy(orders_t *orders) {
    return orders->own_memory ? SYS(prctl, PR_SET_DUMPABLE, 0) : 0;
}

static void set_gid(orders_t *orders) {
    if (!(orders->request->flags & SH_SET_GID))
        return;
    enter(orders, SH_STAGE_GID);
    uint32_t gid = orders->request->gid;
    long error = SYSNR(SH_SYS_setresgid, gid, gid, gid);
    if (error < 0)
        fail(orders, SH_STAGE_GID, error, (int)gid);
    hide_copy(orders); /* fs.suid_dumpable may have made it readable */
}

static void set_uid(orders_t *orders) {
    if (!(orders->request->flags & SH_SET_UID))
        return;
    enter(orders, SH_STAGE_UID);
    uint32_t uid = orders->request->uid;
    long error = SYSNR(SH_SYS_setresuid, uid, uid, uid);
    if (error < 0)
        fail(orders, SH_STAGE_UID, error, (int)uid);
    hide_copy(orders);
}

static void set_umask(orders_t *orders) {
    if (!(orders->request->flags & SH_SET_UMASK))
        return;
    enter(orders, SH_STAGE_UMASK);
    long error = SYS(umask, orders->request->umask);
    if (error < 0)
        fail(orders, SH_STAGE_UMASK, error, (int)orders->request->umask);
}

/* After the ids: the command may enter only what its own user may. */
static void change_directory(orders_t *orders) {
    if (!orders->request->cwd)
        return;
    enter(orders, SH_STAGE_CHDIR);
    long error = SYS(chdir, orders->request->cwd);
    if (error < 0)
        fail(orders, SH_STAGE_CHDIR, error, 0);
}

/* On a pipe exec is silent, and so is death: this tells them apart. */
static void announce(orders_t *orders) {
    enter(orders, SH_STAGE_EXEC);
    if (orders->report >= 0)
        report(orders);
}

static void restore_mask(orders_t *orders) {
    long error = SYS(rt_sigprocmask, SIG_SETMASK, &orders->mask, 0, sizeof orders->mask);
    if (error < 0)
        fail(orders, SH_STAGE_EXEC, error, 0);
}

/* ETXTBSY: a sibling forked while another thread still wrote the program and
 * holds that descriptor until its own exec, a moment from now (golang/go#22315).
 * In all about 0.2 s: a file that is really open for writing stays an error. */
static long execute(orders_t *orders) {
    struct {
        long seconds, nanoseconds;
    } pause = {0, 100000};
    for (int tries = 0;; tries++) {
        long error = SYS(execve, orders->file, orders->argv, orders->envp);
        if (error != -ETXTBSY || tries == 60)
            return error;
        SYS(nanosleep, &pause, 0);
        if (pause.nanoseconds < 4000000)
            pause.nanoseconds += pause.nanoseconds / 4;
    }
}

#include "isolation.h"

void sh_child_prepare(orders_t *orders) {
    reset_dispositions(orders);
    detach_files(orders);
    start_session(orders);
    isolate(orders);
    sh_child_arrange(orders);
    set_groups(orders);
    set_gid(orders);
    set_uid(orders);
    set_umask(orders);
    change_directory(orders);
}

void sh_child_execute(orders_t *orders) {
    announce(orders);
    restore_mask(orders);
    long error = execute(orders);
    fail(orders, SH_STAGE_EXEC, error, 0);
}

void sh_child(void *orders) {
    sh_child_prepare(orders);
    sh_child_execute(orders);
}
