/* The start: mask signals, clone in the way that works here, learn the result. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "parent.h"
#include "state.h"
#include "sys.h"

const char *sh_stage_name(int stage) {
    static const char *const names[] = {
#define SH_STAGE(name, policy) #name,
        SH_STAGES(SH_STAGE)
#undef SH_STAGE
    };
    return stage >= 0 && stage < SH_STAGE_COUNT ? names[stage] : "?";
}

int sh_stage_tolerated(int stage) {
    enum { FATAL, TOLERATED };
    static const char policies[] = {
#define SH_STAGE(name, policy) policy,
        SH_STAGES(SH_STAGE)
#undef SH_STAGE
    };
    return stage >= 0 && stage < SH_STAGE_COUNT && policies[stage] == TOLERATED;
}

int sh_refuse(struct sh_process *process, int stage, int error, int detail) {
    process->result.stage = stage;
    process->result.error = error;
    process->result.detail = detail;
    process->result.started = 0;
    return -error;
}

/* Raw: libc's sigfillset leaves out the two signals it uses itself (nptl(7)). */
void sh_block_signals(uint64_t *before) {
    uint64_t all = ~(uint64_t)0;
    SYS(rt_sigprocmask, SIG_SETMASK, &all, before, sizeof all);
}

void sh_restore_signals(const uint64_t *before) {
    SYS(rt_sigprocmask, SIG_SETMASK, before, NULL, sizeof *before);
}

/* ---- three ways to make a child ---- */

/* What the first process runs: the command itself, or the one that makes it. */
static void enter_child(void *argument) {
    struct sh_orders *orders = argument;
    if (orders->isolation && orders->isolation->intermediate)
        sh_intermediate(orders);
    sh_child(orders);
}

/* No exit signal: a child that fails before exec raises no SIGCHLD and is
 * invisible to other people's waitpid(-1). exec makes it SIGCHLD (execve(2)).
 * Such a child without CLONE_VFORK is a thread to a tracer (PTRACE_EVENT_CLONE,
 * ptrace(2)), and gdb loses the program when it execs; so we are suspended even
 * when we wait for its end anyway. */
static long by_clone3(struct sh_orders *orders, uint64_t flags, int *pidfd) {
    struct sh_clone_args args = {
        .flags = flags | CLONE_VFORK | SH_CLONE_CLEAR_SIGHAND,
        .pidfd = (uintptr_t)pidfd,
    };
    if (flags & CLONE_VM) {
        size_t size;
        args.stack = (uintptr_t)sh_stack(orders, &size);
        args.stack_size = size;
    }
    if (flags & SH_CLONE_INTO_CGROUP)
        args.cgroup = (uint64_t)orders->isolation->cgroup;
#ifdef SH_HAVE_CLONE3_ENTRY
    if (flags & CLONE_VM)
        return sh_clone3(&args, sizeof args, enter_child, orders);
#else
    if (flags & CLONE_VM)
        return -ENOSYS;
#endif
    long pid = SYS(clone3, &args, sizeof args);
    if (pid == 0)
        enter_child(orders);
    return pid;
}

/* libc's clone() only switches stacks; the kernel knows nothing newer here. */
static long clone_on_stack(struct sh_orders *orders, int (*entry)(void *), int flags, int *pidfd) {
#ifdef SH_FAULT
    int injected = sh_fault(SYS_clone);
    if (injected)
        return -injected;
#endif
    size_t size;
    char *stack = sh_stack(orders, &size);
    int kept = errno;
    long pid = clone(entry, stack + size, flags, orders, pidfd);
    if (pid < 0)
        pid = -errno;
    errno = kept;
    return pid;
}

static int child_entry(void *orders) {
    enter_child(orders);
    return 0;
}

static long by_clone(struct sh_orders *orders, uint64_t flags, int *pidfd) {
    orders->clear_signals = 1;
    if (flags & CLONE_VM)
        return clone_on_stack(orders, child_entry, (int)flags | CLONE_VFORK, pidfd);
    long pid = SYS(clone, (unsigned)flags | CLONE_VFORK, 0, pidfd, 0, 0);
    if (pid == 0)
        enter_child(orders);
    return pid;
}

/* The intermediate's descriptors are ours: it leaves the pidfds of what it makes. */
static uint64_t isolation_flags(struct sh_isolation *isolation, int mode) {
    uint64_t flags = 0;
    isolation->clone3 = mode == SH_START_CLONE3;
    isolation->cgroup_at_birth &= isolation->clone3;
    if (isolation->by_clone)
        flags |= isolation->fresh & ~(uint32_t)SH_NEWPID;
    if (isolation->intermediate)
        flags |= CLONE_FILES;
    else if (isolation->cgroup_at_birth)
        flags |= SH_CLONE_INTO_CGROUP;
    return flags;
}

static long make_child(struct sh_orders *orders, int mode, uint64_t flags, int *pidfd) {
    struct sh_isolation *isolation = orders->isolation;
    if (isolation)
        flags |= isolation_flags(isolation, mode);
    if (orders->shared_files >= 0)
        flags |= CLONE_FILES;
    if (!(orders->avoid & SH_AVOID_PIDFD) && !(isolation && isolation->intermediate))
        flags |= CLONE_PIDFD;
    if (mode == SH_START_CLONE3)
        return by_clone3(orders, flags, pidfd);
    long pid = by_clone(orders, flags, pidfd);
    if (pid == -EINVAL && (flags & CLONE_PIDFD)) /* an emulator that lacks the flag */
        pid = by_clone(orders, flags & ~(uint64_t)CLONE_PIDFD, pidfd);
    return pid;
}

/* With memory of its own, but still suspending us until exec: no pipe needed. */
static long start_forked(struct sh_orders *orders, int mode, int *pidfd) {
    struct shared {
        struct sh_result result;
        struct sh_births births;
    } *shared =
        mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return -ENOMEM;
    struct sh_isolation *isolation = orders->isolation;
    struct sh_result *result = (struct sh_result *)orders->result;
    orders->result = &shared->result;
    orders->own_memory = 1;
    if (isolation) {
        shared->births = isolation->own_births;
        isolation->births = &shared->births;
    }
    long pid = make_child(orders, mode, 0, pidfd);
    orders->result = result;
    orders->own_memory = 0;
    *result = shared->result;
    if (isolation) {
        isolation->births = &isolation->own_births;
        isolation->own_births = shared->births;
        isolation->own_births.holder.busy = isolation->own_births.command.busy = 0;
    }
    munmap(shared, sizeof *shared);
    return pid;
}

/* vfork's end comes before exec has switched memory (exec_mmap, fs/exec.c);
 * close-on-exec comes after: only end of file says that our memory is ours. */
static void await_own_memory(struct sh_orders *orders) {
    char none;
    SYS(close, orders->guard[1]);
    orders->guard[1] = -1;
    while (SYS(read, orders->guard[0], &none, 1) == -EINTR)
        ;
}

static int enters_user_namespace(const struct sh_request *request) {
    return request->set && request->set->namespaces & SH_NEWUSER;
}

/* A set's root could likewise read a child that has just entered its user
 * namespace, and with it our memory, unless we are undumpable meanwhile. */
static int needs_privacy(const struct sh_request *request) {
    return request->flags & (SH_SET_UID | SH_SET_GID) || enters_user_namespace(request);
}

/* A fresh user namespace exposes nothing, but its id maps are root's files while
 * we are undumpable (proc_pid_uid_map(5)). */
static int needs_lock(const struct sh_request *request) {
    return needs_privacy(request) || request->namespaces & SH_NEWUSER;
}

/* An id change in a child that shares our memory makes that memory, hence us,
 * undumpable (commit_creds, kernel/cred.c), for ever. We restore the flag, but
 * only when no such child has our memory: its new user could read and write it
 * (process_vm_readv(2)), with all our secrets. Hence one such child at a time. */
static long start_shared(struct sh_orders *orders, int mode, int *pidfd) {
    if (!needs_lock(orders->request))
        return make_child(orders, mode, CLONE_VM, pidfd);
    sh_lock(&sh_state.id_lock);
    sh_state.dumpable = (int)SYS(prctl, PR_GET_DUMPABLE);
    if (sh_state.dumpable < 0) { /* denied: it could not be restored */
        sh_unlock(&sh_state.id_lock);
        return start_forked(orders, mode, pidfd);
    }
    atomic_fetch_add(&sh_state.id_sequence, 1);
    if (enters_user_namespace(orders->request))
        SYS(prctl, PR_SET_DUMPABLE, 0);
    long pid = make_child(orders, mode, CLONE_VM, pidfd);
    if (pid >= 0 && orders->guard[1] >= 0)
        await_own_memory(orders);
    if (sh_state.dumpable < 2) /* 2 can only be had from an id change */
        SYS(prctl, PR_SET_DUMPABLE, sh_state.dumpable);
    atomic_fetch_add(&sh_state.id_sequence, 1);
    sh_unlock(&sh_state.id_lock);
    return pid;
}

/* With fs.suid_dumpable 1 the flag stays set through an id change, so the new
 * user could read a child that shares our memory. Unknown counts as 1. */
static int needs_own_memory(const struct sh_request *request) {
    if (!(request->flags & (SH_SET_UID | SH_SET_GID)))
        return 0;
    char value = '1';
    long fd = SYS(openat, AT_FDCWD, "/proc/sys/fs/suid_dumpable", O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return 1;
    long length = SYS(read, fd, &value, 1);
    SYS(close, fd);
    return length != 1 || value == '1';
}

/* ---- choosing the way ---- */

static int write_word(void *orders) {
    ((struct sh_orders *)orders)->result->stage = SH_STAGE_EXEC;
    SYS(exit_group, 0);
    return 0;
}

/* qemu-user and valgrind turn vfork into fork: the child's words would be lost.
 * A child that writes one word tells. */
static int vfork_is_real(struct sh_orders *orders) {
    if (orders->avoid & SH_AVOID_VFORK)
        return 0;
    orders->result->stage = -1;
    long pid = clone_on_stack(orders, write_word, CLONE_VM | CLONE_VFORK, NULL);
    if (pid < 0)
        return 0;
    int shared = orders->result->stage == SH_STAGE_EXEC;
    sh_reap_failed((int)pid, -1);
    return shared;
}

/* ENOSYS: before 5.3, or an emulator. EPERM: a seccomp profile that does not
 * know the call (moby/moby#42680). EINVAL: before 5.5, no CLEAR_SIGHAND. */
static int is_missing(long error) {
    return error == -ENOSYS || error == -EPERM || error == -EINVAL;
}

/* Then it may be what isolation adds that is refused, not the call. */
static int is_asked_too_much(const struct sh_isolation *isolation) {
    return isolation->by_clone || (isolation->cgroup_at_birth && !isolation->intermediate);
}

static long try_shared(struct sh_orders *orders, int own_memory, int *pidfd) {
    int mode = sh_start_mode();
    for (;;) {
        long pid = -ENOSYS;
        if (mode != SH_START_CLONE3 || !(orders->avoid & SH_AVOID_CLONE3))
            pid =
                own_memory ? start_forked(orders, mode, pidfd) : start_shared(orders, mode, pidfd);
        if (pid >= 0 || !is_missing(pid) || mode != SH_START_CLONE3)
            return pid;
        if (orders->isolation && is_asked_too_much(orders->isolation))
            return pid;
        mode = vfork_is_real(orders) ? SH_START_CLONE : SH_START_PIPE;
        orders->result->stage = 0;
        atomic_store(&sh_state.start_mode, mode);
        if (mode == SH_START_PIPE)
            return pid;
    }
}

/* ---- results ---- */

int sh_bury(struct sh_process *process, int pid, int pidfd, int stage, int silent) {
    int status = sh_reap_failed(pid, pidfd);
    struct sh_result *result = &process->result;
    result->started = 1;
    if (silent) {
        result->stage = stage;
        result->error = ECHILD;
        result->detail = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    }
    return -result->error;
}

static int refuse_clone(struct sh_process *process, struct sh_isolation *isolation, long error) {
    sh_refuse(process, SH_STAGE_CLONE, (int)-error, 0);
    if (isolation)
        sh_isolation_blame(isolation, &process->result);
    return -process->result.error;
}

static int learn_result(struct sh_process *process, struct sh_isolation *isolation, long pid,
                        int pidfd) {
    struct sh_result *result = &process->result;
    if (pid < 0)
        return refuse_clone(process, isolation, pid);
    if (isolation && isolation->intermediate)
        return sh_isolation_conclude(isolation, process, (int)pid);
    result->started = 1;
    if (result->error == 0 && result->stage == SH_STAGE_EXEC) {
        sh_adopt(process, (int)pid, pidfd);
        if (isolation)
            sh_isolation_adopt(isolation, process);
        return 0;
    }
    return sh_bury(process, (int)pid, pidfd, result->stage, result->error == 0);
}

static void close_guard(const int guard[2]) {
    if (guard[1] >= 0)
        SYS(close, guard[1]);
    if (guard[0] >= 0)
        sh_report_close(guard[0]);
}

static int start_in_memory(const struct sh_request *request, struct sh_process *process,
                           struct sh_isolation *isolation) {
    int guard[2] = {-1, -1}, culprit = -1;
    if (needs_privacy(request)) {
        int error = sh_report_open(request, guard, &culprit);
        if (error < 0)
            return sh_refuse(process, culprit >= 0 ? SH_STAGE_FDS : SH_STAGE_CLONE, -error,
                             culprit);
    }
    struct sh_orders *orders = sh_prepare(request, process, guard[1], isolation);
    if (!orders) {
        close_guard(guard);
        return -process->result.error;
    }
    orders->report = -1;
    orders->guard[0] = guard[0];
    orders->guard[1] = guard[1];
    orders->result = &process->result;
    int own_memory = needs_own_memory(request);
    int pidfd = -1;
    sh_block_signals(&orders->mask);
    long pid = isolation ? sh_isolation_leave_home(isolation) : 0;
    if (pid == 0)
        pid = try_shared(orders, own_memory, &pidfd);
    if (isolation)
        sh_isolation_return_home(isolation);
    int error = learn_result(process, isolation, pid, pidfd);
    sh_restore_signals(&orders->mask);
    close_guard(orders->guard);
    sh_release(orders);
    return error;
}

static int read_result(struct sh_process *process, int report, int pid) {
    char bytes[2 * sizeof process->result];
    uint32_t length = 0;
    while (sh_report_read(report, bytes, sizeof bytes, &length) == 1)
        ; /* signals are blocked; a tracer may still interrupt */
    int pidfd = sh_pidfd_open(pid);
    int outcome = sh_report_parse(bytes, length, &process->result);
    if (outcome != 0)
        return sh_bury(process, pid, pidfd, SH_STAGE_CLONE, outcome == 2);
    sh_adopt(process, pid, pidfd);
    return 0;
}

struct sh_orders *sh_prepare_report(const struct sh_request *request, struct sh_process *process,
                                    int ends[2], struct sh_isolation *isolation) {
    int culprit = -1;
    int error = sh_report_open(request, ends, &culprit);
    if (error < 0) {
        sh_refuse(process, culprit >= 0 ? SH_STAGE_FDS : SH_STAGE_CLONE, -error, culprit);
        return NULL;
    }
    struct sh_orders *orders = sh_prepare(request, process, ends[1], isolation);
    if (!orders) {
        SYS(close, ends[1]);
        sh_report_close(ends[0]);
        return NULL;
    }
    orders->result = &process->result;
    orders->own_memory = 1;
    orders->clear_signals = 1;
    orders->shared_files = -1;
    return orders;
}

/* Where vfork is not real: the report comes through a pipe, and end of file means exec. */
static int start_by_pipe(const struct sh_request *request, struct sh_process *process,
                         struct sh_isolation *isolation) {
    int ends[2];
    if (isolation && !sh_isolation_can_fork(isolation, process))
        return -process->result.error;
    struct sh_orders *orders = sh_prepare_report(request, process, ends, isolation);
    if (!orders)
        return -process->result.error;
    sh_block_signals(&orders->mask);
    uint64_t flags = SIGCHLD | (isolation ? isolation_flags(isolation, SH_START_PIPE) : 0);
    long pid = isolation ? sh_isolation_leave_home(isolation) : 0;
    if (pid == 0) {
        pid = SYS(clone, flags, 0, 0, 0, 0);
        if (pid == 0)
            sh_child(orders);
    }
    if (isolation)
        sh_isolation_return_home(isolation);
    SYS(close, ends[1]);
    int error =
        pid < 0 ? refuse_clone(process, isolation, pid) : read_result(process, ends[0], (int)pid);
    if (error == 0 && isolation)
        sh_isolation_adopt(isolation, process);
    sh_report_close(ends[0]);
    sh_restore_signals(&orders->mask);
    sh_release(orders);
    return error;
}

static int start_by_mode(const struct sh_request *request, struct sh_process *process,
                         struct sh_isolation *isolation) {
    memset(&process->result, 0, sizeof process->result);
    if (sh_start_mode() == SH_START_PIPE)
        return start_by_pipe(request, process, isolation);
    int error = start_in_memory(request, process, isolation);
    if (error < 0 && sh_start_mode() == SH_START_PIPE && !process->result.started) {
        memset(&process->result, 0, sizeof process->result);
        return start_by_pipe(request, process, isolation);
    }
    return error;
}

static int start_isolated(const struct sh_request *request, struct sh_process *process,
                          struct sh_set *made) {
    memset(&process->result, 0, sizeof process->result);
    struct sh_isolation *isolation = sh_isolation_open(request, process, made, 0);
    if (!isolation)
        return -process->result.error;
    int error;
    do {
        error = sh_isolation_begin(isolation, process);
        if (error == 0)
            error = start_by_mode(request, process, isolation);
    } while (error < 0 && sh_isolation_retry(isolation, process));
    if (error == 0 && made)
        sh_set_take(made, isolation);
    sh_isolation_close(isolation, process);
    return error;
}

static int start_once(const struct sh_request *request, struct sh_process *process,
                      struct sh_set *made) {
    if (request->namespaces || request->set || request->cgroup || made)
        return start_isolated(request, process, made);
    return start_by_mode(request, process, NULL);
}

int sh_start_set(const struct sh_request *request, struct sh_process *process,
                 struct sh_set *made) {
    int error = start_once(request, process, made);
    if (error == 0 || process->result.detail != SH_SHARED_FILES_REFUSED)
        return error;
    /* A profile that knows neither close_range nor unshare. */
    atomic_fetch_or(&sh_state.avoid, SH_AVOID_SHARED_FILES);
    return start_once(request, process, made);
}

/* The handle may have served an earlier call. */
void sh_begin(struct sh_process *process) {
    sh_sweep();
    sh_reap_orphans();
    memset(process, 0, sizeof *process);
    process->started_nsec = sh_now();
}

int sh_start(const struct sh_request *request, struct sh_process *process) {
    sh_begin(process);
    return sh_start_set(request, process, NULL);
}

int sh_run(const struct sh_request *request, struct sh_process *process, int64_t nsec) {
    int error = sh_start(request, process);
    return error < 0 ? error : sh_wait(process, nsec);
}

static struct sh_request complete(const struct sh_request *rest, const char *file, const char *argv,
                                  uint32_t argc, const char *env, uint32_t envc,
                                  struct sh_set *set) {
    struct sh_request request = *rest;
    request.file = file;
    request.argv = argv;
    request.argc = argc;
    request.env = env;
    request.envc = envc;
    request.set = set;
    return request;
}

int sh_start_packed(const struct sh_request *rest, const char *file, const char *argv,
                    uint32_t argc, const char *env, uint32_t envc, struct sh_set *set, int output,
                    struct sh_process *process) {
    struct sh_request request = complete(rest, file, argv, argc, env, envc, set);
    request.output = output;
    int error = sh_start(&request, process);
    if (error == 0)
        sh_remember_pidfd(process);
    return error;
}

int sh_run_packed(const struct sh_request *rest, const char *file, const char *argv, uint32_t argc,
                  const char *env, uint32_t envc, struct sh_set *set, struct sh_process *process) {
    struct sh_request request = complete(rest, file, argv, argc, env, envc, set);
    int done = sh_run(&request, process, -1);
    if (done != 1)
        return done;
    return process->state == SH_LOST ? 0 : 1 + process->status;
}

int sh_run_logged(const struct sh_request *rest, const char *file, const char *argv, uint32_t argc,
                  const char *env, uint32_t envc, struct sh_set *set, struct sh_process *process,
                  struct sh_log *log, const char *name) {
    int done = sh_log_open(log, rest, name, 1);
    if (done < 0)
        return done;
    done = sh_start_packed(rest, file, argv, argc, env, envc, set, log->pipe_end, process);
    sh_log_started(log);
    if (done == 0)
        done = sh_wait_log(process, -1, log);
    if (done == 0)
        return 0;
    sh_log_close(log);
    if (done < 0)
        return done;
    return process->state == SH_LOST ? 0 : 1 + process->status;
}
