/* The parent's side of the start: build the orders, mask signals, clone, learn the result. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "spawnhelper.h"
#include "state.h"
#include "sys.h"

struct sh_state_of_process sh_state;

static __thread uint32_t sequence_before_fork;

static void before_fork(void) { sequence_before_fork = atomic_load(&sh_state.id_sequence); }

/* The child of a fork starts with no lock held. If another thread's id change
 * overlapped the fork, the child may have inherited the undumpable flag that
 * was its price; the kernel copies flag and memory at different moments, so
 * the lock's copy alone would not tell. */
static void after_fork(void) {
    sh_state.forks++;
    uint32_t now = atomic_load(&sh_state.id_sequence);
    int overlapped = (sequence_before_fork & 1) || now != sequence_before_fork;
    if (overlapped && sh_state.dumpable == 1)
        SYS(prctl, PR_SET_DUMPABLE, 1);
    atomic_store(&sh_state.id_sequence, (now + 1) & ~1U);
    atomic_store(&sh_state.id_lock, 0);
}

int sh_initialize(void) { return -pthread_atfork(before_fork, NULL, after_fork); }

const char *sh_stage_name(int stage) {
    static const char *const names[] = {
#define SH_STAGE(name) #name,
        SH_STAGES(SH_STAGE)
#undef SH_STAGE
    };
    return stage >= 0 && stage < SH_STAGE_COUNT ? names[stage] : "?";
}

/* ---- scratch: the child's stack and everything the orders point to ---- */

enum { GUARD = 4096, STACK = 32 * 1024, BLOCK = 128 * 1024 };

struct sh_scratch {
    struct sh_orders orders;
    struct sh_result *result; /* shared with a forked child */
    void *extra;              /* room beyond the block, for a huge request */
    size_t extra_size;
    char *room, *end;
};

static char *block_of(struct sh_scratch *scratch) { return (char *)scratch - STACK - GUARD; }

/* Blocks are kept: fresh pages cost more than the rest of the parent's work. */
static struct sh_scratch *take_scratch(void) {
    for (int i = 0; i < SH_POOL; i++) {
        void *found = atomic_exchange(&sh_state.scratch[i], NULL);
        if (found)
            return found;
    }
    char *block =
        mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (block == MAP_FAILED)
        return NULL;
    if (mprotect(block, GUARD, PROT_NONE) != 0) {
        munmap(block, BLOCK);
        return NULL;
    }
    return (struct sh_scratch *)(block + GUARD + STACK);
}

void sh_release(struct sh_scratch *scratch) {
    if (scratch->extra)
        munmap(scratch->extra, scratch->extra_size);
    for (int i = 0; i < SH_POOL; i++) {
        void *empty = NULL;
        if (atomic_compare_exchange_strong(&sh_state.scratch[i], &empty, scratch))
            return;
    }
    munmap(block_of(scratch), BLOCK);
}

static int make_room(struct sh_scratch *scratch, size_t size) {
    memset(scratch, 0, sizeof *scratch);
    scratch->room = (char *)(scratch + 1);
    scratch->end = block_of(scratch) + BLOCK;
    if (size <= (size_t)(scratch->end - scratch->room))
        return 0;
    scratch->extra_size = size;
    scratch->extra = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (scratch->extra == MAP_FAILED) {
        scratch->extra = NULL;
        return -ENOMEM;
    }
    scratch->room = scratch->extra;
    scratch->end = scratch->room + size;
    return 0;
}

static void *carve(struct sh_scratch *scratch, size_t size) {
    void *piece = scratch->room;
    scratch->room += (size + 15) & ~(size_t)15;
    return piece;
}

/* ---- orders ---- */

int sh_refuse(struct sh_process *process, int stage, int error, int detail) {
    process->result.stage = stage;
    process->result.error = error;
    process->result.detail = detail;
    process->result.started = 0;
    return -error;
}

static char *const *to_vector(struct sh_scratch *scratch, const char *packed, uint32_t count) {
    const char **vector = carve(scratch, (count + 1) * sizeof *vector);
    for (uint32_t i = 0; i < count; i++) {
        vector[i] = packed;
        packed += strlen(packed) + 1;
    }
    vector[count] = NULL;
    return (char *const *)vector;
}

static int is_executable(const char *name, int *error) {
    struct stat status;
    if (stat(name, &status) != 0) {
        if (errno == EACCES)
            *error = -EACCES;
        return 0;
    }
    /* AT_EACCESS needs faccessat2, which old seccomp profiles refuse. */
    int by_effective = geteuid() != getuid() || getegid() != getgid();
    if (S_ISREG(status.st_mode) &&
        faccessat(AT_FDCWD, name, X_OK, by_effective ? AT_EACCESS : 0) == 0)
        return 1;
    *error = -EACCES;
    return 0;
}

/* directory[0:length] "/" name; an empty directory is the current one. */
static int join(const char *directory, size_t length, const char *name, char *buffer, size_t size) {
    size_t tail = strlen(name) + 1;
    if (length + 1 + tail > size)
        return 0;
    memcpy(buffer, directory, length);
    if (length > 0)
        buffer[length++] = '/';
    memcpy(buffer + length, name, tail);
    return 1;
}

/* What execvp(3) in the child would find: a relative hit counts from the
 * command's cwd, and a refused candidate is remembered but does not end the search. */
int sh_find(const char *name, const char *path, const char *cwd, char *buffer, uint32_t size) {
    char probe[PATH_MAX];
    int error = -ENOENT;
    for (const char *entry = path;; entry++) {
        size_t length = strcspn(entry, ":");
        if (join(entry, length, name, buffer, size)) {
            const char *seen = buffer;
            if (cwd && buffer[0] != '/')
                seen = join(cwd, strlen(cwd), buffer, probe, sizeof probe) ? probe : NULL;
            if (seen && is_executable(seen, &error))
                return 0;
        }
        entry += length;
        if (!*entry)
            return error;
    }
}

static const char *path_of(char *const *env) {
    for (; *env; env++)
        if (strncmp(*env, "PATH=", 5) == 0)
            return *env + 5;
    return "/bin:/usr/bin";
}

/* The given pairs; without the standard ones that are closed here, if so asked. */
static int check_fds(struct sh_scratch *scratch, const struct sh_request *request, int *culprit) {
    struct sh_orders *orders = &scratch->orders;
    struct sh_fdpair *pairs = carve(scratch, request->nfds * sizeof *pairs);
    orders->fds = pairs;
    for (uint32_t i = 0; i < request->nfds; i++) {
        if (SYS(fcntl, request->fds[i].source, F_GETFD) >= 0) {
            pairs[orders->nfds++] = request->fds[i];
        } else if (!(request->flags & SH_STANDARD_FDS)) {
            *culprit = request->fds[i].source;
            return -EBADF;
        }
    }
    return 0;
}

static void plan_fds(struct sh_scratch *scratch, int reserved) {
    struct sh_orders *orders = &scratch->orders;
    int close_rest = (orders->request->flags & SH_CLOSE_FDS) != 0;
    struct sh_fdstep *steps = carve(scratch, SH_FDSTEPS(orders->nfds) * sizeof *steps);
    orders->parked = carve(scratch, orders->nfds * sizeof *orders->parked);
    orders->nsteps =
        sh_fdplan(orders->fds, orders->nfds, close_rest, reserved, orders->parked, steps);
    orders->steps = steps;
    orders->shared_files = -1;
    if (!close_rest)
        return;
    int highest = reserved > STDERR_FILENO ? reserved : STDERR_FILENO;
    for (uint32_t i = 0; i < orders->nfds; i++)
        if (orders->fds[i].source > highest)
            highest = orders->fds[i].source;
    orders->shared_files = highest + 1;
}

static size_t room_for(const struct sh_request *request) {
    size_t vectors = ((size_t)request->argc + request->envc + 2) * sizeof(char *);
    size_t fds = request->nfds * (sizeof(struct sh_fdpair) + sizeof(int)) +
                 SH_FDSTEPS(request->nfds) * sizeof(struct sh_fdstep);
    return vectors + fds + PATH_MAX + 8 * 16;
}

struct sh_scratch *sh_prepare(const struct sh_request *request, struct sh_process *process,
                              int reserved, struct sh_orders **out) {
    struct sh_scratch *scratch = take_scratch();
    if (!scratch) {
        sh_refuse(process, SH_STAGE_CLONE, ENOMEM, 0);
        return NULL;
    }
    struct sh_orders *orders = &scratch->orders;
    int error = make_room(scratch, room_for(request));
    int stage = SH_STAGE_CLONE, culprit = 0;
    if (error == 0) {
        orders->request = request;
        orders->report = -1;
        orders->argv = to_vector(scratch, request->argv, request->argc);
        orders->envp = to_vector(scratch, request->env, request->envc);
        orders->file = request->file;
        stage = SH_STAGE_FDS;
        error = check_fds(scratch, request, &culprit);
    }
    if (error == 0 && (request->flags & SH_LOOKUP)) {
        char *found = carve(scratch, PATH_MAX);
        orders->file = found;
        stage = SH_STAGE_EXEC;
        error = sh_find(request->file, path_of(orders->envp), request->cwd, found, PATH_MAX);
    }
    if (error < 0) {
        sh_refuse(process, stage, -error, culprit);
        sh_release(scratch);
        return NULL;
    }
    plan_fds(scratch, reserved);
    *out = orders;
    return scratch;
}

/* ---- the clone ---- */

/* Raw: libc's sigfillset leaves out the two signals it uses itself (nptl(7)). */
void sh_block_signals(uint64_t *before) {
    uint64_t all = ~(uint64_t)0;
    SYS(rt_sigprocmask, SIG_SETMASK, &all, before, sizeof all);
}

void sh_restore_signals(const uint64_t *before) {
    SYS(rt_sigprocmask, SIG_SETMASK, before, NULL, sizeof *before);
}

/* No exit signal: a child that fails before exec raises no SIGCHLD and is
 * invisible to other people's waitpid(-1). exec makes it SIGCHLD (execve(2)). */
static long clone_child(struct sh_scratch *scratch, uint64_t flags, int *pidfd) {
    struct sh_orders *orders = &scratch->orders;
    struct sh_clone_args args = {
        .flags = flags | CLONE_VFORK | CLONE_PIDFD | SH_CLONE_CLEAR_SIGHAND |
                 (orders->shared_files >= 0 ? CLONE_FILES : 0),
        .pidfd = (uintptr_t)pidfd,
    };
    orders->clear_signals = 0;
    if (flags & CLONE_VM) {
        args.stack = (uintptr_t)block_of(scratch) + GUARD;
        args.stack_size = STACK;
        return sh_clone3(&args, sizeof args, sh_child, orders);
    }
    long pid = SYS(clone3, &args, sizeof args);
    if (pid == 0)
        sh_child(orders);
    return pid;
}

/* An id change in a child that shares our memory makes that memory, hence us,
 * undumpable (commit_creds, kernel/cred.c), for ever. We restore the flag, but
 * only when no such child is alive: a dumpable one can be read by its new user
 * through ptrace, with all our secrets. Hence one such child at a time. */
static long start_shared(struct sh_scratch *scratch, int *pidfd) {
    if (!(scratch->orders.request->flags & (SH_SET_UID | SH_SET_GID)))
        return clone_child(scratch, CLONE_VM, pidfd);
    sh_lock(&sh_state.id_lock);
    sh_state.dumpable = (int)SYS(prctl, PR_GET_DUMPABLE);
    atomic_fetch_add(&sh_state.id_sequence, 1);
    long pid = clone_child(scratch, CLONE_VM, pidfd);
    if (sh_state.dumpable == 1)
        SYS(prctl, PR_SET_DUMPABLE, 1);
    atomic_fetch_add(&sh_state.id_sequence, 1);
    sh_unlock(&sh_state.id_lock);
    return pid;
}

/* With memory of its own, but still suspending us until exec: no pipe needed. */
static long start_forked(struct sh_scratch *scratch, int *pidfd) {
    struct sh_result *shared =
        mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return -ENOMEM;
    volatile struct sh_result *result = scratch->orders.result;
    scratch->orders.result = shared;
    long pid = clone_child(scratch, 0, pidfd);
    result->stage = shared->stage;
    result->error = shared->error;
    result->detail = shared->detail;
    munmap(shared, sizeof *shared);
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

static int learn_result(struct sh_process *process, long pid, int pidfd) {
    struct sh_result *result = &process->result;
    if (pid < 0)
        return sh_refuse(process, SH_STAGE_CLONE, (int)-pid, 0);
    result->started = 1;
    if (result->error == 0 && result->stage == SH_STAGE_EXEC) {
        sh_adopt(process, (int)pid, pidfd);
        return 0;
    }
    int status = sh_reap_failed((int)pid, pidfd);
    if (result->error == 0) { /* killed on the way */
        result->error = ECHILD;
        result->detail = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    }
    return -result->error;
}

int sh_start(const struct sh_request *request, struct sh_process *process) {
    struct sh_orders *orders;
    struct sh_scratch *scratch = sh_prepare(request, process, -1, &orders);
    if (!scratch)
        return -process->result.error;
    memset(&process->result, 0, sizeof process->result);
    orders->result = &process->result;
    int own_memory = needs_own_memory(request);
    int pidfd = -1;
    sh_block_signals(&orders->mask);
    long pid = own_memory ? start_forked(scratch, &pidfd) : start_shared(scratch, &pidfd);
    int error = learn_result(process, pid, pidfd);
    sh_restore_signals(&orders->mask);
    sh_release(scratch);
    return error;
}

int sh_run(const struct sh_request *request, struct sh_process *process, int64_t nsec,
           struct sh_log *log) {
    int error = sh_start(request, process);
    if (!log)
        return error < 0 ? error : sh_wait(process, nsec);
    SYS(close, log->pipe_end);
    log->pipe_end = -1;
    return error < 0 ? error : sh_wait_log(process, nsec, log);
}
