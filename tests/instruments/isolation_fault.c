/* Fails, kills or delays each process of an isolated start at each of its
 * system calls, one by one, and looks at what is left.
 *
 *   isolation_fault TARGET HOLDER [quick] [first] [only=SCENARIO] [case=TEXT]
 *
 * (first: stops after the first thing that is wrong; case: cases whose names have the text)
 *
 * For each scenario one clean run records the calls of the four: parent,
 * intermediate, holder before its exec, command before its exec. Then every
 * call fails with every errno, once and (sticky) from then on; and at every
 * call of a child that child, or another one, dies of SIGKILL, or sleeps for a
 * while. There is no table of what should come of it, but these must hold:
 *
 *   - the start succeeds, or fails with an errno and a stage that this call can
 *     have; it never hangs;
 *   - a command that ran was isolated as asked, or a note says what is missing;
 *     its status is exact; the command of a failed start did not run;
 *   - no child, process of the set, fd, memory, mount, lock or membership is
 *     left, nothing about the calling thread has changed;
 *   - a stack is not used after it was given back: it is overwritten then.
 *
 * Prints one JSON object. A second process watches, and goes on after the case
 * that hung or crashed. Needs root.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "isolation_calls.h"
#include "isolation_report.h"
#include "isolation_scenarios.h"
#include "mappings.h"
#include "parent.h"
#include "spawnhelper.h"
#include "state.h"
#include "sys.h"

enum { MAX_CALLS = 256, MAX_FDS = 40, STALL_MS = 2000, POLL_MS = 20 };
/* A fault that never ended would make an endless loop of a retry that must succeed. */
enum { STICKY_LIMIT = 100, DELAY_NSEC = 3000000, MAX_RESTARTS = 40, ORPHAN_TURNS = 2000 };
enum { OTHER = 65534 }; /* a user and group that are not ours */

static const int errnos[] = {
    EPERM,  ENOENT, EINTR,  EIO,   E2BIG,   EBADF,  EAGAIN, ENOMEM, EACCES, EBUSY,      ENODEV,
    EINVAL, ENFILE, EMFILE, ESRCH, ETXTBSY, ENOSPC, EROFS,  EUSERS, ENOSYS, EOPNOTSUPP, ECHILD,
};
static const int quick_errnos[] = {ENOMEM, EINVAL, EINTR, EMFILE};

static void must(int good, const char *what) {
    if (good)
        return;
    fprintf(stderr, "isolation_fault: %s: %s\n", what, strerror(errno));
    _exit(3);
}

/* ---- the fault ---- */

struct call {
    long number, a, b, c;
};

enum kind { ERROR, STICKY, DEATH, MIDDLE_DIES, HOLDER_DIES, DELAY, KINDS };
static const char *const kind_names[] = {
    "errno", "sticky errno", "death", "intermediate dies", "holder dies", "delay"};

struct fault {
    int role;
    long nth; /* -1: none */
    enum kind kind;
    int error;
};

/* Shared, because a child with memory of its own counts too. */
static struct shared {
    volatile long progress;
    volatile int armed, finished;
    volatile int hits;
    struct call hit;     /* the first of them */
    volatile int victim; /* whom the killer is to kill */
    volatile int first;  /* the role of the first child */
    volatile int middle; /* its pid */
    long calls[ROLES];
    struct call trace[ROLES][MAX_CALLS];
    int denials[MAX_DENIED];
    long last; /* the case under way, counted over all scenarios */
    long cases, bad, kinds[KINDS], recorded[ROLES], successes;
    char current[240];
    char listed[8000], skipped[1000], bad_list[64 * 1024];
} *shared;

static int worker;
static const struct scenario *scenario;
static struct fault fault;
static long fault_number;
static struct sh_isolation *isolation; /* of the start under way */
static struct sh_set *kept;            /* IN_SET */

/* The word that await_departure() waits for is the kernel's, and the others
 * can only fail for wrong arguments. */
static int cannot_fail(long number) {
    return number == SYS_rt_sigprocmask || number == SYS_getpid || number == SYS_gettid ||
           number == SYS_futex || number == SYS_sched_yield;
}

static void nap(long nsec) {
    struct timespec pause = {0, nsec};
    sh_raw(SYS_nanosleep, (long)&pause, 0, 0, 0, 0, 0);
}

/* Nobody can kill pid 1 from inside its namespace: a process outside does it. */
static void have_killed(int pid) {
    if (pid <= 0)
        return;
    shared->victim = pid;
    sh_raw(SYS_futex, (long)&shared->victim, 1 /* FUTEX_WAKE */, 1, 0, 0, 0);
    while (shared->victim == pid)
        nap(20000);
}

static int holder_pid(void) {
    if (scenario->flags & IN_SET)
        return kept->holder;
    return isolation ? isolation->births->holder.pid : 0;
}

static void die(int role) {
    if (role == HOLDER)
        have_killed(holder_pid());
    for (;;)
        sh_raw(SYS_kill, sh_raw(SYS_getpid, 0, 0, 0, 0, 0, 0), SIGKILL, 0, 0, 0, 0);
}

static int find_denied(int role, const struct call *call) {
    for (int i = 0; i < MAX_DENIED; i++) {
        const struct denied *denied = &scenario->denied[i];
        if (denied->error == 0 || denied->role != role || denied->number != call->number ||
            (denied->a && denied->a != call->a))
            continue;
        if (denied->number == SYS_unshare && call->a == CLONE_FILES)
            continue; /* meant are the namespaces */
        int turn = shared->denials[i]++ - denied->after;
        if (turn >= 0 && (denied->times == 0 || turn < denied->times))
            return denied->error;
    }
    return 0;
}

static int is_hit(int role, long nth, long number) {
    if (role != fault.role || fault.nth < 0)
        return 0;
    return nth == fault.nth || (fault.kind == STICKY && nth > fault.nth && number == fault_number &&
                                shared->hits < STICKY_LIMIT);
}

/* ---- who calls ---- */

struct stack {
    char *top;
    size_t size;
};
static struct stack holder_stack, command_stack;
static int stacks_taken;

static int is_on(const struct stack *stack) {
    char *here = __builtin_frame_address(0);
    return stack->top && here < stack->top && here >= stack->top - stack->size;
}

static int find_role(void) {
    if (is_on(&holder_stack))
        return HOLDER;
    if (is_on(&command_stack))
        return COMMAND;
    return sh_raw(SYS_getpid, 0, 0, 0, 0, 0, 0) == worker ? PARENT : shared->first;
}

/* A wait can be interrupted, or find that somebody else has reaped or closed
 * the pidfd; the report's pipe can only be interrupted. */
static int is_possible(int role, const struct call *call, int error) {
    int reads = role == PARENT && call->number == SYS_read;
    int reports =
        role == COMMAND && call->number == SYS_write && call->c == (long)sizeof(struct sh_result);
    if (scenario->mode == SH_START_PIPE && (reads || reports))
        return error == EINTR;
    if (call->number == SYS_pidfd_send_signal)
        return error != ESRCH; /* unreaped, it is still there */
    if (call->number == SYS_kill)
        return 0; /* what else could end it? */
    if (role == PARENT && call->number == SYS_ppoll)
        return error == EINTR || error == ENOMEM; /* nobody can wait without it */
    if (call->number != SYS_waitid)
        return 1;
    return error == EINTR || error == ECHILD ||
           (call->a == P_PIDFD && (error == EBADF || error == EINVAL));
}

static int judge(const struct call *call) {
    if (!shared->armed)
        return 0;
    int role = find_role();
    if (role == PARENT && cannot_fail(call->number))
        return 0;
    long nth = shared->calls[role]++;
    if (nth < MAX_CALLS)
        shared->trace[role][nth] = *call;
    int fails = fault.kind == ERROR || fault.kind == STICKY;
    if (is_hit(role, nth, call->number) && (!fails || is_possible(role, call, fault.error))) {
        if (shared->hits++ == 0)
            shared->hit = *call;
        switch (fault.kind) {
        case ERROR:
        case STICKY:
            return fault.error;
        case DEATH:
            die(role);
            break;
        case MIDDLE_DIES:
            have_killed(shared->middle);
            break;
        case HOLDER_DIES:
            have_killed(holder_pid());
            break;
        case DELAY:
            nap(DELAY_NSEC);
            break;
        case KINDS:
            break;
        }
        return find_denied(role, call);
    }
    /* The pauses of a retry that shall not succeed would only cost time. */
    if (fault.kind == STICKY && role != PARENT && call->number == SYS_nanosleep)
        return EINTR;
    return find_denied(role, call);
}

static int decide(long number, long a, long b) {
    struct call call = {number, a, b, 0};
    return judge(&call);
}

int sh_fault(long number) { return decide(number, 0, 0); }

/* As if somebody else had reaped. A process that runs is still found. */
static long wait_for_another(long type, long id, long address, long flags, long usage) {
    siginfo_t *info = (siginfo_t *)address;
    long error = sh_raw(SYS_waitid, type, id, address, flags, usage, 0);
    return error < 0 || info->si_pid == 0 ? error : -ECHILD;
}

/* Not as the kernel would never do it: a close() still closes; a wait fails
 * because somebody else has reaped, or has closed the pidfd. */
long fault_call(long number, long a, long b, long c, long d, long e, long f) {
    struct call call = {number, a, b, c};
    int error = judge(&call);
    if (error == 0)
        return sh_raw(number, a, b, c, d, e, f);
    if (number == SYS_close)
        sh_raw(number, a, b, c, d, e, f);
    else if (number == SYS_waitid && error == ECHILD)
        return wait_for_another(a, b, c, d, e);
    else if (number == SYS_waitid && error != EINTR)
        sh_raw(SYS_close, b, 0, 0, 0, 0, 0);
    return -error;
}

/* ---- libc and the library's own functions; linked with --wrap ---- */

static int allocated;

void *__real_calloc(size_t count, size_t size);
void *__real_malloc(size_t size);
void __real_free(void *memory);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_malloc(size_t size);
void __wrap_free(void *memory);

void *__wrap_calloc(size_t count, size_t size) {
    void *memory = decide(CALLOC, 0, 0) ? NULL : __real_calloc(count, size);
    allocated += memory != NULL;
    return memory;
}

void *__wrap_malloc(size_t size) {
    void *memory = decide(MALLOC, 0, 0) ? NULL : __real_malloc(size);
    allocated += memory != NULL;
    return memory;
}

void __wrap_free(void *memory) {
    allocated -= memory != NULL;
    __real_free(memory);
}

struct sh_isolation *__real_sh_isolation_open(const struct sh_request *request,
                                              struct sh_process *process, struct sh_set *made,
                                              int forks);
struct sh_isolation *__wrap_sh_isolation_open(const struct sh_request *request,
                                              struct sh_process *process, struct sh_set *made,
                                              int forks);
void __real_sh_isolation_close(struct sh_isolation *closed, struct sh_process *process);
void __wrap_sh_isolation_close(struct sh_isolation *closed, struct sh_process *process);
char *__real_sh_take_stack(uint64_t *size);
char *__wrap_sh_take_stack(uint64_t *size);
void __real_sh_return_stack(char *top);
void __wrap_sh_return_stack(char *top);
void __real_sh_release(struct sh_orders *orders);
void __wrap_sh_release(struct sh_orders *orders);
_Noreturn void __real_sh_child(void *orders);
_Noreturn void __wrap_sh_child(void *orders);
_Noreturn void __real_sh_intermediate(void *orders);
_Noreturn void __wrap_sh_intermediate(void *orders);

struct sh_isolation *__wrap_sh_isolation_open(const struct sh_request *request,
                                              struct sh_process *process, struct sh_set *made,
                                              int forks) {
    stacks_taken = 0;
    isolation = __real_sh_isolation_open(request, process, made, forks);
    return isolation;
}

void __wrap_sh_isolation_close(struct sh_isolation *closed, struct sh_process *process) {
    isolation = NULL;
    __real_sh_isolation_close(closed, process);
}

/* The holder's first, then the command's (take_stacks()). */
char *__wrap_sh_take_stack(uint64_t *size) {
    char *top = __real_sh_take_stack(size);
    *(stacks_taken++ == 0 ? &holder_stack : &command_stack) = (struct stack){top, *size};
    return top;
}

/* Whoever still runs there crashes, and his command dies with him. */
static void poison(char *top, size_t size) { memset(top - size, 0xcc, size); }

void __wrap_sh_return_stack(char *top) {
    struct stack *stack = top == holder_stack.top ? &holder_stack : &command_stack;
    if (top == stack->top) {
        poison(top, stack->size);
        stack->top = NULL;
    }
    __real_sh_return_stack(top);
}

void __wrap_sh_release(struct sh_orders *orders) {
    size_t size;
    char *stack = sh_stack(orders, &size);
    poison(stack + size, size);
    __real_sh_release(orders);
}

void __wrap_sh_child(void *orders) {
    shared->first = COMMAND;
    __real_sh_child(orders);
}

void __wrap_sh_intermediate(void *orders) {
    shared->first = MIDDLE;
    shared->middle = (int)sh_raw(SYS_getpid, 0, 0, 0, 0, 0, 0);
    __real_sh_intermediate(orders);
}

/* ---- what a start may not change ---- */

static const char *const namespace_names[] = {
#define NAME(name) name,
    REPORT_NAMESPACES(NAME)
#undef NAME
};
static const uint32_t namespace_flags[] = {SH_NEWNET, SH_NEWUTS, SH_NEWIPC,
                                           SH_NEWNS,  SH_NEWPID, SH_NEWUSER};
static const int namespace_places[] = {SH_NAMESPACE_NET, SH_NAMESPACE_UTS, SH_NAMESPACE_IPC,
                                       SH_NAMESPACE_NS,  SH_NAMESPACE_PID, SH_NAMESPACE_USER};

static char cgroup[PATH_MAX];  /* our directory, or empty: none */
static const char *cgroup_end; /* its name */

struct attributes {
    struct {
        int flags;
        dev_t device;
        ino_t inode;
    } fds[MAX_FDS];
    uint64_t mask;
    int dumpable;
    mode_t umask;
    uid_t uid;
    gid_t gid;
    ino_t cwd, root;
    ino_t namespaces[REPORT_COUNT], children;
    uint64_t mounts; /* a digest of mountinfo */
    uint64_t actions;
    int members; /* bytes of our cgroup's cgroup.procs */
    int leftover_mappings, allocated, pidfds, reports;
    uint32_t locks, ids;
    void *orphans;
    char host[65];
};

static uint64_t mix(uint64_t digest, const void *bytes, size_t length) {
    for (const unsigned char *at = bytes; length > 0; length--)
        digest = (digest ^ *at++) * 1099511628211ULL;
    return digest;
}

static ino_t inode_of(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 ? status.st_ino : 0;
}

static int read_file(const char *path, char *bytes, int size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC), used = 0;
    ssize_t length;
    if (fd < 0)
        return -1;
    while (used < size && (length = read(fd, bytes + used, (size_t)(size - used))) > 0)
        used += (int)length;
    close(fd);
    return used;
}

static uint64_t digest_mounts(void) {
    static char bytes[65536];
    int length = read_file("/proc/self/mountinfo", bytes, sizeof bytes);
    return mix(14695981039346656037ULL, bytes, (size_t)length);
}

static uint64_t digest_actions(void) {
    uint64_t digest = 0;
    for (int number = 1; number <= SH_SIGNALS; number++) {
        struct sh_sigaction action = {0};
        sh_raw(SYS_rt_sigaction, number, 0, (long)&action, sizeof action.mask, 0, 0);
        digest = mix(digest, &action.handler, sizeof action.handler);
    }
    return digest;
}

static int count_members(void) {
    char path[PATH_MAX + 32], bytes[64];
    if (!*cgroup)
        return 0;
    snprintf(path, sizeof path, "%s/cgroup.procs", cgroup);
    return read_file(path, bytes, sizeof bytes);
}

static void look_at_fds(struct attributes *seen) {
    for (int fd = 0; fd < MAX_FDS; fd++) {
        struct stat status;
        seen->fds[fd].flags = fcntl(fd, F_GETFD);
        if (seen->fds[fd].flags < 0 || fstat(fd, &status) < 0)
            continue;
        seen->fds[fd].device = status.st_dev;
        seen->fds[fd].inode = status.st_ino;
    }
}

static void look_at_state(struct attributes *seen) {
    seen->leftover_mappings = count_mappings();
    seen->allocated = allocated;
    seen->pidfds = sh_state.pidfd_count;
    for (int i = 0; i < SH_REPORTS; i++)
        seen->reports += sh_state.reports[i].fd != 0;
    seen->locks = sh_state.id_lock | sh_state.report_lock | sh_state.dropped_lock;
    seen->ids = sh_state.id_sequence & 1;
    seen->orphans = sh_state.orphans;
    if (!kept)
        return;
    seen->locks |= kept->lock;
    seen->ids += (uint32_t)(kept->commands + kept->starts) * 2 + (uint32_t)(kept->users - 1) * 64;
}

static void look(struct attributes *seen) {
    char path[64];
    memset(seen, 0, sizeof *seen);
    look_at_fds(seen);
    look_at_state(seen);
    sh_raw(SYS_rt_sigprocmask, SIG_BLOCK, 0, (long)&seen->mask, sizeof seen->mask, 0, 0);
    seen->dumpable = prctl(PR_GET_DUMPABLE);
    seen->umask = umask(0);
    umask(seen->umask);
    seen->uid = geteuid();
    seen->gid = getegid();
    seen->cwd = inode_of(".");
    seen->root = inode_of("/");
    for (int i = 0; i < REPORT_COUNT; i++) {
        snprintf(path, sizeof path, "/proc/thread-self/ns/%s", namespace_names[i]);
        seen->namespaces[i] = inode_of(path);
    }
    seen->children = inode_of("/proc/thread-self/ns/pid_for_children");
    seen->mounts = digest_mounts();
    seen->actions = digest_actions();
    seen->members = count_members();
    gethostname(seen->host, sizeof seen->host - 1);
}

/* ---- one start ---- */

static const char *target, *holder;
static char own_name[16];
static char holder_image[65536];
static uint32_t holder_size;
static struct report *report; /* in the file that the command writes */
static struct attributes before;

static const struct sh_fdpair standard_map[] = {{0, 0}, {1, 1}, {2, 2}};
static const struct sh_fdpair closing_map[] = {
    {3, 12}, {10, 11}, {11, 10}, {13, 13}, {REPORT_FD, REPORT_FD}};
static const uint32_t groups[] = {100, OTHER};

static struct sh_request make_request(struct sh_set *set) {
    int closes = (scenario->request & SH_CLOSE_FDS) != 0;
    uint32_t id = scenario->flags & FOREIGN_USER ? OTHER : 0;
    static char argv[PATH_MAX + 16];
    int length = snprintf(argv, sizeof argv, "%s", target);
    memcpy(argv + length + 1, "orphan", 7);
    return (struct sh_request){
        .argv = argv,
        .argc = scenario->flags & LEAVES ? 2 : 1,
        .env = "A=1",
        .envc = 1,
        .file = scenario->file ? scenario->file : target,
        .cwd = scenario->cwd,
        .fds = closes ? closing_map : standard_map,
        .nfds = closes ? sizeof closing_map / sizeof *closing_map : 3,
        .groups = groups,
        .ngroups = 2,
        .uid = id,
        .gid = id,
        .umask = 027,
        .flags = scenario->request | (closes ? 0 : SH_STANDARD_FDS),
        .namespaces = set ? 0 : scenario->namespaces,
        .set = set,
        .cgroup = scenario->flags & IN_CGROUP ? cgroup : NULL,
    };
}

struct ran {
    int answer;
    struct sh_result result;
    uint32_t namespaces; /* of the set that was made */
    int state;           /* of the handle, after the wait */
    int status;
    int waits; /* -1: the wait did not end */
    int given; /* what sh_give() said */
    int left;  /* children that nobody reaped */
    struct report report;
    struct attributes after;
    ino_t set_inodes[REPORT_COUNT];
};

static void arm(int armed) { shared->armed = armed; }

static void look_at_set(struct ran *ran, const struct sh_set *set) {
    for (int i = 0; i < REPORT_COUNT; i++) {
        struct stat status;
        int fd = set->fds[namespace_places[i]];
        if (fd >= 0 && fd != set->holder_pidfd && fstat(fd, &status) == 0)
            ran->set_inodes[i] = status.st_ino;
    }
}

/* As later calls do. */
static void reap_orphans(void) {
    for (int i = 0; i < ORPHAN_TURNS && sh_state.orphans; i++) {
        sh_reap_orphans();
        nap(1000000);
    }
}

/* The caller of returnpid waits for the pid that he was given. The holder ends
 * by itself, and a later call reaps it. */
static void reap_given(struct ran *ran, struct sh_process *process) {
    int pid = process->pid;
    ran->given = sh_give(process);
    if (ran->given < 0) {
        ran->answer = ran->given;
        ran->result = process->result;
        return;
    }
    if (waitpid(pid, &ran->status, 0) != pid)
        ran->waits = -1;
    ran->state = SH_ENDED;
    reap_orphans();
}

static void end(struct ran *ran, struct sh_process *process) {
    if (scenario->flags & GIVES) {
        reap_given(ran, process);
        return;
    }
    while (sh_wait(process, -1) != 1)
        if (++ran->waits > 2 * STICKY_LIMIT) {
            ran->waits = -1;
            break;
        }
    ran->state = process->state;
    ran->status = process->status;
}

static void run_command(struct ran *ran, struct sh_set *set, int armed) {
    struct sh_process process = {0};
    struct sh_request request = make_request(set);
    memset(report, 0, sizeof *report);
    arm(armed);
    ran->answer = sh_start(&request, &process);
    ran->result = process.result;
    if (scenario->flags & CLOSES && set)
        while (sh_set_close(set) != 1)
            ;
    if (ran->answer == 0)
        end(ran, &process);
    arm(0);
    sh_drop(&process);
    ran->report = *report;
}

static void close_set(struct sh_set *set, int armed) {
    arm(armed);
    while (sh_set_close(set) != 1)
        ;
    arm(0);
    sh_set_drop(set);
    reap_orphans(); /* after a command that was given */
}

static void make_set(struct ran *ran) {
    arm(1);
    struct sh_set *set = sh_set_new();
    if (!set) {
        arm(0);
        ran->answer = -ENOMEM;
        ran->result.error = ENOMEM;
        return;
    }
    uint32_t flags = scenario->request & (SH_BEST_EFFORT | SH_USER_ROOT);
    int answer = sh_set_open(set, scenario->namespaces, flags);
    arm(0);
    if (answer == 0) {
        look_at_set(ran, set);
        run_command(ran, set, 0);
        ran->namespaces = set->namespaces;
        if (ran->answer < 0 && fault.kind != HOLDER_DIES)
            ran->waits = -1; /* it must be usable */
    }
    ran->answer = answer;
    ran->result = set->result;
    close_set(set, 1);
}

static int has_children(void) {
    siginfo_t info = {0};
    return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) == 0;
}

static char left_behind[64]; /* the first of them: number, name and state */

static void describe(int pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int length = read_file(path, left_behind, 40);
    left_behind[length < 0 ? 0 : length] = 0;
}

/* Kills and reaps whatever is left, so that the next case starts clean. */
static int bury_all(int spared) {
    char path[64], bytes[4096];
    int left = 0, some = !spared && has_children();
    snprintf(path, sizeof path, "/proc/self/task/%d/children", worker);
    for (int turn = 0; turn < 100 && has_children(); turn++) {
        int length = read_file(path, bytes, sizeof bytes - 1), others = 0;
        bytes[length < 0 ? 0 : length] = 0;
        for (char *at = bytes, *next;; at = next) {
            int pid = (int)strtol(at, &next, 10);
            if (next == at)
                break;
            if (pid == spared)
                continue;
            others++;
            if (turn == 0 && left++ == 0)
                describe(pid);
            kill(pid, SIGKILL);
        }
        if (others == 0)
            break;
        while (waitpid(-1, NULL, __WALL | WNOHANG) > 0) /* the spared one lives */
            ;
        nap(turn * 100000);
    }
    return left ? left : some;
}

static void open_kept(void) {
    shared->armed = 0;
    if (scenario->mode == SH_START_PIPE) /* in which none can be made */
        sh_state.start_mode = SH_START_CLONE;
    kept = sh_set_new();
    must(kept && sh_set_open(kept, scenario->namespaces, scenario->request & SH_USER_ROOT) == 0,
         "the set");
    sh_state.start_mode = scenario->mode;
}

static void drop_kept(void) {
    if (kept)
        close_set(kept, 0);
    kept = NULL;
}

/* The set of an earlier run serves again, unless something happened to it. */
static void renew_kept(void) {
    if (!(scenario->flags & IN_SET) || (kept && !kept->closed && !sh_set_is_dead(kept)))
        return;
    drop_kept();
    open_kept();
}

/* So that one leak is not seen again and again. */
static void close_leaked(const struct attributes *after) {
    for (int fd = 0; fd < MAX_FDS; fd++)
        if (after->fds[fd].flags >= 0 && before.fds[fd].flags < 0)
            close(fd);
}

/* Its death takes a moment, and must not be the next case's. */
static void await_end_of_kept(void) {
    for (int i = 0; i < 1000 && !sh_set_is_dead(kept); i++)
        nap(1000000);
}

static void go_home(void) {
    int self = (int)sh_raw(SYS_pidfd_open, worker, 0, 0, 0, 0, 0);
    sh_raw(SYS_setns, self, SH_NEWPID, 0, 0, 0, 0);
    close(self);
}

static struct ran run(void) {
    struct ran ran = {0};
    sh_avoid(scenario->avoid);
    sh_state.start_mode = scenario->mode;
    if (scenario->flags & COLD)
        empty_pool();
    shared->progress++;
    memset(shared->denials, 0, sizeof shared->denials);
    shared->middle = 0;
    holder_stack.top = command_stack.top = NULL;
    if (scenario->flags & NO_STANDARD)
        for (int fd = 0; fd <= STDERR_FILENO; fd++)
            close(fd);
    look(&before);
    renew_kept();
    if (kept)
        look_at_set(&ran, kept);
    if (!(scenario->flags & CLOSES))
        look(&before);
    shared->hits = 0;
    memset(shared->calls, 0, sizeof shared->calls);
    if (scenario->flags & MAKES_SET)
        make_set(&ran);
    else
        run_command(&ran, kept, 1);
    if (kept && kept->closed)
        drop_kept();
    ran.left = bury_all(kept ? kept->holder : 0);
    look(&ran.after);
    if (ran.after.children != ran.after.namespaces[REPORT_PID])
        go_home();
    close_leaked(&ran.after);
    if (kept && fault.kind == HOLDER_DIES && shared->hits)
        await_end_of_kept();
    if (scenario->flags & NO_STANDARD)
        for (int fd = 0; fd <= STDERR_FILENO; fd++)
            if (dup2(30 + fd, fd) < 0)
                abort();
    return ran;
}

/* ---- the verdict ---- */

static void add_text(char *text, size_t size, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void add_text(char *text, size_t size, const char *format, ...) {
    size_t used = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, size - used, format, arguments);
    va_end(arguments);
}

enum { ENTRY = 500 };

static void complain(const char *what, const struct ran *ran) {
    shared->bad++;
    if (strlen(shared->bad_list) > sizeof shared->bad_list - ENTRY)
        return;
    add_text(shared->bad_list, sizeof shared->bad_list,
             "%s{\"case\": \"%s\", \"wrong\": \"%s\", \"answer\": %d, \"stage\": \"%s\", "
             "\"errno\": %d, \"detail\": %d, \"status\": %d, \"notes\": %u, \"ran\": %u}",
             *shared->bad_list ? ",\n" : "", shared->current, what, ran ? ran->answer : 0,
             ran ? sh_stage_name(ran->result.stage) : "?", ran ? ran->result.error : 0,
             ran ? ran->result.detail : 0, ran ? ran->status : 0, ran ? ran->result.nnotes : 0,
             ran ? ran->report.valid : 0);
}

/* What the instrument itself has broken. */
struct excuse {
    int dumpable;
};

static struct excuse find_excuse(const struct call *call) {
    struct excuse excuse = {0};
    if (fault.nth < 0 || fault.role != PARENT || (fault.kind != ERROR && fault.kind != STICKY))
        return excuse;
    excuse.dumpable = call->number == SYS_prctl && call->a == PR_SET_DUMPABLE;
    return excuse;
}

static void check_attributes(const struct ran *ran, struct excuse excuse) {
    const struct attributes *after = &ran->after;
    struct attributes was = before;
    if (ran->left != 0) {
        char text[120];
        snprintf(text, sizeof text, "children left: %s", left_behind);
        complain(text, ran);
    }
    if (memcmp(was.fds, after->fds, sizeof was.fds) != 0)
        complain("fds changed", ran);
    if (was.mask != after->mask)
        complain("signal mask changed", ran);
    sh_raw(SYS_rt_sigprocmask, SIG_SETMASK, (long)&was.mask, 0, sizeof was.mask, 0, 0);
    if (was.actions != after->actions)
        complain("dispositions changed", ran);
    if (was.umask != after->umask || was.uid != after->uid || was.gid != after->gid ||
        was.cwd != after->cwd || was.root != after->root)
        complain("umask, ids, root or cwd changed", ran);
    if (memcmp(was.namespaces, after->namespaces, sizeof was.namespaces) != 0)
        complain("our namespaces changed", ran);
    if (after->children != after->namespaces[REPORT_PID])
        complain("the thread is not home", ran);
    if (was.mounts != after->mounts)
        complain("our mounts changed", ran);
    if (strcmp(was.host, after->host) != 0)
        complain("our host name changed", ran);
    if (after->members > 0)
        complain("processes left in the cgroup", ran);
    if (after->leftover_mappings != 0)
        complain("mappings leaked", ran);
    if (after->allocated != was.allocated)
        complain("memory leaked", ran);
    if (after->locks != 0)
        complain("a lock is held", ran);
    if (after->ids != 0)
        complain("an id change or a use of the set does not end", ran);
    if (after->pidfds != was.pidfds)
        complain("pidfds miscounted", ran);
    if (after->reports != 0)
        complain("a report pipe is still noted", ran);
    if (after->orphans)
        complain("a holder is still to be reaped", ran);
    if (was.dumpable != after->dumpable) {
        if (!excuse.dumpable)
            complain("dumpable changed", ran);
        prctl(PR_SET_DUMPABLE, was.dumpable);
    }
}

static int has_note(const struct ran *ran, int stage, uint32_t detail) {
    for (uint32_t i = 0; i < ran->result.nnotes; i++)
        if (ran->result.notes[i].stage == stage &&
            (detail == 0 || ran->result.notes[i].detail == (int32_t)detail))
            return 1;
    return 0;
}

/* What is missing has its note, and what has a note is missing. */
static void check_piece(const struct ran *ran, int is_there, int stage, uint32_t detail,
                        const char *what) {
    char text[120];
    int noted = has_note(ran, stage, detail);
    if (is_there != noted || (noted && stage == SH_STAGE_LOOPBACK)) /* that may fail in part */
        return;
    snprintf(text, sizeof text, "%s: %s", what,
             noted ? "there, in spite of its note" : "missing, without a note");
    complain(text, ran);
}

static int has_own(const struct ran *ran, int i) {
    return ran->report.inodes[i] != before.namespaces[i];
}

static void check_namespaces(const struct ran *ran) {
    for (int i = 0; i < REPORT_COUNT; i++) {
        if (!(scenario->namespaces & namespace_flags[i])) {
            if (has_own(ran, i))
                complain("a namespace that nobody asked for", ran);
            continue;
        }
        check_piece(ran, has_own(ran, i), SH_STAGE_NAMESPACES, namespace_flags[i],
                    namespace_names[i]);
        if (ran->set_inodes[i] && ran->report.inodes[i] != ran->set_inodes[i])
            complain("the command is in another namespace than the set", ran);
    }
}

static void check_isolation(const struct ran *ran, const struct ran *clean) {
    const struct report *seen = &ran->report;
    check_namespaces(ran);
    if (has_own(ran, REPORT_NET))
        check_piece(ran, seen->loopback_up && seen->has_address, SH_STAGE_LOOPBACK, 0, "lo");
    if (has_own(ran, REPORT_UTS))
        check_piece(ran, strcmp(seen->host, "localhost") == 0, SH_STAGE_HOSTNAME, 0, "host name");
    if (has_own(ran, REPORT_MNT))
        check_piece(ran, !seen->root_propagates, SH_STAGE_PROPAGATION, 0, "propagation");
    if (has_own(ran, REPORT_PID)) {
        if (!has_own(ran, REPORT_MNT) || !seen->proc_is_own)
            complain("a pid namespace with a foreign /proc", ran);
        if (strcmp(seen->first, own_name) == 0)
            complain("pid 1 still has our memory while the command runs", ran);
        if (seen->parent != 0)
            complain("the command has a parent in its namespace", ran);
    }
    if (scenario->request & SH_NEW_SESSION && seen->session != seen->pid)
        complain("no session of its own", ran);
    if (scenario->flags & IN_CGROUP) {
        const char *end = strrchr(seen->cgroup, '/');
        check_piece(ran, end && strcmp(end + 1, cgroup_end) == 0, SH_STAGE_CGROUP, 0, "cgroup");
    }
    const struct report *wanted = &clean->report;
    if (!wanted->valid)
        return; /* of a set that is closed under it */
    if (seen->root != wanted->root || seen->cwd != wanted->cwd || seen->fds != wanted->fds ||
        seen->mask != wanted->mask || seen->caught != wanted->caught || seen->uid != wanted->uid ||
        seen->gid != wanted->gid || seen->groups != wanted->groups || seen->umask != wanted->umask)
        complain("the command has inherited something else", ran);
}

static int is_status(const struct ran *ran, int status) { return ran->status == status; }

/* A command that was killed, or whose namespace was, has SIGKILL as its status. */
static int may_be_killed(void) {
    return fault.kind == DEATH || fault.kind == HOLDER_DIES || scenario->flags & CLOSES;
}

/* Then the kernel tells somebody else how it ended, and us nothing. */
static int is_lost(const struct ran *ran, const struct call *call) {
    return ran->state == SH_LOST && call->number == SYS_waitid;
}

static void check_success(const struct ran *ran, const struct call *call) {
    if (scenario->error && !is_status(ran, SIGKILL)) {
        complain("success, although there is nothing to execute", ran);
        return;
    }
    if (ran->waits < 0) {
        complain("the end could not be waited for", ran);
        return;
    }
    if (scenario->flags & MAKES_SET) {
        if (!ran->report.valid && fault.kind != HOLDER_DIES)
            complain("the set is of no use", ran);
        return;
    }
    if (ran->state != SH_ENDED && !is_lost(ran, call))
        complain("the state is wrong", ran);
    if (ran->state == SH_ENDED && !is_status(ran, REPORT_STATUS << 8) &&
        !(may_be_killed() && is_status(ran, SIGKILL)))
        complain("the status is wrong", ran);
    if (!ran->report.valid && !is_status(ran, SIGKILL))
        complain("success without a command", ran);
}

static int is_plausible_error(const struct ran *ran, const struct call *call) {
    int error = ran->result.error;
    if (fault.kind == ERROR || fault.kind == STICKY) {
        if (error == fault.error || (call->number < 0 && error == ENOMEM) ||
            ((call->number == SYS_mmap || call->number == SYS_mprotect) && error == ENOMEM) ||
            (call->number == SYS_fcntl && error == EBADF))
            return 1;
    } else if (fault.kind != DELAY && error == ECHILD && ran->result.detail == SIGKILL) {
        return 1;
    }
    if (fault.role == HOLDER || fault.kind == HOLDER_DIES)
        if (error == ESRCH && ran->result.stage == SH_STAGE_NAMESPACES)
            return 1; /* the set has ended */
    if (error == EMFILE && (call->number == SYS_pidfd_open || call->number == SYS_fcntl))
        return 1; /* a set cannot do without a pidfd; that is the usual reason */
    if (error == ENOSYS && scenario->mode == SH_START_PIPE)
        return 1; /* an intermediate would be needed */
    if (error == EPERM && ran->result.stage == SH_STAGE_PROC &&
        has_note(ran, SH_STAGE_PROPAGATION, 0))
        return 1; /* not mounted where it could propagate */
    for (int i = 0; i < MAX_DENIED; i++)
        if (scenario->denied[i].error == error && error)
            return 1;
    return 0;
}

static void check_failure(const struct ran *ran, const struct ran *clean, const struct call *call) {
    const struct known *of = find_known(call->number);
    const struct sh_result *result = &ran->result;
    if (ran->answer != -result->error || result->error <= 0 || result->error > 200 ||
        result->stage < 0 || result->stage >= SH_STAGE_COUNT)
        complain("the answer is not the result", ran);
    if (scenario->error && result->error == scenario->error && result->stage == scenario->stage)
        return;
    if (fault.kind == DELAY || (clean && clean->answer == 0 && fault.nth < 0)) {
        complain("fails without a fault", ran);
        return;
    }
    if (!is_plausible_error(ran, call))
        complain("an errno that nobody has caused", ran);
    unsigned stages = fault.role == PARENT ? of->parent : of->child;
    if (fault.kind != ERROR && fault.kind != STICKY)
        stages = ANY;
    if (!(stages & 1U << result->stage))
        complain(stages ? "an implausible stage" : "this call should fail no start", ran);
    /* Killed too late: it ran for a moment. */
    if (ran->report.valid && (fault.kind == ERROR || fault.kind == STICKY) && fault.role != HOLDER)
        complain("the command ran although the start failed", ran);
}

static void check_hits(const struct ran *ran, const struct call *call) {
    /* A retry finds what the first holder had time for; one that is killed may not come so far. */
    int may_miss = call->number == SYS_ppoll || call->number == SYS_waitid ||
                   scenario->denied->error || scenario->flags & GIVES ||
                   (fault.role == HOLDER && ran->answer < 0);
    if (shared->hits == 0 && !may_miss)
        complain("the fault did not happen", ran);
    if (find_known(call->number)->number == 0 && call->number != 0)
        complain("no table knows this call", ran);
}

static struct ran clean;

static void check_case(const struct call *call) {
    struct ran ran = run();
    if (shared->hits) /* in a retry, not always the call of the clean run */
        call = &shared->hit;
    shared->cases++;
    shared->kinds[fault.kind]++;
    shared->successes += ran.answer == 0;
    check_attributes(&ran, find_excuse(call));
    check_hits(&ran, call);
    if (ran.answer == 0)
        check_success(&ran, call);
    else
        check_failure(&ran, &clean, call);
    int has_notes = ran.answer == 0 || !(scenario->request & SH_BEST_EFFORT);
    if (ran.report.valid && has_notes)
        check_isolation(&ran, &clean);
}

/* ---- the sweep ---- */

static const char *looked_for;
static int stops;   /* at the first complaint */
static long resume; /* cases up to this one were done by a worker that is gone */
static long numbered;

static void do_case(const struct call *call) {
    if (++numbered <= resume || (stops && shared->bad))
        return;
    snprintf(shared->current, sizeof shared->current, "%s: %s call %ld, %s(%ld, %ld): %s %d",
             scenario->name, role_names[fault.role], fault.nth, find_known(call->number)->name,
             call->a, call->b, kind_names[fault.kind], fault.error);
    if (looked_for && !strstr(shared->current, looked_for))
        return;
    shared->last = numbered;
    check_case(call);
}

static void do_error(const struct call *call, enum kind kind, int error) {
    if (cannot_fail(call->number) || !is_possible(fault.role, call, error))
        return;
    fault.kind = kind;
    fault.error = error;
    do_case(call);
    fault.error = 0;
}

static void do_kind(const struct call *call, enum kind kind, int applies) {
    fault.kind = kind;
    if (applies)
        do_case(call);
}

/* What a filter, a limit or an old kernel answers every time. */
static int is_lasting(int error) {
    return error == EPERM || error == ENOSYS || error == EINVAL || error == ENOMEM ||
           error == EMFILE || error == EINTR;
}

static void sweep_errors(const struct call *call) {
    size_t count = call->number < 0 ? 1 : sizeof errnos / sizeof *errnos;
    for (size_t i = 0; i < count; i++) {
        do_error(call, ERROR, errnos[i]);
        if (is_lasting(errnos[i]))
            do_error(call, STICKY, errnos[i]);
    }
}

/* Each call has another share of what the full sweep does. */
static void sweep_some_errors(const struct call *call) {
    size_t count = sizeof quick_errnos / sizeof *quick_errnos;
    do_error(call, ERROR, quick_errnos[(size_t)fault.nth % count]);
    do_error(call, fault.nth % 2 ? STICKY : ERROR, EPERM);
    do_error(call, ERROR, call->number == SYS_waitid ? ECHILD : ENOSYS);
}

static void sweep_call(const struct call *call, const long *calls, int quick) {
    int is_child = fault.role != PARENT;
    int has_middle = calls[MIDDLE] && (fault.role == HOLDER || fault.role == COMMAND);
    int has_holder =
        (calls[HOLDER] || scenario->flags & IN_SET) && is_child && fault.role != HOLDER;
    long turn = fault.nth % 3;
    fault_number = call->number;
    if (quick)
        sweep_some_errors(call);
    else
        sweep_errors(call);
    do_kind(call, DEATH, is_child);
    do_kind(call, MIDDLE_DIES, has_middle && (!quick || turn == 0));
    do_kind(call, HOLDER_DIES, has_holder && (!quick || turn == 1));
    do_kind(call, DELAY, is_child && (!quick || turn == 2 || fault.role != COMMAND));
}

/* clone(2) has the child reset its signals one by one. */
static int is_monotonous(const struct call *recorded, long nth) {
    for (long i = 1; i <= 4; i++)
        if (nth < i || recorded[nth - i].number != recorded[nth].number)
            return 0;
    return 1;
}

static void check_clean(const struct ran *ran, const struct ran *again) {
    static const struct call none = {0};
    if (ran->answer != -scenario->error ||
        (scenario->error && ran->result.stage != scenario->stage))
        complain("the clean run has another outcome", ran);
    check_attributes(ran, (struct excuse){0});
    if (ran->answer == 0)
        check_success(ran, &none);
    if (ran->report.valid)
        check_isolation(ran, again);
    for (int i = 0; i < REPORT_COUNT; i++)
        if (scenario->missing & namespace_flags[i] && has_own(ran, i))
            complain("the clean run is too much isolated", ran);
    if (!(scenario->request & SH_BEST_EFFORT) && ran->result.nnotes)
        complain("notes, though everything is required", ran);
    if (ran->result.nnotes != (uint32_t)__builtin_popcount(scenario->missing))
        complain("the clean run has other notes", ran);
}

static void sweep_scenario(int quick) {
    static struct call recorded[ROLES][MAX_CALLS]; /* of the clean run */
    long calls[ROLES];
    sh_set_holder(scenario->flags & NO_HOLDER_FILE ? "/nonexistent" : holder, holder_image,
                  holder_size);
    empty_pool();
    fault = (struct fault){.nth = -1, .kind = ERROR};
    snprintf(shared->current, sizeof shared->current, "%s: clean", scenario->name);
    clean = run();
    if (numbered >= resume)
        check_attributes(&clean, (struct excuse){0});
    struct ran again = run();
    memcpy(calls, shared->calls, sizeof calls);
    memcpy(recorded, shared->trace, sizeof recorded);
    if (++numbered > resume) {
        shared->last = numbered;
        shared->cases++;
        check_clean(&again, &clean);
        add_text(shared->listed, sizeof shared->listed,
                 "%s\"%s\": {\"parent\": %ld, \"intermediate\": %ld, \"holder\": %ld, "
                 "\"command\": %ld}",
                 *shared->listed ? ", " : "", scenario->name, calls[PARENT], calls[MIDDLE],
                 calls[HOLDER], calls[COMMAND]);
    }
    for (int role = 0; role < ROLES; role++)
        if (calls[role] > MAX_CALLS)
            complain("too many calls", &again);
    for (fault.role = 0; fault.role < ROLES; fault.role++)
        for (fault.nth = 0; fault.nth < calls[fault.role]; fault.nth++) {
            struct call call = recorded[fault.role][fault.nth];
            if (is_monotonous(recorded[fault.role], fault.nth) && (quick || fault.nth % 8))
                continue;
            shared->recorded[fault.role]++;
            sweep_call(&call, calls, quick);
        }
    fault = (struct fault){.nth = -1, .kind = ERROR};
    drop_kept();
    if (has_children())
        complain("a set leaves children when it is closed", &again);
}

/* ---- the worker, the killer and the one who watches ---- */

static void open_fds(void) {
    static const int numbers[] = {10, 11, 12, 13, 14, 21};
    struct rlimit files = {MAX_FDS, MAX_FDS}, core = {1, 1}; /* 1: no dump, see core(5) */
    for (int fd = STDERR_FILENO + 1; fd < 4096; fd++)
        close(fd);
    must(setrlimit(RLIMIT_NOFILE, &files) == 0 && setrlimit(RLIMIT_CORE, &core) == 0, "setrlimit");
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        int fd = memfd_create("fault", MFD_CLOEXEC);
        must(dup3(fd, numbers[i], numbers[i] < 20 ? O_CLOEXEC : 0) >= 0, "dup3");
        close(fd);
    }
    int fd = memfd_create("report", MFD_CLOEXEC);
    must(dup2(fd, REPORT_FD) == REPORT_FD && ftruncate(fd, sizeof *report) == 0, "memfd");
    close(fd);
    report = __real_mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED, REPORT_FD, 0);
    must(report != MAP_FAILED, "mmap");
    for (fd = 0; fd <= STDERR_FILENO; fd++)
        must(dup3(fd, 30 + fd, O_CLOEXEC) >= 0, "dup3");
}

/* Mounts of our own whose changes would be seen, and reach nobody else; a host
 * name that is not the one inside. */
static void seclude(void) {
    must(unshare(CLONE_NEWNS | CLONE_NEWUTS) == 0, "unshare");
    must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "mount");
    must(mount(NULL, "/", NULL, MS_REC | MS_SHARED, NULL) == 0, "mount");
    must(sethostname("outside", 7) == 0, "sethostname");
}

static void find_cgroup(void) {
    static char mounts[65536];
    int length = read_file("/proc/self/mounts", mounts, sizeof mounts - 1);
    mounts[length < 0 ? 0 : length] = 0;
    for (char *line = strtok(mounts, "\n"); line && !*cgroup; line = strtok(NULL, "\n")) {
        char place[PATH_MAX / 2], type[64];
        if (sscanf(line, "%*s %2047s %63s", place, type) == 2 && strcmp(type, "cgroup2") == 0)
            snprintf(cgroup, sizeof cgroup, "%s/isolation-fault-%d", place, (int)getpid());
    }
    if (*cgroup && mkdir(cgroup, 0755) < 0)
        *cgroup = 0;
    cgroup_end = *cgroup ? strrchr(cgroup, '/') + 1 : "";
}

static int is_wanted(const struct scenario *one, int quick, const char *only) {
    if (only)
        return strcmp(only, one->name) == 0;
    return !quick || one->flags & QUICK;
}

static int64_t milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void work(int quick, const char *only) {
    worker = getpid();
    setpgid(0, 0);
    open_fds();
    seclude();
    must(chdir("/") == 0 && prctl(PR_SET_DUMPABLE, 1) == 0, "chdir");
    must(prctl(PR_GET_NAME, own_name) == 0, "prctl");
    /* What the command leaves and no holder takes comes to us. */
    must(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0, "prctl");
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    int length = read_file(holder, holder_image, sizeof holder_image);
    must(length > 0, holder);
    holder_size = (uint32_t)length;
    resume = shared->last;
    for (scenario = scenarios; scenario < scenarios + SCENARIOS; scenario++) {
        if (!is_wanted(scenario, quick, only))
            continue;
        if (scenario->flags & IN_CGROUP && !*cgroup) {
            if (!strstr(shared->skipped, scenario->name))
                add_text(shared->skipped, sizeof shared->skipped, "%s\"%s\": \"no cgroup v2\"",
                         *shared->skipped ? ", " : "", scenario->name);
            continue;
        }
        sweep_scenario(quick);
    }
    shared->finished = 1;
    _exit(0);
}

static void kill_others(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        int victim = shared->victim;
        if (victim > 0) {
            kill(victim, SIGKILL);
            shared->victim = 0;
        }
        sh_raw(SYS_futex, (long)&shared->victim, SH_FUTEX_WAIT, 0, 0, 0, 0);
    }
}

/* NULL: it has finished. */
static const char *watch(pid_t pid) {
    long seen = -1;
    int stalled = 0, status;
    static char text[64];
    /* Counts its own turns: on a halted machine both stand still. */
    while (stalled < (stops ? STALL_MS / 2 : STALL_MS) / POLL_MS) {
        if (waitpid(pid, &status, WNOHANG) == pid) {
            snprintf(text, sizeof text, "the instrument ended with status %d", status);
            return shared->finished ? NULL : text;
        }
        nap(POLL_MS * 1000000L);
        stalled = seen == shared->progress ? stalled + 1 : 0;
        seen = shared->progress;
    }
    /* Its children end with it, or come to us. */
    kill(-pid, SIGKILL);
    waitpid(pid, &status, 0);
    return "hangs";
}

/* A process of the set whose holder is gone, or that never had one. */
static void end_strays(int spared) {
    worker = getpid();
    nap(20000000);
    while (bury_all(spared) > 0)
        nap(1000000);
}

static void supervise(int quick, const char *only) {
    pid_t killer = fork();
    if (killer == 0)
        kill_others();
    for (int starts = 0; killer > 0 && starts < MAX_RESTARTS; starts++) {
        shared->armed = 0;
        shared->progress++;
        pid_t pid = fork();
        if (pid == 0)
            work(quick, only);
        const char *wrong = watch(pid);
        end_strays(killer);
        if (!wrong)
            break;
        complain(wrong, NULL);
        if (shared->last == 0 || stops)
            break; /* it did not even begin, or that was enough */
    }
    kill(killer, SIGKILL);
}

int main(int argc, char **argv) {
    int quick = 0;
    const char *only = NULL;
    for (int i = 3; i < argc; i++) {
        quick |= strcmp(argv[i], "quick") == 0;
        stops |= strcmp(argv[i], "first") == 0;
        if (strncmp(argv[i], "only=", 5) == 0)
            only = argv[i] + 5;
        if (strncmp(argv[i], "case=", 5) == 0)
            looked_for = argv[i] + 5;
    }
    shared = __real_mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                         -1, 0);
    if (argc < 3 || shared == MAP_FAILED)
        return 2;
    target = argv[1];
    holder = argv[2];
    int64_t start = milliseconds();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    find_cgroup();
    supervise(quick, only);
    if (*cgroup && rmdir(cgroup) < 0)
        complain("the cgroup cannot be removed", NULL);
    printf("{\"scenarios\": {%s}, \"skipped\": {%s}, \"calls\": {", shared->listed,
           shared->skipped);
    for (int i = 0; i < ROLES; i++)
        printf("%s\"%s\": %ld", i ? ", " : "", role_names[i], shared->recorded[i]);
    printf("}, \"kinds\": {");
    for (int i = 0; i < KINDS; i++)
        printf("%s\"%s\": %ld", i ? ", " : "", kind_names[i], shared->kinds[i]);
    printf("}, \"cases\": %ld, \"successes\": %ld, \"seconds\": %.2f, \"finished\": %s, "
           "\"bad_count\": %ld, \"bad\": [%s]}\n",
           shared->cases, shared->successes, (double)(milliseconds() - start) / 1000,
           shared->finished ? "true" : "false", shared->bad, shared->bad_list);
    return 0;
}
