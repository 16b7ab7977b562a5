/* Fails or kills each system call of a start, one by one, and looks at what is left.
 *
 *   fault TARGET [quick] [unprivileged] [only=SET]
 *
 * For each feature set one clean run records the calls of the child and of the
 * parent. Then every call fails with every errno, once and (sticky) from then
 * on, and the child dies of SIGKILL and of a real segmentation fault at each of
 * its calls. After each start: the answer, the stage and the command are as the
 * tables below say; no child, fd, mapping, lock or changed attribute is left.
 * Then the calls of waiting and signalling fail likewise: the end is known all
 * the same, once they work again.
 * Prints one JSON object. A second process watches: all signals are blocked
 * during a start, so an alarm would not end one that hangs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "mappings.h"
#include "parent.h"
#include "spawnhelper.h"
#include "state.h"
#include "sys.h"

enum { PARENT, CHILD };
enum { MAX_CALLS = 256, MAX_FDS = 40, MAX_DENIED = 3, STALL_MS = 2000, POLL_MS = 50 };
enum { REGION = 512, LOOKED_FDS = 520 }; /* pidfds.c */

static const int errnos[] = {
    EPERM,  ENOENT, EINTR,  EIO,    ENXIO,   E2BIG,        ENOEXEC, EBADF,
    EAGAIN, ENOMEM, EACCES, EFAULT, EBUSY,   EEXIST,       ENODEV,  ENOTDIR,
    EISDIR, EINVAL, ENFILE, EMFILE, ETXTBSY, ENOSPC,       EROFS,   ELOOP,
    EDQUOT, ENOSYS, ECHILD, EUSERS, ESRCH,   ENAMETOOLONG, ENODATA, EOVERFLOW,
};
static const int quick_errnos[] = {EPERM, EINTR, EBADF, ENOMEM, EINVAL, EBUSY, ETXTBSY, ENOSYS};

/* ---- feature sets ---- */

struct denied {
    int side;
    long number;
    int error;
    int times; /* 0: always */
};

enum set_flags {
    ROOT = 1 << 0,            /* changes to ids that are not ours */
    OWN_MEMORY = 1 << 1,      /* the child must run in memory of its own */
    CLOSED_STANDARD = 1 << 2, /* our 0, 1 and 2 are closed */
    COLD = 1 << 3,            /* no pooled scratch */
    HUGE = 1 << 4,            /* a request that no pooled block holds */
    CROWDED = 1 << 5,         /* we have many pidfds, some of them in their region */
    FOREIGN = 1 << 6,         /* and between them a file that the command inherits */
    WAITS = 1 << 7,           /* the faults strike not the start, but what follows */
    SLEEPS = 1 << 8,          /* the command still runs then */
    LOGS = 1 << 9,            /* or opening a log */
    LOGGED = 1 << 10,         /* or a whole call with a log, from opening it to closing it */
};

struct set {
    const char *name;
    uint32_t request; /* enum sh_request_flags */
    uint32_t flags;
    const struct sh_fdpair *fds;
    uint32_t nfds;
    const char *cwd;
    struct denied denied[MAX_DENIED];
    int stage, error; /* of the clean run */
    int mode;         /* enum sh_start, as if found out before */
};

#define MAP(name) .fds = name, .nfds = sizeof name / sizeof *name
#define IDS (SH_SET_UID | SH_SET_GID)
#define NO_RANGE {CHILD, SYS_close_range, ENOSYS, 0}
#define NO_DUMPABLE {PARENT, SYS_openat, ENOENT, 0}

/* Open are 10 to 14 (close-on-exec), 20 and 21 (inheritable); 3 is free. */
static const struct sh_fdpair plain_map[] = {{0, 10}, {1, 11}, {2, 2}, {12, 12}};
static const struct sh_fdpair swap_map[] = {{3, 12}, {10, 11}, {11, 10}, {13, 13}, {20, 10}};
static const struct sh_fdpair usual_map[] = {{0, 0}, {1, 1}, {2, 2}};
static const struct sh_fdpair standard_map[] = {{0, 0}, {1, 10}, {2, 2}};

static const struct set sets[] = {
    {.name = "plain"},
    {.name = "fds", MAP(plain_map)},
    {.name = "swap", MAP(swap_map)},
    {.name = "swap close", .request = SH_CLOSE_FDS, MAP(swap_map)},
    {.name = "close none kept", .request = SH_CLOSE_FDS},
    {.name = "close listed", .request = SH_CLOSE_FDS, MAP(swap_map), .denied = {NO_RANGE}},
    {.name = "close counted, no /proc",
     .request = SH_CLOSE_FDS,
     MAP(swap_map),
     .denied = {NO_RANGE, {CHILD, SYS_openat, ENOENT, 0}}},
    {.name = "close counted, listing fails",
     .request = SH_CLOSE_FDS,
     MAP(plain_map),
     .denied = {NO_RANGE, {CHILD, SYS_getdents64, EIO, 0}}},
    {.name = "close counted, listing ends early",
     .request = SH_CLOSE_FDS,
     MAP(plain_map),
     .denied = {{CHILD, SYS_close_range, EPERM, 2}, {CHILD, SYS_getdents64, EINTR, 1}}},
    {.name = "standard closed",
     .request = SH_STANDARD_FDS | SH_CLOSE_FDS,
     .flags = CLOSED_STANDARD,
     MAP(standard_map)},
    {.name = "umask cwd", .request = SH_SET_UMASK, .cwd = "/proc"},
    {.name = "busy program", .denied = {{CHILD, SYS_execve, ETXTBSY, 3}}},
    {.name = "busy fd", MAP(swap_map), .denied = {{CHILD, SYS_dup3, EBUSY, 3}}},
    {.name = "refused", .cwd = "/nonexistent", .stage = SH_STAGE_CHDIR, .error = ENOENT},
    {.name = "refused ids",
     .request = IDS,
     .cwd = "/nonexistent",
     .stage = SH_STAGE_CHDIR,
     .error = ENOENT},
    {.name = "refused own memory",
     .request = IDS,
     .flags = OWN_MEMORY,
     .cwd = "/nonexistent",
     .denied = {NO_DUMPABLE},
     .stage = SH_STAGE_CHDIR,
     .error = ENOENT},
    {.name = "cold", .flags = COLD, MAP(plain_map)},
    {.name = "huge", .flags = COLD | HUGE, MAP(plain_map)},
    {.name = "own ids", .request = IDS},
    {.name = "own ids, own memory", .request = IDS, .flags = OWN_MEMORY, .denied = {NO_DUMPABLE}},
    {.name = "own memory, cold",
     .request = IDS | SH_CLOSE_FDS,
     .flags = OWN_MEMORY | COLD,
     MAP(swap_map),
     .denied = {NO_DUMPABLE}},
    {.name = "by clone", MAP(swap_map), .mode = SH_START_CLONE},
    {.name = "by clone, own memory",
     .request = IDS | SH_CLOSE_FDS,
     .flags = OWN_MEMORY,
     MAP(swap_map),
     .denied = {NO_DUMPABLE},
     .mode = SH_START_CLONE},
    {.name = "by pipe", .flags = OWN_MEMORY, MAP(swap_map), .mode = SH_START_PIPE},
    {.name = "by pipe, close",
     .request = IDS | SH_CLOSE_FDS,
     .flags = OWN_MEMORY,
     MAP(swap_map),
     .cwd = "/proc",
     .mode = SH_START_PIPE},
    {.name = "refused by pipe",
     .flags = OWN_MEMORY,
     .cwd = "/nonexistent",
     .stage = SH_STAGE_CHDIR,
     .error = ENOENT,
     .mode = SH_START_PIPE},
    {.name = "crowded", .flags = CROWDED},
    {.name = "crowded, fds", .flags = CROWDED, MAP(plain_map)},
    {.name = "crowded, a foreign file", .flags = CROWDED | FOREIGN, MAP(swap_map)},
    {.name = "crowded, by clone", .flags = CROWDED, MAP(swap_map), .mode = SH_START_CLONE},
    {.name = "ended", .flags = WAITS},
    {.name = "ended, crowded", .flags = WAITS | CROWDED},
    {.name = "running", .flags = WAITS | SLEEPS},
    {.name = "running, crowded", .flags = WAITS | SLEEPS | CROWDED},
    {.name = "running, by clone", .flags = WAITS | SLEEPS, .mode = SH_START_CLONE},
    {.name = "log", .flags = LOGS},
    {.name = "log, standard closed", .flags = LOGS | CLOSED_STANDARD},
    {.name = "logged", .request = SH_STANDARD_FDS, .flags = LOGGED, MAP(usual_map)},
    {.name = "logged, standard closed",
     .request = SH_STANDARD_FDS,
     .flags = LOGGED | CLOSED_STANDARD,
     MAP(usual_map)},
    {.name = "logged, swap close", .request = SH_CLOSE_FDS, .flags = LOGGED, MAP(plain_map)},
    {.name = "logged, refused ids",
     .request = IDS,
     .flags = LOGGED,
     MAP(plain_map),
     .cwd = "/nonexistent",
     .stage = SH_STAGE_CHDIR,
     .error = ENOENT},
    {.name = "logged, by clone", .flags = LOGGED, MAP(plain_map), .mode = SH_START_CLONE},
    {.name = "logged, by pipe",
     .flags = LOGGED | OWN_MEMORY,
     MAP(plain_map),
     .mode = SH_START_PIPE},
    {.name = "ids", .request = IDS | SH_SET_GROUPS, .flags = ROOT},
    {.name = "groups", .request = SH_SET_GROUPS, .flags = ROOT},
    {.name = "ids, own memory",
     .request = IDS | SH_SET_GROUPS,
     .flags = ROOT | OWN_MEMORY,
     .denied = {NO_DUMPABLE}},
    {.name = "everything",
     .request = IDS | SH_SET_GROUPS | SH_CLOSE_FDS | SH_SET_UMASK,
     .flags = ROOT,
     MAP(swap_map),
     .cwd = "/proc"},
    {.name = "everything, own memory",
     .request = IDS | SH_SET_GROUPS | SH_CLOSE_FDS | SH_SET_UMASK,
     .flags = ROOT | OWN_MEMORY,
     MAP(swap_map),
     .cwd = "/proc",
     .denied = {NO_DUMPABLE}},
    {.name = "everything, nothing allowed",
     .request = IDS | SH_SET_GROUPS | SH_CLOSE_FDS | SH_SET_UMASK,
     .flags = ROOT | OWN_MEMORY,
     MAP(swap_map),
     .cwd = "/proc",
     .denied = {NO_DUMPABLE, NO_RANGE, {CHILD, SYS_openat, EACCES, 0}}},
};

/* ---- the fault ---- */

struct call {
    long number, a, b;
};

struct fault {
    int side;
    long nth; /* -1: none */
    int error;
    int sticky; /* and every later call of that number */
    int signal; /* instead of an error */
};

/* Shared, because a child with memory of its own counts too. */
static struct shared {
    volatile long progress;
    volatile int armed, finished;
    volatile int hits, waits_hit; /* of them waitid(2) */
    long calls[2];
    struct call trace[2][MAX_CALLS];
    int denials[MAX_DENIED];
    char current[200];
    char report[32 * 1024];
} *shared;

static int worker;
static volatile int touched; /* by a child that shares our memory */
static const struct set *set;
static struct fault fault;
static long fault_number;

static int cannot_fail(long number) {
    return number == SYS_rt_sigprocmask || number == SYS_getpid || number == SYS_futex;
}

static void die(int number) {
    if (number == SIGKILL)
        sh_raw(SYS_kill, sh_raw(SYS_getpid, 0, 0, 0, 0, 0, 0), SIGKILL, 0, 0, 0, 0);
    /* A sent SIGSEGV would wait with all the others that are blocked. */
    *(volatile int *)(uintptr_t)(number - SIGSEGV) = 0;
}

static int find_denied(int side, long number) {
    for (int i = 0; i < MAX_DENIED; i++) {
        const struct denied *denied = &set->denied[i];
        if (denied->error == 0 || denied->side != side || denied->number != number)
            continue;
        if (denied->times == 0 || shared->denials[i]++ < denied->times)
            return denied->error;
    }
    return 0;
}

static int is_hit(int side, long nth, long number) {
    if (side != fault.side || fault.nth < 0)
        return 0;
    return nth == fault.nth || (fault.sticky && nth > fault.nth && number == fault_number);
}

static int decide(long number, long a, long b) {
    if (!shared->armed)
        return 0;
    int side = sh_raw(SYS_getpid, 0, 0, 0, 0, 0, 0) == worker ? PARENT : CHILD;
    if (side == PARENT && cannot_fail(number))
        return 0;
    if (side == CHILD)
        touched++;
    long nth = shared->calls[side]++;
    if (nth < MAX_CALLS)
        shared->trace[side][nth] = (struct call){number, a, b};
    if (is_hit(side, nth, number)) {
        shared->hits++;
        shared->waits_hit += number == SYS_waitid;
        if (fault.signal)
            die(fault.signal);
        return fault.error;
    }
    /* The pauses of a retry that shall not succeed would only cost time. */
    if (fault.sticky && side == CHILD && number == SYS_nanosleep)
        return EINTR;
    return find_denied(side, number);
}

int sh_fault(long number) { return decide(number, 0, 0); }

long fault_call(long number, long a, long b, long c, long d, long e, long f) {
    int error = decide(number, a, b);
    if (error == 0)
        return sh_raw(number, a, b, c, d, e, f);
    if (number == SYS_close)
        sh_raw(number, a, b, c, d, e, f);
    return -error;
}

/* ---- what is to come of a failed call ---- */

enum outcome { SAME, FAILS, DROPS, EITHER, UNKNOWN };

struct expected {
    enum outcome outcome; /* DROPS: starts, with an fd fewer; EITHER: SAME or FAILS */
    int stage, error;
    int leaves_child, leaves_undumpable; /* which nobody could help */
};

static int stage_of(const struct call *call) {
    switch (call->number) {
    case SYS_rt_sigaction:
        return SH_STAGE_CLONE;
    case SYS_close_range:
    case SYS_unshare:
    case SYS_fcntl:
    case SYS_dup3:
    case SYS_close:
    case SYS_openat:
    case SYS_getdents64:
    case SYS_prlimit64:
        return SH_STAGE_FDS;
    case SH_SYS_setgroups:
        return SH_STAGE_GROUPS;
    case SH_SYS_setresgid:
        return SH_STAGE_GID;
    case SH_SYS_setresuid:
        return SH_STAGE_UID;
    case SYS_umask:
        return SH_STAGE_UMASK;
    case SYS_chdir:
        return SH_STAGE_CHDIR;
    case SYS_rt_sigprocmask:
    case SYS_execve:
    case SYS_nanosleep:
        return SH_STAGE_EXEC;
    default:
        return -1;
    }
}

static struct expected of_child(const struct call *call) {
    struct expected expected = {FAILS, stage_of(call), fault.error, 0, 0};
    int error = fault.error;
    switch (call->number) {
    case SYS_fcntl: /* a standard stream that is closed stays closed */
        if (call->b == F_GETFD && (set->request & SH_STANDARD_FDS))
            expected.outcome = DROPS;
        break;
    case SYS_rt_sigaction: /* no such signal */
        if (call->b == 0)
            expected.outcome = fault.sticky ? EITHER : SAME;
        break;
    case SYS_write: /* to the report pipe; the parent then sees a silent end */
        expected.outcome = EITHER;
        expected.stage = SH_STAGE_CLONE;
        expected.error = ECHILD;
        if (error == EINTR)
            expected.outcome = SAME;
        break;
    case SYS_prctl:       /* the id change itself hides the copy, as a rule (prctl(2)) */
    case SYS_unshare:     /* then a copy of the table */
    case SYS_close:       /* the number is free whatever it says */
    case SYS_close_range: /* then listed */
    case SYS_openat:      /* then counted */
    case SYS_getdents64:
    case SYS_nanosleep:
    case SYS_exit_group:
        expected.outcome = SAME;
        break;
    case SYS_dup3:
        if (!fault.sticky && (error == EBUSY || error == EINTR))
            expected.outcome = SAME;
        break;
    case SYS_execve:
        if (!fault.sticky && error == ETXTBSY)
            expected.outcome = SAME;
        break;
    default:
        if (expected.stage < 0)
            expected.outcome = UNKNOWN;
    }
    return expected;
}

static struct expected of_parent(const struct call *call) {
    struct expected expected = {SAME, SH_STAGE_CLONE, fault.error, 0, 0};
    switch (call->number) {
    case SYS_openat: /* then with memory of its own */
    case SYS_close:
        break;
    case SYS_fcntl:
        if (call->b == F_DUPFD_CLOEXEC && (set->mode == SH_START_PIPE || (set->request & IDS))) {
            /* no room above: then any free number */
            expected.outcome = fault.error == EINVAL || fault.error == EMFILE ? EITHER : FAILS;
            break;
        }
        if (call->b != F_GETFD || (set->request & SH_STANDARD_FDS))
            break;               /* the pidfd stays where it is; a copy of the table is taken */
        if (call->a >= REGION) { /* whether somebody else has it */
            if ((set->flags & FOREIGN) && fault.error == EBADF)
                expected.outcome = DROPS;
            break;
        }
        expected.outcome = FAILS;
        expected.stage = SH_STAGE_FDS;
        expected.error = EBADF;
        break;
    case SYS_read:
        if (set->mode == SH_START_PIPE && fault.error != EINTR) {
            expected.outcome = EITHER; /* a pipe's read cannot fail */
            expected.error = ECHILD;
        }
        break;
    case SYS_pidfd_open: /* then without */
        break;
    case SYS_pipe2:
        expected.outcome = FAILS;
        break;
    case SYS_clone:
        expected.outcome = FAILS;
        if (fault.error == EINVAL && set->mode == SH_START_CLONE && !fault.sticky)
            expected.outcome = SAME; /* then without pidfd */
        break;
    case SYS_clone3: /* then by clone */
        expected.outcome = SAME;
        if (fault.error != ENOSYS && fault.error != EPERM && fault.error != EINVAL)
            expected.outcome = FAILS;
        break;
    case SYS_mmap:
    case SYS_mprotect:
        expected.outcome = FAILS;
        expected.error = ENOMEM;
        break;
    case SYS_prctl:
        expected.leaves_undumpable = call->a == PR_SET_DUMPABLE;
        break;
    case SYS_waitid:
        expected.leaves_child = fault.error != EINTR || fault.sticky;
        break;
    default:
        expected.outcome = UNKNOWN;
    }
    return expected;
}

static struct expected expect(const struct call *call) {
    return fault.side == CHILD ? of_child(call) : of_parent(call);
}

/* A start that ends at the first failure has no second one. */
static int is_fatal(const struct call *call) {
    struct fault kept = fault;
    fault.sticky = 0;
    int fatal = expect(call).outcome == FAILS;
    fault = kept;
    return fatal;
}

/* ---- one start ---- */

/* What a start may not change. */
struct attributes {
    int fds[LOOKED_FDS]; /* F_GETFD */
    int pidfds;          /* how many are counted */
    uint64_t mask;
    int dumpable;
    mode_t umask;
    uid_t uid;
    gid_t gid;
    ino_t cwd;
    int leftover_mappings;
    uint32_t lock;
};

static void look(struct attributes *seen) {
    memset(seen, 0, sizeof *seen);
    for (int fd = 0; fd < LOOKED_FDS; fd++)
        seen->fds[fd] = fcntl(fd, F_GETFD);
    seen->pidfds = sh_state.pidfd_count;
    sh_raw(SYS_rt_sigprocmask, SIG_BLOCK, 0, (long)&seen->mask, sizeof seen->mask, 0, 0);
    seen->dumpable = prctl(PR_GET_DUMPABLE);
    seen->umask = umask(0);
    umask(seen->umask);
    seen->uid = geteuid();
    seen->gid = getegid();
    struct stat status;
    if (stat(".", &status) == 0)
        seen->cwd = status.st_ino;
    seen->leftover_mappings = count_mappings();
    seen->lock = sh_state.id_lock;
}

static struct request {
    struct sh_request request;
    uint32_t groups[2];
    char *many; /* HUGE */
} wanted;

enum { MANY = 16000 };

static void build_request(const char *target) {
    uint32_t other = 65534;
    int root = (set->flags & ROOT) != 0, huge = (set->flags & HUGE) != 0;
    wanted.groups[0] = 100;
    wanted.groups[1] = other;
    if (huge && !wanted.many) {
        wanted.many = malloc(MANY * 2);
        for (int i = 0; i < MANY; i++)
            memcpy(wanted.many + 2 * i, "x", 2);
    }
    wanted.request = (struct sh_request){
        .argv = huge ? wanted.many : target,
        .argc = huge ? MANY : 1,
        .env = "A=1",
        .envc = 1,
        .file = target,
        .cwd = set->cwd,
        .fds = set->fds,
        .nfds = set->nfds,
        .groups = wanted.groups,
        .ngroups = 2,
        .uid = root ? other : geteuid(),
        .gid = root ? other : getegid(),
        .umask = 027,
        .flags = set->request,
    };
    if (set->flags & SLEEPS) {
        wanted.request.argv = "sleep\00060";
        wanted.request.argc = 2;
        wanted.request.file = "/bin/sleep";
    }
}

struct ran {
    int answer;
    struct sh_result result;
    int status;   /* of the command, if it started */
    int ended;    /* and was waited for */
    int unwaited; /* a plain waitpid() would not have found it */
    int left;     /* children that nobody reaped */
    int own_memory;
    struct attributes after;
};

/* ---- the report ---- */

static int cases, bad;
static char *at; /* end of the report */

static void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void print(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    size_t room = (size_t)(shared->report + sizeof shared->report - at);
    int length = vsnprintf(at, room, format, arguments);
    va_end(arguments);
    if (length > 0)
        at += (size_t)length < room ? (size_t)length : room - 1;
}

static char bad_list[6000];
enum { ENTRY = 400 };

static void complain(const char *what, const struct ran *ran) {
    size_t used = strlen(bad_list);
    bad++;
    if (used > sizeof bad_list - ENTRY)
        return;
    snprintf(bad_list + used, sizeof bad_list - used,
             "%s{\"case\": \"%s\", \"wrong\": \"%s\", \"answer\": %d, \"stage\": \"%s\", "
             "\"errno\": %d, \"detail\": %d, \"status\": %d}",
             used ? ", " : "", shared->current, what, ran->answer, sh_stage_name(ran->result.stage),
             ran->result.error, ran->result.detail, ran->status);
}

/* ---- one run ---- */

static void reset(void) {
    sh_avoid(0);
    sh_state.start_mode = set->mode;
    shared->progress++;
    shared->hits = shared->waits_hit = 0;
    shared->calls[PARENT] = shared->calls[CHILD] = 0;
    memset(shared->denials, 0, sizeof shared->denials);
    touched = 0;
}

/* What a handle's owner does, struck by the fault; then without. */
static struct ran run_wait(void) {
    struct ran ran = {0};
    struct sh_process process = {0};
    siginfo_t info;
    reset();
    ran.answer = sh_start(&wanted.request, &process);
    int pidfd = process.pidfd;
    if (!(set->flags & SLEEPS)) /* so that each run makes the same calls */
        waitid(P_PID, (id_t)process.pid, &info, WEXITED | WNOWAIT);
    shared->armed = 1;
    if (set->flags & SLEEPS) {
        sh_reap(&process);
        sh_wait(&process, 1000);
    }
    int copy = sh_copy_pidfd(&process);
    int signalled = sh_signal(&process, SIGKILL);
    shared->armed = 0;
    if (signalled < 0 && signalled != -fault.error)
        complain("the signal's answer is wrong", &ran);
    if (process.pid > 0)
        kill(process.pid, SIGKILL); /* should the fault have been sh_signal's */
    waitid(P_PID, (id_t)process.pid, &info, WEXITED | WNOWAIT);
    shared->armed = 1;
    sh_wait(&process, 1000);
    shared->armed = 0;
    if (copy >= 0)
        close(copy);
    if (fault.error == EBADF || fault.error == EINVAL)
        close(pidfd); /* believed to be somebody else's, and left alone */
    ran.ended = sh_wait(&process, -1) == 1 && process.state == SH_ENDED;
    ran.status = process.status;
    ran.result = process.result;
    if (!ran.ended && (process.state != SH_LOST || fault.error != ECHILD))
        complain("the end was not seen", &ran);
    while (waitpid(-1, NULL, __WALL) > 0)
        ran.left++;
    look(&ran.after);
    return ran;
}

/* Whatever it opened before a failure, closing it leaves nothing. */
static struct ran run_log(void) {
    static struct sh_log log;
    static const struct sh_request request = {MAP(usual_map), .flags = SH_STANDARD_FDS};
    struct ran ran = {0};
    memset(&log, 0, sizeof log);
    reset();
    shared->armed = 1;
    int error = sh_log_open(&log, &request, "/dev/null", 1);
    shared->armed = 0;
    /* Whether stdout is open can be asked in vain. */
    int asks = fault_number == SYS_fcntl && fault.nth == 0;
    int must_fail = shared->hits > 0 && fault_number != SYS_close && !(asks && !fault.sticky);
    if (error != (must_fail ? -fault.error : 0))
        complain("the log's answer is wrong", &ran);
    if (error == 0 && (log.file <= 2 || log.source <= 2 || log.pipe_end <= 2))
        complain("a descriptor for the standard streams was taken", &ran);
    sh_log_close(&log);
    look(&ran.after);
    return ran;
}

/* As Python goes on when a signal came or the wait failed. */
static void finish_logged(struct sh_process *process, struct sh_log *log) {
    int done;
    do
        done = sh_wait_log(process, -1, log);
    while (done == 0);
    sh_log_close(log);
}

/* Every descriptor that it opened, and the child, whatever failed. */
static struct ran run_logged(void) {
    static struct sh_log log;
    const struct sh_request *request = &wanted.request;
    struct ran ran = {0};
    struct sh_process process = {0};
    reset();
    memset(&log, 0, sizeof log);
    shared->armed = 1;
    int done = sh_run_logged(request, request->file, request->argv, request->argc, request->env,
                             request->envc, NULL, &process, &log, "/dev/null");
    shared->armed = 0;
    ran.answer = done > 0 ? 0 : done;
    ran.own_memory = touched == 0;
    ran.result = process.result;
    if (done != 0 && (log.file || log.source || log.pipe_end))
        complain("the log was left open", &ran);
    if (process.state == SH_RUNNING)
        finish_logged(&process, &log);
    ran.ended = process.state == SH_ENDED;
    ran.status = process.status;
    if (done > 0 ? !ran.ended || process.status != done - 1 : done == 0 && process.state == SH_NEW)
        complain("the answer is wrong", &ran);
    if (done < 0 && process.state == SH_NEW && log.opened && process.result.error == 0)
        complain("the failure was not reported", &ran);
    if (fault.error == EBADF || fault.error == EINVAL || shared->waits_hit)
        for (int fd = STDERR_FILENO + 1; fd < 10; fd++)
            close(fd); /* a pidfd believed to be somebody else's, and left alone */
    while (waitpid(-1, NULL, __WALL) > 0)
        ran.left++;
    if (ran.left > 0 && !shared->waits_hit)
        complain("child left", &ran);
    look(&ran.after);
    return ran;
}

static struct ran run(void) {
    struct ran ran = {0};
    struct sh_process process = {0};
    if (set->flags & LOGS)
        return run_log();
    if (set->flags & LOGGED)
        return run_logged();
    if (set->flags & WAITS)
        return run_wait();
    reset();
    if (set->flags & COLD)
        empty_pool();
    shared->armed = 1;
    ran.answer = sh_start(&wanted.request, &process);
    shared->armed = 0;
    ran.own_memory = touched == 0;
    ran.result = process.result;
    if (ran.answer == 0) {
        siginfo_t info;
        int pid = process.pid;
        if (fault.signal)
            ran.unwaited = waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) != 0 &&
                           sh_give(&process) != -ECHILD;
        ran.ended = sh_wait(&process, -1) == 1 && process.state == SH_ENDED;
        ran.status = process.status;
        sh_drop(&process);
    }
    while (waitpid(-1, NULL, __WALL) > 0)
        ran.left++;
    look(&ran.after);
    return ran;
}

/* ---- the verdict ---- */

static void check_attributes(const struct attributes *before, const struct ran *ran,
                             const struct expected *expected) {
    const struct attributes *after = &ran->after;
    if (memcmp(before->fds, after->fds, sizeof before->fds) != 0)
        complain("fds changed", ran);
    if (before->pidfds != after->pidfds)
        complain("pidfds were miscounted", ran);
    if (before->mask != after->mask)
        complain("signal mask changed", ran);
    if (before->umask != after->umask || before->uid != after->uid || before->gid != after->gid ||
        before->cwd != after->cwd)
        complain("umask, ids or cwd changed", ran);
    if (after->leftover_mappings != 0)
        complain("memory leaked", ran);
    if (after->lock != 0)
        complain("lock held", ran);
    if (before->dumpable != after->dumpable) {
        if (!expected->leaves_undumpable)
            complain("dumpable changed", ran);
        prctl(PR_SET_DUMPABLE, before->dumpable);
    }
    if (ran->left != 0 && !expected->leaves_child)
        complain("child left", ran);
}

static int is_failure(const struct ran *ran, int stage, int error) {
    return ran->answer == -error && ran->result.error == error && ran->result.stage == stage;
}

/* The command's status tells what it sees, and a log's pipe is another each time. */
static int is_same_status(const struct ran *clean, const struct ran *ran) {
    if (set->flags & LOGGED)
        return WIFEXITED(clean->status) == WIFEXITED(ran->status);
    return ran->status == clean->status;
}

static int is_same(const struct ran *clean, const struct ran *ran) {
    if (clean->answer != 0)
        return is_failure(ran, clean->result.stage, clean->result.error);
    return ran->answer == 0 && ran->ended && is_same_status(clean, ran);
}

/* Whatever failed: it was reaped, exactly, unless waitid(2) itself said that
 * there is no such child. */
static void check_failed_wait(const struct ran *clean, const struct attributes *before) {
    static const struct expected lost = {SAME, 0, 0, 1, 0}, nothing = {SAME, 0, 0, 0, 0};
    struct ran ran = run();
    cases++;
    check_attributes(before, &ran, ran.ended ? &nothing : &lost);
    /* Whether the pipe's end or the command's is seen first makes another call of it. */
    if (shared->hits == 0 && !(set->flags & LOGGED))
        complain("the fault did not happen", &ran);
    if (ran.ended && !is_same_status(clean, &ran))
        complain("the status is wrong", &ran);
}

static void check_failed_call(const struct ran *clean, const struct call *call,
                              const struct attributes *before) {
    if (set->flags & (WAITS | LOGS | LOGGED)) {
        check_failed_wait(clean, before);
        return;
    }
    struct ran ran = run();
    struct expected expected = expect(call);
    int failed = is_failure(&ran, expected.stage, expected.error);
    int same = is_same(clean, &ran);
    cases++;
    check_attributes(before, &ran, &expected);
    if (shared->hits == 0)
        complain("the fault did not happen", &ran);
    if (ran.result.started != (shared->calls[CHILD] > 0))
        complain("started is wrong", &ran);
    switch (expected.outcome) {
    case SAME:
        if (!same)
            complain("the fallback did not do the same", &ran);
        break;
    case FAILS:
        if (!failed)
            complain("the failure was not reported", &ran);
        break;
    case EITHER:
        if (!same && !failed)
            complain("neither failure nor fallback", &ran);
        break;
    case DROPS:
        if (ran.answer != 0 || !ran.ended)
            complain("the fd was not dropped", &ran);
        break;
    case UNKNOWN:
        complain("no table says what this call's failure means", &ran);
    }
}

/* Killed after the last stage began, it counts as a command that was killed. */
static void check_killed(const struct ran *clean, const struct call *call,
                         const struct attributes *before) {
    struct ran ran = run();
    static const struct expected nothing = {SAME, 0, 0, 0, 0};
    int stage = stage_of(call);
    if (call->number == SYS_prctl) /* after each of the two */
        stage = ran.result.stage == SH_STAGE_GID ? SH_STAGE_GID : SH_STAGE_UID;
    if (set->mode == SH_START_PIPE && stage != SH_STAGE_EXEC)
        stage = SH_STAGE_CLONE; /* the pipe tells of failures, not of progress */
    cases++;
    check_attributes(before, &ran, &nothing);
    if (shared->hits != 1)
        complain("the kill did not happen", &ran);
    if (call->number == SYS_exit_group) { /* it had said already why */
        if (!is_same(clean, &ran))
            complain("the reason was lost", &ran);
    } else if (stage == SH_STAGE_EXEC && ran.answer == 0) {
        if (!ran.ended || !WIFSIGNALED(ran.status) || WTERMSIG(ran.status) != fault.signal)
            complain("the command's status is wrong", &ran);
        else if (ran.unwaited)
            complain("the caller of returnpid could not reap it", &ran);
    } else if (!is_failure(&ran, stage, ECHILD) || ran.result.detail != fault.signal) {
        complain("the death was not reported", &ran);
    }
}

/* ---- the sweep ---- */

static void name_case(const struct call *call) {
    snprintf(shared->current, sizeof shared->current,
             "%s: %s call %ld (number %ld, %ld, %ld) %s%d%s", set->name,
             fault.side == CHILD ? "child" : "parent", fault.nth, call->number, call->a, call->b,
             fault.signal ? "signal " : "errno ", fault.signal ? fault.signal : fault.error,
             fault.sticky ? " sticky" : "");
}

static void sweep_call(const struct ran *clean, const struct call *call,
                       const struct attributes *before, int quick) {
    const int *list = quick ? quick_errnos : errnos;
    size_t count =
        quick ? sizeof quick_errnos / sizeof *quick_errnos : sizeof errnos / sizeof *errnos;
    fault_number = call->number;
    fault.signal = 0;
    for (size_t i = 0; i < count; i++)
        for (fault.sticky = 0; fault.sticky <= 1; fault.sticky++) {
            fault.error = list[i];
            /* All but the first are repeated until they succeed, as they must. */
            int repeated =
                call->number == SYS_waitid || call->number == SYS_read || call->number == SYS_write;
            if (fault.sticky && (is_fatal(call) || call->number == SYS_exit_group ||
                                 (repeated && fault.error == EINTR)))
                continue;
            name_case(call);
            check_failed_call(clean, call, before);
        }
    fault.sticky = 0;
    fault.error = 0;
    if (fault.side == PARENT)
        return;
    static const int deaths[] = {SIGKILL, SIGSEGV};
    for (int i = 0; i < 2; i++) {
        fault.signal = deaths[i];
        name_case(call);
        check_killed(clean, call, before);
    }
    fault.signal = 0;
}

static void limit_fds(rlim_t number) {
    struct rlimit files = {number, LOOKED_FDS};
    if (setrlimit(RLIMIT_NOFILE, &files) < 0)
        abort();
}

/* Numbers 0 and 2 of the region are ours, 1 is free or foreign. */
static void crowd(void) {
    limit_fds(LOOKED_FDS);
    if (dup3(10, REGION, O_CLOEXEC) < 0 || dup3(10, REGION + 2, O_CLOEXEC) < 0 ||
        ((set->flags & FOREIGN) && dup3(20, REGION + 1, 0) < 0))
        abort();
    sh_state.pidfds[0] = 5;
    sh_state.pidfd_count = 1000;
}

static void disperse(void) {
    for (int fd = REGION; fd < LOOKED_FDS; fd++)
        close(fd);
    sh_forget_pidfds();
    limit_fds(MAX_FDS);
}

static struct call recorded[2][MAX_CALLS]; /* of the clean run */

static void sweep_set(const char *target, int quick) {
    static const struct expected nothing = {SAME, 0, 0, 0, 0};
    struct attributes before;
    long calls[2];
    int cases_before = cases;
    build_request(target);
    if (set->flags & CLOSED_STANDARD)
        for (int fd = 0; fd <= STDERR_FILENO; fd++)
            if (dup3(fd, 30 + fd, O_CLOEXEC) < 0 || close(fd) < 0)
                abort();
    if (set->flags & CROWDED)
        crowd();
    empty_pool();
    look(&before);
    fault = (struct fault){.nth = -1};
    snprintf(shared->current, sizeof shared->current, "%s: clean", set->name);
    struct ran clean = run(), again = run();
    memcpy(calls, shared->calls, sizeof calls);
    memcpy(recorded, shared->trace, sizeof recorded);
    cases++;
    check_attributes(&before, &clean, &nothing);
    if (clean.answer != -set->error || (set->error && clean.result.stage != set->stage) ||
        (!(set->flags & LOGS) && !is_same(&clean, &again)) ||
        (clean.answer == 0 && !(set->flags & SLEEPS) && !WIFEXITED(clean.status)))
        complain("the clean run failed", &clean);
    else if (!(set->flags & (WAITS | LOGS)) && clean.own_memory != ((set->flags & OWN_MEMORY) != 0))
        complain("the clean run shared memory or did not, against the plan", &clean);
    else if (calls[CHILD] > MAX_CALLS || calls[PARENT] > MAX_CALLS)
        complain("too many calls", &clean);
    else
        for (fault.side = PARENT; fault.side <= CHILD; fault.side++)
            for (fault.nth = 0; fault.nth < calls[fault.side]; fault.nth++) {
                const struct call *call = &recorded[fault.side][fault.nth];
                sweep_call(&clean, call, &before, quick);
            }
    print("%s\"%s\": {\"child\": %ld, \"parent\": %ld}", cases_before ? ", " : "", set->name,
          calls[CHILD], calls[PARENT]);
    if (set->flags & CLOSED_STANDARD)
        for (int fd = 0; fd <= STDERR_FILENO; fd++)
            if (dup2(30 + fd, fd) < 0 || close(30 + fd) < 0)
                abort();
    if (set->flags & CROWDED)
        disperse();
}

static void prepare(int unprivileged) {
    /* 1: no dump, not even to a pipe (core(5)). */
    struct rlimit core = {1, 1};
    if (setrlimit(RLIMIT_CORE, &core) < 0)
        abort();
    for (int fd = STDERR_FILENO + 1; fd < 4096; fd++)
        close(fd);
    limit_fds(MAX_FDS);
    static const int numbers[] = {10, 11, 12, 13, 14, 20, 21};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        int fd = memfd_create("fault", MFD_CLOEXEC);
        if (fd < 0 || dup3(fd, numbers[i], numbers[i] < 20 ? O_CLOEXEC : 0) < 0 || close(fd) < 0)
            abort();
    }
    if (unprivileged && (setgroups(0, NULL) < 0 || setgid(65534) < 0 || setuid(65534) < 0))
        abort();
    if (chdir("/") < 0 || prctl(PR_SET_DUMPABLE, 1) < 0)
        abort();
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
}

static int64_t milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void work(const char *target, const char *only, int quick, int unprivileged) {
    int64_t start = milliseconds();
    worker = getpid();
    setpgid(0, 0);
    prepare(unprivileged);
    int root = geteuid() == 0;
    at = shared->report;
    print("{\"sets\": {");
    for (set = sets; set < sets + sizeof sets / sizeof *sets; set++)
        if ((root || !(set->flags & ROOT)) && (!only || strcmp(only, set->name) == 0))
            sweep_set(target, quick);
    print("}, \"skipped\": {");
    const char *comma = "";
    for (set = sets; set < sets + sizeof sets / sizeof *sets; set++)
        if (!root && (set->flags & ROOT)) {
            print("%s\"%s\": \"needs root\"", comma, set->name);
            comma = ", ";
        }
    print("}, \"errnos\": %zu, \"cases\": %d, \"seconds\": %.2f, \"bad_count\": %d, "
          "\"bad\": [%s]}\n",
          sizeof errnos / sizeof *errnos, cases, (double)(milliseconds() - start) / 1000, bad,
          bad_list);
    shared->finished = 1;
    _exit(0);
}

static const char *watch(pid_t pid) {
    long seen = -1;
    int stalled = 0, status;
    /* Counts its own turns: on a halted machine both stand still. */
    while (stalled < STALL_MS / POLL_MS) {
        if (waitpid(pid, &status, WNOHANG) == pid)
            return shared->finished ? NULL : "the instrument was killed";
        struct timespec pause = {0, POLL_MS * 1000000L};
        nanosleep(&pause, NULL);
        stalled = seen == shared->progress ? stalled + 1 : 0;
        seen = shared->progress;
    }
    kill(-pid, SIGKILL);
    waitpid(pid, &status, 0);
    return "hangs";
}

int main(int argc, char **argv) {
    int quick = 0, unprivileged = 0;
    const char *only = NULL;
    for (int i = 2; i < argc; i++) {
        quick |= strcmp(argv[i], "quick") == 0;
        unprivileged |= strcmp(argv[i], "unprivileged") == 0;
        if (strncmp(argv[i], "only=", 5) == 0)
            only = argv[i] + 5;
    }
    shared = __real_mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                         -1, 0);
    if (argc < 2 || shared == MAP_FAILED)
        return 2;
    pid_t pid = fork();
    if (pid < 0)
        return 2;
    if (pid == 0)
        work(argv[1], only, quick, unprivileged);
    const char *wrong = watch(pid);
    if (wrong)
        printf("{\"cases\": 0, \"bad_count\": 1, \"bad\": [{\"case\": \"%s\", \"wrong\": \"%s\"}], "
               "\"known\": {}}\n",
               shared->current, wrong);
    else
        fputs(shared->report, stdout);
    return 0;
}
