/* The contract between Python, the parent (launch.c) and the child (spawnhelper.c). */
#ifndef SPAWNHELPER_H
#define SPAWNHELPER_H

#include <stddef.h>
#include <stdint.h>

#include "fdplan.h"
#include "sys.h"

/* One entry for each step that can fail, in the child's order, and what
 * isolation="best-effort" makes of a failure there. Users see these names as
 * spawnhelper.Stage. */
#define SH_STAGES(X)                                                                               \
    X(CLONE, FATAL)                                                                                \
    X(CGROUP, TOLERATED)                                                                           \
    X(NAMESPACES, TOLERATED)                                                                       \
    X(PROPAGATION, TOLERATED)                                                                      \
    X(PROC, FATAL)                                                                                 \
    X(HOSTNAME, TOLERATED)                                                                         \
    X(LOOPBACK, TOLERATED)                                                                         \
    X(FDS, FATAL)                                                                                  \
    X(GROUPS, FATAL)                                                                               \
    X(GID, FATAL)                                                                                  \
    X(UID, FATAL)                                                                                  \
    X(UMASK, FATAL)                                                                                \
    X(CHDIR, FATAL)                                                                                \
    X(PRE_EXEC, FATAL)                                                                             \
    X(EXEC, FATAL)

enum sh_stage {
#define SH_STAGE(name, policy) SH_STAGE_##name,
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
    SH_NEW_SESSION = 1 << 7,
    SH_BEST_EFFORT = 1 << 8, /* failures of tolerated stages become notes */
    SH_USER_ROOT = 1 << 9,   /* the caller is root in its fresh user namespace, else itself */
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
    uint32_t namespaces; /* SH_NEW*: fresh ones for this command */
    struct sh_set *set;  /* a prepared namespace set to enter, or NULL */
    const char *cgroup;  /* directory to join, or NULL */
    int32_t output;      /* a log's pipe, which 1 and 2 become instead of what fds says; 0: none */
};

/* A failure that was tolerated. */
struct sh_note {
    int32_t stage, error, detail;
};

enum { SH_NOTES = 12 }; /* more than can happen: six namespaces, four other stages */

/* How it ended, before exec. error is 0 when the command was exec'd. */
struct sh_result {
    int32_t stage;   /* enum sh_stage: the step under way */
    int32_t error;   /* errno */
    int32_t detail;  /* the fd, uid, gid or signal concerned */
    int32_t started; /* 1 when a child existed */
    uint32_t nnotes;
    struct sh_note notes[SH_NOTES];
};

/* Kernel features that may be missing, or denied by a seccomp filter. */
enum sh_avoid {
    SH_AVOID_CLONE3 = 1 << 0,
    SH_AVOID_VFORK = 1 << 1, /* as if memory were not really shared */
    SH_AVOID_PIDFD = 1 << 2,
    SH_AVOID_CLOSE_RANGE = 1 << 3,
    SH_AVOID_LISTING = 1 << 4, /* /proc/self/fd */
    SH_AVOID_SHARED_FILES = 1 << 5,
    SH_AVOID_PIDFD_INFO = 1 << 6,   /* the exit status of a process that somebody else reaped */
    SH_AVOID_THREAD_SETNS = 1 << 7, /* the calling thread enters no pid namespace */
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

/* sh_result.detail: unshare(2) was refused; a clone that asks for the same may do. */
enum { SH_UNSHARE_REFUSED = -3 };

enum sh_state {
    SH_NEW,     /* nothing was started */
    SH_RUNNING, /* ours to wait for */
    SH_ENDING,  /* reaped; the rest of its namespace set is being killed */
    SH_ENDED,   /* reaped: status is exact */
    SH_LOST,    /* ended, but somebody else took the status */
    SH_GIVEN,   /* the caller took the pid and reaps it */
};

enum { SH_USAGE = 16 };

/* The handle's memory: it exists before the child does. */
struct sh_process {
    int32_t pid;
    int32_t pidfd;   /* 0: none, or closed after reaping; never 0, 1, 2 */
    int32_t state;   /* enum sh_state */
    int32_t status;  /* wait status, when ended */
    uint32_t forks;  /* forks before the process that may wait for it */
    uint32_t lock;   /* guards all fields between start and end */
    int32_t users;   /* threads blocked in a wait */
    int32_t zombie;  /* 1: ended, but still to be reaped (without pidfd only) */
    int32_t report;  /* read end of the report pipe while a pre_exec child starts, or 0 */
    int32_t outcome; /* the state after SH_ENDING */
    int32_t holder;  /* pid 1 of its pid namespace, our child too; 0: none */
    int32_t holder_pidfd;
    uint64_t holder_id;   /* what that number stands for, */
    uint64_t pidfd_id;    /* and pidfd's; 0: not asked, in a call that starts and waits */
    struct sh_set *set;   /* the set that it was started into, while it runs */
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
    int32_t left;          /* bytes still to drain after the command's end; -1: it runs */
    int32_t opened;        /* 1: all is open */
    int32_t closed_source; /* or: a descriptor of the fd map that is not open, -1: none, */
    int32_t open_error;    /* and the errno */
    uint32_t forks;        /* forks before the process that opened it */
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
    int own_memory;     /* the child has a copy of our memory */
    int report;         /* write end of the report pipe; -1: result is shared memory */
    int guard[2];       /* close-on-exec pipe: its end says that exec switched memory; -1: none */
    uint32_t avoid;     /* enum sh_avoid */
    uint64_t mask;      /* the command's signal mask */
    struct sh_isolation *isolation; /* NULL: none; only the parent changes it */
    volatile struct sh_result *result;
    void (*failed)(
        void); /* NULL: a failure ends the child; else this is called, and comes not back */
};

/* The namespaces, in the order in which they can be entered: a user namespace
 * gives the rights for the others, and a mount namespace moves the root. The
 * names are those of /proc/PID/ns. */
#define SH_NAMESPACES(X)                                                                           \
    X(USER, "user")                                                                                \
    X(PID, "pid_for_children")                                                                     \
    X(NET, "net")                                                                                  \
    X(UTS, "uts")                                                                                  \
    X(IPC, "ipc")                                                                                  \
    X(NS, "mnt")

enum sh_namespace {
#define SH_NAMESPACE(name, file) SH_NAMESPACE_##name,
    SH_NAMESPACES(SH_NAMESPACE)
#undef SH_NAMESPACE
        SH_NAMESPACE_COUNT
};

enum { SH_NEW_ALL = SH_NEWUSER | SH_NEWPID | SH_NEWNET | SH_NEWUTS | SH_NEWIPC | SH_NEWNS };

/* A prepared namespace set. Its holder keeps it alive and is pid 1 of its pid namespace. */
struct sh_set {
    uint32_t namespaces; /* SH_NEW* */
    int32_t holder;      /* pid */
    int32_t holder_pidfd;
    int32_t line;                     /* write end of the holder's pipe */
    int32_t root;                     /* O_PATH: / inside; -1: no mount namespace */
    int32_t fds[SH_NAMESPACE_COUNT];  /* what setns(2) takes; -1: not in the set */
    uint64_t ids[SH_NAMESPACE_COUNT]; /* what the numbers stood for: the program may close them */
    uint64_t root_id, line_id, pidfd_id;
    uint32_t forks; /* as in sh_process */
    uint32_t lock;  /* guards what follows */
    int32_t closed;
    int32_t commands; /* handles whose commands run in it */
    int32_t *given;   /* pids of commands that the caller reaps: the holder may wait for them */
    int32_t ngiven;
    int32_t starts;      /* under way */
    int32_t users;       /* the handles, starts under way, and Python's object */
    struct sh_set *next; /* of all */
    struct sh_result result;
};

/* What clone3 answers when it is the cgroup that it refuses (clone(2)). */
static inline int sh_is_cgroup_error(long error) {
    return error == -EACCES || error == -EBUSY || error == -EOPNOTSUPP || error == -ENODEV ||
           error == -EBADF || error == -EINVAL || error == -E2BIG || error == -ENOENT;
}

/* A process that shares our memory until exec. */
struct sh_birth {
    int32_t pid;
    int32_t pidfd; /* -1: none */
    uint32_t busy; /* CLONE_CHILD_CLEARTID: not zero while it uses our memory */
};

/* What the intermediate and its children tell us. */
struct sh_births {
    struct sh_birth holder, command;
    int32_t holder_stage, holder_error;
    uint32_t namespaces; /* SH_NEW* that were had */
    /* Open in our table, in passing; -1: none. */
    int32_t directory;                     /* /proc/PID/ns */
    int32_t maps[3], nmaps;                /* id maps */
    int32_t fds[SH_NAMESPACE_COUNT], root; /* of a set that is being made */
};

enum { SH_HOLDER_PROGRAM = 3 }; /* where it execs itself from; closed by that */

/* What isolation adds to the orders. */
struct sh_isolation {
    uint32_t fresh; /* SH_NEW* to be had, */
    int one_by_one; /* each by an unshare of its own, so that one can be refused alone */
    int by_clone;   /* or as flags of clone: unshare is denied */
    int best_effort;
    uint32_t uid, gid;   /* effective ones of this process, which a user namespace maps */
    int intermediate;    /* a short-lived process makes holder and command */
    int clone3;          /* in this way */
    struct sh_set *set;  /* or entered; */
    int for_set;         /* the holder prepares everything, and there is no command */
    int cgroup;          /* directory to join, or -1; */
    int cgroup_at_birth; /* by CLONE_INTO_CGROUP, else by writing */
    int owner;           /* pidfd of this process */
    int program;         /* the holder, O_PATH */
    int ready;           /* eventfd: the holder runs */
    int line[2];         /* the holder's pipe: the command's pid, or end of file */
    int home;            /* pidfd of this process: the thread's way back; -1: not needed */
    int tries;
    int left_home;                      /* what the kernel said when it left */
    int highest;                        /* of these descriptors */
    char *holder_stack, *command_stack; /* their tops */
    uint64_t stack_size;
    struct sh_births *births; /* the own ones, or shared memory */
    struct sh_births own_births;
    struct sh_set *made; /* where the intermediate leaves the set's descriptors */
    int forks;           /* for a fork of Python: no intermediate, nothing at birth */
    int nnotes;          /* what the parent has tolerated */
    struct sh_note notes[SH_NOTES];
};

/* spawnhelper.c: runs in the child. */
_Noreturn void sh_child(void *orders);
_Noreturn void sh_intermediate(void *orders);
/* Clones the holder; runs in the intermediate, or in the thread that will fork. 0 or an error. */
long sh_make_holder(const struct sh_orders *orders);
void sh_child_prepare(const struct sh_orders *orders);
void sh_child_arrange(const struct sh_orders *orders); /* the descriptors only */
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
/* Whether isolation="best-effort" goes on when this stage failed. */
int sh_stage_tolerated(int stage);
/* 0, or a negative errno with process->result filled in. */
int sh_start(const struct sh_request *request, struct sh_process *process);
/* sh_start, then sh_wait. */
int sh_run(const struct sh_request *request, struct sh_process *process, int64_t nsec);
/* The same for a request whose strings and set are given beside it: Python then
 * passes its bytes without a copy, and one request serves many calls. What has
 * run answers with 1 + its wait status, if that is known. */
int sh_start_packed(const struct sh_request *rest, const char *file, const char *argv,
                    uint32_t argc, const char *env, uint32_t envc, struct sh_set *set, int output,
                    struct sh_process *process);
int sh_run_packed(const struct sh_request *rest, const char *file, const char *argv, uint32_t argc,
                  const char *env, uint32_t envc, struct sh_set *set, struct sh_process *process);
/* With a log: opened first, and closed unless it answers with 0. */
int sh_run_logged(const struct sh_request *rest, const char *file, const char *argv, uint32_t argc,
                  const char *env, uint32_t envc, struct sh_set *set, struct sh_process *process,
                  struct sh_log *log, const char *name);

/* logpipe.c: memory of zeros is a log with nothing open. */

/* 0 or a negative errno, with nothing open. The request tells where the original
 * stdout is. With `waits` the reader is to be the waiting call: it must not
 * block in read. */
int sh_log_open(struct sh_log *log, const struct sh_request *request, const char *name, int waits);
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
/* The end, if it has come: as sh_wait(process, 0), but no poll before. */
int sh_reap(struct sh_process *process);
/* The same; does not even wait for the moment in which a namespace set dies. */
int sh_reap_now(struct sh_process *process);
/* Kills and waits: 1: reaped; 0: a signal came, call again; or a negative errno. */
int sh_finish(struct sh_process *process);
/* Keeps the pidfd open, whoever reaps, until sh_release_hold(): the pidfd; -1: ended, or none. */
int sh_hold(struct sh_process *process);
/* The pidfd of a command that runs, or -1. */
int sh_pidfd(struct sh_process *process);
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

/* isolate.c */

/* The holder's program, and its bytes for where the path leads nowhere; once, at import. */
void sh_set_holder(const char *path, const char *image, uint32_t size);

/* sets.c: prepared namespace sets. */

struct sh_set *sh_set_new(void);
/* Prepares one: 0, or a negative errno with set->result filled in. */
int sh_set_open(struct sh_set *set, uint32_t namespaces, uint32_t flags);
/* Kills what runs in it. 1: over; 0: not yet, or a signal came: call again. */
int sh_set_close(struct sh_set *set);
/* Python's object goes away; 1: the set was still open. */
int sh_set_drop(struct sh_set *set);
/* The same for Python's garbage collector; warns if the set was open. */
void sh_set_discard(void *set);
int sh_set_mine(const struct sh_set *set);
/* Whether its holder has ended. */
int sh_set_is_dead(const struct sh_set *set);

/* alone.c: the child's stages in the calling process itself. */

/* Everything up to exec, with all signals blocked: 0, or a negative errno with
 * process->result filled in. A pid namespace is for children only: not here. The caller then calls
 * sh_become_execute() or ends. */
int sh_become(const struct sh_request *request, struct sh_process *process,
              struct sh_orders **orders);
/* Returns only on failure: a negative errno, result filled in. */
int sh_become_execute(const struct sh_orders *orders);
/* The fd map alone: 0, or a negative errno with process->result filled in. */
int sh_arrange(const struct sh_request *request, struct sh_process *process);
/* errno of unshare(2) in a throw-away process; 0: it works. */
int sh_try_unshare(int flags);
/* lo of this network namespace: up, 10.0.0.1/8 and fd::1/8. 0 or a negative errno. */
int sh_raise_loopback(void);

/* pyfork.c: the slow path, with Python code before exec. */

/* 0 in the parent, 1 in the child (signals blocked), or a negative errno. */
int sh_fork(const struct sh_request *request, struct sh_process *process,
            struct sh_orders **orders);
/* Blocks until the child exec'd or failed: 0, 1 (a signal came: call again), or
 * negative with process->result filled in. bytes receives one or two struct
 * sh_result, then text that says what pre_exec raised. */
int sh_fork_result(struct sh_process *process, char *bytes, uint32_t size, uint32_t *length);

#endif
