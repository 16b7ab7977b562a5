/* The contract between Python, the parent (launch.c) and the child (spawnhelper.c). */
#ifndef SPAWNHELPER_H
#define SPAWNHELPER_H

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
    SH_LOOKUP = 1 << 0,       /* file is a name to be looked up in the command's PATH */
    SH_CLOSE_FDS = 1 << 1,    /* the command keeps the fd map's keys and nothing else */
    SH_STANDARD_FDS = 1 << 2, /* keys of the fd map that are closed here are dropped */
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

enum sh_state {
    SH_NEW,     /* nothing was started */
    SH_RUNNING, /* ours to wait for */
    SH_ENDED,   /* reaped: status is exact */
    SH_LOST,    /* ended, but somebody else took the status */
    SH_GIVEN,   /* the caller took the pid and reaps it */
};

/* The handle's memory: it exists before the child does. */
struct sh_process {
    int32_t pid;
    int32_t pidfd;     /* -1: none, or closed after reaping */
    int32_t state;     /* enum sh_state */
    int32_t status;    /* wait status, when ended */
    int32_t owner;     /* pid of the process that may wait for it */
    uint32_t forks;    /* and how many forks lay behind that process */
    uint32_t lock;     /* guards all fields between start and end */
    int32_t users;     /* threads blocked on pidfd */
    int32_t report;    /* read end of the report pipe while a pre_exec child starts, or -1 */
    int64_t user_usec; /* rusage of the command */
    int64_t system_usec;
    int64_t maxrss_kib;
    struct sh_result result;
};

/* The waiting call's copy of the output, for logfile. */
struct sh_log {
    int32_t source;                /* read end of the pipe, O_NONBLOCK; -1 when closed */
    int32_t out;                   /* original fd 1; -1: none */
    int32_t file;                  /* the log */
    int32_t out_error, file_error; /* first errno of each; that copy ended there */
    uint32_t length, file_done, out_done;
    int32_t left;     /* bytes still to drain after the command's end; -1: it runs */
    int32_t pipe_end; /* our copy of the write end until the start; then -1 */
    char *buffer;
    uint32_t size;
};

/* Everything that the child obeys; built by the parent before the clone. */
struct sh_orders {
    const struct sh_request *request;
    char *const *argv;
    char *const *envp;
    const char *file;
    const struct sh_fdpair *fds; /* the request's, less the dropped standard ones */
    uint32_t nfds;
    const struct sh_fdstep *steps;
    uint32_t nsteps;
    int *parked;       /* where the child notes its parked duplicates */
    int shared_files;  /* >= 0: the fd table is the parent's; detach, keeping fds below this */
    int clear_signals; /* the clone did not reset caught signals */
    int report;        /* write end of the report pipe; -1: result is shared memory */
    uint64_t mask;     /* the command's signal mask */
    volatile struct sh_result *result;
};

/* spawnhelper.c: runs in the child. */
_Noreturn void sh_child(void *orders);
void sh_child_prepare(const struct sh_orders *orders);
_Noreturn void sh_child_execute(const struct sh_orders *orders);
_Noreturn void sh_child_fail(const struct sh_orders *orders, int stage, int error, int detail,
                             const char *text, uint32_t length);

/* launch.c: the start. Runs in the parent, without the GIL. */

/* Once, at import. */
int sh_initialize(void);
const char *sh_stage_name(int stage);
/* 0, or a negative errno with process->result filled in. */
int sh_start(const struct sh_request *request, struct sh_process *process);
/* sh_start, then sh_wait_log (sh_wait when log is NULL); log->pipe_end is closed between. */
int sh_run(const struct sh_request *request, struct sh_process *process, int64_t nsec,
           struct sh_log *log);
/* First executable regular file along path: 0 with its name in buffer, or a negative errno. */
int sh_find(const char *name, const char *path, const char *cwd, char *buffer, uint32_t size);

/* wait.c: the handle's life after the start. */

/* 1: ended; 0: not yet: the time is over or a signal came, whose handler only
 * Python can run; -EPERM: not a child of this process. nsec < 0: no limit. */
int sh_wait(struct sh_process *process, int64_t nsec);
/* The same; meanwhile copies the output. */
int sh_wait_log(struct sh_process *process, int64_t nsec, struct sh_log *log);
/* 0 (also when the process has ended), or a negative errno. */
int sh_signal(struct sh_process *process, int number);
/* Leaves the child to the caller: its pid, or a negative errno. */
int sh_give(struct sh_process *process);
/* Closes what the handle still holds, without waiting. */
void sh_drop(struct sh_process *process);
int sh_mine(const struct sh_process *process);
void sh_adopt(struct sh_process *process, int pid, int pidfd);
/* Reaps a child that never became the command; its wait status. */
int sh_reap_failed(int pid, int pidfd);

/* pyfork.c: the slow path, with Python code before exec. */

/* 0 in the parent, 1 in the child (signals blocked), or a negative errno. */
int sh_fork(const struct sh_request *request, struct sh_process *process,
            struct sh_orders **orders);
/* Blocks until the child exec'd or failed: 0, 1 (a signal came: call again), or
 * negative with process->result filled in. bytes receives one or two struct
 * sh_result, then text that says what pre_exec raised. */
int sh_fork_result(struct sh_process *process, char *bytes, uint32_t size, uint32_t *length);

/* launch.c, for pyfork.c */
struct sh_scratch;
struct sh_scratch *sh_prepare(const struct sh_request *request, struct sh_process *process,
                              int reserved, struct sh_orders **orders);
void sh_release(struct sh_scratch *scratch);
void sh_block_signals(uint64_t *before);
void sh_restore_signals(const uint64_t *before);
int sh_refuse(struct sh_process *process, int stage, int error, int detail);

#endif
