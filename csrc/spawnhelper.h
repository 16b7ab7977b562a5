/* The contract between Python, the parent (launch.c) and the child (spawnhelper.c). */
#ifndef SPAWNHELPER_H
#define SPAWNHELPER_H

#include <stddef.h>
#include <stdint.h>

#include "fdplan.h"

/* One entry for each step that can fail, in the child's order. Users see these
 * names as spawnhelper.Stage. */
#define SH_STAGES(X)                                                                               \
    X(CLONE)                                                                                       \
    X(CGROUP)                                                                                      \
    X(NAMESPACES)                                                                                  \
    X(PROPAGATION)                                                                                 \
    X(PROC)                                                                                        \
    X(HOSTNAME)                                                                                    \
    X(LOOPBACK)                                                                                    \
    X(FDS)                                                                                         \
    X(GROUPS)                                                                                      \
    X(GID)                                                                                         \
    X(UID)                                                                                         \
    X(UMASK)                                                                                       \
    X(CHDIR)                                                                                       \
    X(PRE_EXEC)                                                                                    \
    X(EXEC)

enum sh_stage {
#define SH_STAGE(name) SH_STAGE_##name,
    SH_STAGES(SH_STAGE)
#undef SH_STAGE
        SH_STAGE_COUNT
};

enum sh_request_flags {
    SH_LOOKUP = 1 << 0,       /* a program without slash is looked up in the command's PATH */
    SH_CLOSE_FDS = 1 << 1,    /* the command keeps the fd map's keys and nothing else */
    SH_STANDARD_FDS = 1 << 2, /* the fd map may name descriptors that are closed; they stay so */
    SH_SET_UID = 1 << 3,
    SH_SET_GID = 1 << 4,
    SH_SET_GROUPS = 1 << 5,
    SH_SET_UMASK = 1 << 6,
};

/* What is to be started. Nobody changes it once it is made. */
struct sh_request {
    const char *argv;            /* argc strings, one after the other, each with its NUL */
    const char *env;             /* envc strings likewise, "NAME=value" */
    const char *file;            /* the program: a path, or with SH_LOOKUP a name */
    const char *cwd;             /* NULL: unchanged */
    const struct sh_fdpair *fds; /* ascending by target */
    const uint32_t *groups;
    uint32_t argc, envc, nfds, ngroups;
    uint32_t uid, gid, umask;
    uint32_t flags;
};

/* How it ended, before exec. error is 0 when the command was exec'd. */
struct sh_result {
    int32_t stage;   /* enum sh_stage: the step under way */
    int32_t error;   /* errno */
    int32_t detail;  /* the fd, uid, gid or signal concerned */
    int32_t started; /* 1 when a child existed */
};

/* Kernel features that may be missing, or denied by a seccomp filter. */
enum sh_avoid {
    SH_AVOID_CLONE3 = 1 << 0,
    SH_AVOID_VFORK = 1 << 1, /* as if memory were not really shared */
    SH_AVOID_PIDFD = 1 << 2,
    SH_AVOID_CLOSE_RANGE = 1 << 3,
    SH_AVOID_LISTING = 1 << 4, /* /proc/self/fd */
    SH_AVOID_SHARED_FILES = 1 << 5,
    SH_AVOID_PIDFD_INFO = 1 << 6, /* the exit status of a process that somebody else reaped */
};

/* How a command is started; the first that works here, decided once. */
enum sh_start {
    SH_START_CLONE3, /* shares our memory until exec */
    SH_START_CLONE,  /* likewise; signals are reset one by one */
    SH_START_PIPE,   /* a plain fork that reports through a pipe: vfork is not real here */
};

/* sh_result.detail: the child could not detach from our fd table. The parent
 * starts it again with a copy; nothing else had been done. */
enum { SH_SHARED_FILES_REFUSED = -2 };

enum sh_state {
    SH_NEW,     /* nothing was started */
    SH_RUNNING, /* ours to wait for */
    SH_ENDED,   /* reaped: status is exact */
    SH_LOST,    /* ended, but somebody else took the status */
    SH_GIVEN,   /* the caller took the pid and reaps it */
};

enum { SH_USAGE = 16 };

/* The handle's memory: it exists before the child does. */
struct sh_process {
    int32_t pid;
    int32_t pidfd;        /* 0: none, or closed after reaping; never 0, 1, 2 */
    int32_t state;        /* enum sh_state */
    int32_t status;       /* wait status, when ended */
    uint32_t forks;       /* forks before the process that may wait for it */
    uint32_t lock;        /* guards all fields between start and end */
    int32_t users;        /* threads blocked in a wait */
    int32_t zombie;       /* 1: ended, but still to be reaped (without pidfd only) */
    int32_t report;       /* read end of the report pipe while a pre_exec child starts, or 0 */
    int32_t kept;         /* 1: somebody got the handle, so dropping it does not kill the child */
    int32_t has_usage;    /* 1: usage is the command's; somebody else's reaping took it otherwise */
    int64_t started_nsec; /* CLOCK_MONOTONIC before the start, and when the end was seen */
    int64_t ended_nsec;
    int64_t usage[SH_USAGE]; /* struct rusage in order, times in microseconds */
    struct sh_process *next; /* in the queue of dropped handles */
    struct sh_result result;
};

enum { SH_LOG_BUFFER = 65536 };

/* For logfile: a pipe and where its content goes. Owns its descriptors; 0: none. */
struct sh_log {
    int32_t source;                /* read end of the pipe */
    int32_t pipe_end;              /* our copy of the write end, until the start */
    int32_t file;                  /* the log */
    int32_t out;                   /* original fd 1, not owned; -1: none */
    int32_t out_error, file_error; /* first errno of each; that copy ended there */
    uint32_t length, file_done, out_done;
    int32_t left;   /* bytes still to drain after the command's end; -1: it runs */
    uint32_t forks; /* forks before the process that opened it */
    char buffer[SH_LOG_BUFFER];
};

/* Everything that the child obeys; built by the parent before the clone. */
struct sh_orders {
    const struct sh_request *request;
    char *const *argv;
    char *const *envp;
    const char *file;
    const struct sh_fdpair *fds;
    uint32_t nfds;
    const struct sh_fdstep *steps;
    uint32_t nsteps;
    int *parked;        /* where the child notes its parked duplicates */
    int shared_files;   /* >= 0: the fd table is the parent's; detach, without fds from this */
    unsigned shared_to; /* to this one */
    int clear_signals;  /* the clone did not reset caught signals */
    int report;         /* write end of the report pipe; -1: result is shared memory */
    int guard[2];       /* close-on-exec pipe: its end says that exec switched memory; -1: none */
    uint32_t avoid;     /* enum sh_avoid */
    uint64_t mask;      /* the command's signal mask */
    volatile struct sh_result *result;
};

/* spawnhelper.c: runs in the child. */
_Noreturn void sh_child(void *orders);
void sh_child_prepare(const struct sh_orders *orders);
_Noreturn void sh_child_execute(const struct sh_orders *orders);
_Noreturn void sh_child_fail(const struct sh_orders *orders, int stage, int error, int detail,
                             const char *text, uint32_t length);

/* state.c */

/* Once, at import. */
int sh_initialize(void);
/* Does without these features (enum sh_avoid) from now on: for tests. */
void sh_avoid(uint32_t features);
/* How commands are started now: an enum sh_start. */
int sh_start_mode(void);

/* launch.c: the start. Runs in the parent, without the GIL. */

const char *sh_stage_name(int stage);
/* 0, or a negative errno with process->result filled in. */
int sh_start(const struct sh_request *request, struct sh_process *process);
/* sh_start, then sh_wait_log (sh_wait when log is NULL). */
int sh_run(const struct sh_request *request, struct sh_process *process, int64_t nsec,
           struct sh_log *log);
/* The same for a request whose argv and env are given beside it: Python then
 * passes its bytes without a copy, and one request serves many calls. */
int sh_start_packed(const struct sh_request *rest, const char *argv, uint32_t argc, const char *env,
                    uint32_t envc, struct sh_process *process);
int sh_run_packed(const struct sh_request *rest, const char *argv, uint32_t argc, const char *env,
                  uint32_t envc, struct sh_process *process, struct sh_log *log);

/* logpipe.c: memory of zeros is a log with nothing open. */

/* 0 or a negative errno; what was opened is in the log all the same. With
 * `waits` the reader is to be the waiting call: it must not block in read. */
int sh_log_open(struct sh_log *log, const char *name, int out, int waits);
/* The command has the write end; ours would keep the pipe open. */
void sh_log_started(struct sh_log *log);
void sh_log_close(struct sh_log *log);
/* Closes, and frees the memory (sh_allocate). */
void sh_log_discard(void *log);

/* orders.c */

/* First executable regular file along path: 0 with its name in buffer, or a negative errno. */
int sh_find(const char *name, const char *path, const char *cwd, char *buffer, uint32_t size);

/* wait.c: the handle's life after the start. */

/* Python runs signal handlers in its main thread only, but the kernel may hand
 * the signal to any: without a limit the main thread looks up this often. */
enum { SH_SLICE_NSEC = 50000000 };

/* 1: ended; 0: not yet: the time is over or a signal came, whose handler only
 * Python can run; -EPERM: not a child of this process. nsec < 0: no limit. */
int sh_wait(struct sh_process *process, int64_t nsec);
/* The same; meanwhile copies the output. */
int sh_wait_log(struct sh_process *process, int64_t nsec, struct sh_log *log);
/* 0 (also when the process has ended), or a negative errno. */
int sh_signal(struct sh_process *process, int number);
/* Leaves the child to the caller: its pid; or -ECHILD, with the result filled
 * in, if a signal killed it before exec. */
int sh_give(struct sh_process *process);
/* The same for two (the second may be NULL), so that no exception strikes between. */
int sh_give_both(struct sh_process *process, struct sh_process *other);
/* The end, without blocking: as sh_wait(process, 0), but no poll before. */
int sh_reap(struct sh_process *process);
/* Kills and waits: 1: reaped; 0: a signal came, call again; or a negative errno. */
int sh_finish(struct sh_process *process);
/* Keeps the pidfd open, whoever reaps, until sh_release_hold(): the pidfd; -1: ended, or none. */
int sh_hold(struct sh_process *process);
void sh_release_hold(struct sh_process *process);
/* The pidfd again, as the caller's own, close-on-exec; a negative errno (ESRCH: ended). */
int sh_copy_pidfd(struct sh_process *process);
int sh_mine(const struct sh_process *process);
/* 1: its end has been seen, and the status is there to be read. */
int sh_ended(struct sh_process *process);

/* drop.c: handles that go away. */

/* Closes what the handle still holds, without waiting. */
void sh_drop(struct sh_process *process);
/* Memory for a handle, all zero. */
void *sh_allocate(size_t size);
/* Ends the handle of a child that nobody got: killed, reaped, freed. One that
 * somebody got runs on and is reaped by a later start. */
void sh_abandon(struct sh_process *process);
/* Reaps dropped children, as far as they have ended. */
void sh_sweep(void);
/* Pids of dropped children that are still to be reaped: how many there are. */
int sh_list_dropped(int32_t *pids, int size);

/* pydrop.c */

/* sh_abandon for Python's garbage collector; warns if the child still runs. */
void sh_discard(void *process);

/* pyfork.c: the slow path, with Python code before exec. */

/* 0 in the parent, 1 in the child (signals blocked), or a negative errno. */
int sh_fork(const struct sh_request *request, struct sh_process *process,
            struct sh_orders **orders);
/* Blocks until the child exec'd or failed: 0, 1 (a signal came: call again), or
 * negative with process->result filled in. bytes receives one or two struct
 * sh_result, then text that says what pre_exec raised. */
int sh_fork_result(struct sh_process *process, char *bytes, uint32_t size, uint32_t *length);

#endif
