"""cffi builder: what Python may call of the C core. Run by setuptools only."""

from __future__ import annotations

from cffi import FFI

# cffi checks every struct against the C headers when the module is compiled,
# and tests/test_contract.py compares the stages with spawnhelper.Stage.
CDEF = """
struct sh_fdpair { int32_t target, source; };

enum sh_request_flags {
    SH_LOOKUP, SH_CLOSE_FDS, SH_STANDARD_FDS, SH_SET_UID, SH_SET_GID, SH_SET_GROUPS, SH_SET_UMASK,
    SH_NEW_SESSION, SH_BEST_EFFORT, SH_USER_ROOT, ...
};
enum sh_avoid {
    SH_AVOID_CLONE3, SH_AVOID_VFORK, SH_AVOID_PIDFD, SH_AVOID_CLOSE_RANGE, SH_AVOID_LISTING,
    SH_AVOID_SHARED_FILES, SH_AVOID_PIDFD_INFO, SH_AVOID_THREAD_SETNS, ...
};
enum sh_start { SH_START_CLONE3, SH_START_CLONE, SH_START_PIPE, ... };
enum { SH_NEWNS, SH_NEWUTS, SH_NEWIPC, SH_NEWUSER, SH_NEWPID, SH_NEWNET, ... };
enum sh_state { SH_NEW, SH_RUNNING, SH_ENDING, SH_ENDED, SH_LOST, SH_GIVEN, ... };

struct sh_request {
    const char *argv; const char *env; const char *file; const char *cwd;
    const struct sh_fdpair *fds;
    const uint32_t *groups;
    uint32_t argc, envc, nfds, ngroups;
    uint32_t uid, gid, umask;
    uint32_t flags;
    uint32_t namespaces;
    struct sh_set *set;
    const char *cgroup;
    int32_t output;
};
struct sh_note { int32_t stage, error, detail; };
struct sh_result {
    int32_t stage, error, detail, started;
    uint32_t nnotes;
    struct sh_note notes[12];
};
struct sh_set {
    uint32_t namespaces;
    int32_t holder, holder_pidfd, closed;
    struct sh_result result;
    ...;
};
struct sh_process {
    int32_t pid, pidfd, state, status;
    uint32_t forks, lock;
    int32_t users, zombie, report, outcome, holder, holder_pidfd;
    uint64_t holder_id;
    uint64_t pidfd_id;
    struct sh_set *set;
    int32_t kept, has_usage;
    int64_t started_nsec, ended_nsec;
    int64_t usage[16];
    struct sh_process *next;
    struct sh_result result;
};
struct sh_log {
    int32_t source, pipe_end, file, out, out_error, file_error;
    int32_t opened, closed_source, open_error;
    ...;
};
struct sh_orders { ...; };

long syscall(long number, ...);
int sh_initialize(void);
void sh_avoid(uint32_t features);
int sh_start_mode(void);
const char *sh_stage_name(int stage);
int sh_stage_tolerated(int stage);
void sh_set_holder(const char *path, const char *image, uint32_t size);
struct sh_set *sh_set_new(void);
int sh_set_open(struct sh_set *set, uint32_t namespaces, uint32_t flags);
int sh_set_close(struct sh_set *set);
int sh_set_drop(struct sh_set *set);
void sh_set_discard(void *set);
int sh_set_mine(const struct sh_set *set);
int sh_set_is_dead(const struct sh_set *set);
int sh_start_packed(const struct sh_request *rest, const char *file, const char *argv,
                    uint32_t argc, const char *env, uint32_t envc, struct sh_set *set,
                    int output, struct sh_process *process);
int sh_run_packed(const struct sh_request *rest, const char *file, const char *argv,
                  uint32_t argc, const char *env, uint32_t envc, struct sh_set *set,
                  struct sh_process *process);
int sh_run_logged(const struct sh_request *rest, const char *file, const char *argv,
                  uint32_t argc, const char *env, uint32_t envc, struct sh_set *set,
                  struct sh_process *process, struct sh_log *log, const char *name);
int sh_find(const char *name, const char *path, const char *cwd, char *buffer, uint32_t size);
int sh_wait(struct sh_process *process, int64_t nsec);
int sh_wait_log(struct sh_process *process, int64_t nsec, struct sh_log *log);
int sh_log_open(struct sh_log *log, const struct sh_request *request, const char *name,
                int waits);
void sh_log_started(struct sh_log *log);
void sh_log_close(struct sh_log *log);
void sh_log_discard(void *log);
int sh_signal(struct sh_process *process, int number);
int sh_give(struct sh_process *process);
int sh_give_both(struct sh_process *process, struct sh_process *other);
int sh_reap(struct sh_process *process);
int sh_reap_now(struct sh_process *process);
int sh_finish(struct sh_process *process);
int sh_hold(struct sh_process *process);
int sh_pidfd(struct sh_process *process);
void sh_release_hold(struct sh_process *process);
int sh_copy_pidfd(struct sh_process *process);
void *sh_allocate(size_t size);
void sh_discard(void *process);
void sh_sweep(void);
int sh_list_dropped(int32_t *pids, int size);
int sh_mine(const struct sh_process *process);
int sh_ended(struct sh_process *process);
int sh_fork(const struct sh_request *request, struct sh_process *process,
            struct sh_orders **orders);
int sh_fork_result(struct sh_process *process, char *bytes, uint32_t size, uint32_t *length);
int sh_become(const struct sh_request *request, struct sh_process *process,
              struct sh_orders **orders);
int sh_become_execute(const struct sh_orders *orders);
int sh_arrange(const struct sh_request *request, struct sh_process *process);
int sh_try_unshare(int flags);
int sh_raise_loopback(void);
void sh_child_prepare(const struct sh_orders *orders);
void sh_child_execute(const struct sh_orders *orders);
void sh_child_fail(const struct sh_orders *orders, int stage, int error, int detail,
                   const char *text, uint32_t length);
"""

ffi = FFI()
ffi.cdef(CDEF)
ffi.set_source(
    "spawnhelper._spawnhelper",
    '#include <unistd.h>\n#include "spawnhelper.h"\n',
    sources=[
        "csrc/state.c",
        "csrc/orders.c",
        "csrc/report.c",
        "csrc/launch.c",
        "csrc/wait.c",
        "csrc/pidfds.c",
        "csrc/drop.c",
        "csrc/logpipe.c",
        "csrc/pydrop.c",
        "csrc/pyfork.c",
        "csrc/alone.c",
        "csrc/fdplan.c",
        "csrc/isolate.c",
        "csrc/sets.c",
    ],
    include_dirs=["csrc"],
    depends=[
        "csrc/spawnhelper.h",
        "csrc/spawnhelper.c",
        "csrc/parent.h",
        "csrc/isolation.h",
        "csrc/net.h",
        "csrc/fdplan.h",
        "csrc/state.h",
        "csrc/sys.h",
    ],
    # A symbol must never be bound lazily while a child shares our memory.
    extra_link_args=["-Wl,-z,now", "-pthread"],
    extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-pthread"],
)
