/* What isolation_fault.c sweeps: kinds of isolated starts, and what is denied to each. */
#ifndef INSTRUMENTS_ISOLATION_SCENARIOS_H
#define INSTRUMENTS_ISOLATION_SCENARIOS_H

#include <errno.h>
#include <stdint.h>

#include "spawnhelper.h"
#include "sys.h"

enum { PARENT, MIDDLE, HOLDER, COMMAND, ROLES };
static const char *const role_names[] = {"parent", "intermediate", "holder", "command"};

enum { MAX_DENIED = 3 };

enum scenario_flags {
    IN_CGROUP = 1 << 0,    /* in a v2 cgroup of its own */
    IN_SET = 1 << 1,       /* entering a set that was prepared before */
    MAKES_SET = 1 << 2,    /* preparing one, and its end */
    GIVES = 1 << 3,        /* the caller reaps */
    CLOSES = 1 << 4,       /* the set is closed under the command */
    LEAVES = 1 << 5,       /* the command leaves an orphan */
    COLD = 1 << 6,         /* no pooled memory */
    NO_STANDARD = 1 << 7,  /* our 0, 1 and 2 are closed */
    FOREIGN_USER = 1 << 8, /* drops root */
    NO_HOLDER_FILE = 1 << 9,
    QUICK = 1 << 10, /* also in the quick sweep */
};

struct denied {
    int role;
    long number, a; /* a: the first argument; 0: any */
    int error;
    int times; /* 0: always */
    int after; /* so many are allowed first */
};

struct scenario {
    const char *name;
    uint32_t flags;
    uint32_t namespaces;
    uint32_t request; /* enum sh_request_flags */
    uint32_t avoid;
    int mode; /* enum sh_start, as if found out before */
    const char *file, *cwd;
    struct denied denied[MAX_DENIED];
    int stage, error; /* of the clean run */
    uint32_t missing; /* SH_NEW*, under best effort, in the clean run */
};

#define NET (SH_NEWNET | SH_NEWUTS)
#define FULL (NET | SH_NEWIPC | SH_NEWNS | SH_NEWPID)
#define IDS (SH_SET_UID | SH_SET_GID | SH_SET_GROUPS)
#define ALL_ELSE (IDS | SH_SET_UMASK | SH_CLOSE_FDS)
#define SESSION SH_NEW_SESSION
#define USER (SH_NEWUSER | FULL)

static const struct scenario scenarios[] = {
    {.name = "net", .flags = QUICK, .namespaces = NET},
    {.name = "ipc", .namespaces = SH_NEWIPC},
    {.name = "mount", .flags = QUICK, .namespaces = SH_NEWNS},
    {.name = "mount, root is no mount",
     .namespaces = SH_NEWNS,
     .denied = {{COMMAND, SYS_mount, 0, EINVAL, 1, 0}}},
    {.name = "pid", .namespaces = SH_NEWPID | SH_NEWNS, .request = SESSION},
    {.name = "full", .flags = QUICK | LEAVES, .namespaces = FULL, .request = SESSION},
    {.name = "full, cold", .flags = COLD, .namespaces = FULL, .request = SESSION},
    {.name = "full, given", .flags = GIVES, .namespaces = FULL, .request = SESSION},
    {.name = "full, cgroup", .flags = QUICK | IN_CGROUP, .namespaces = FULL, .request = SESSION},
    {.name = "full, ids, fds, cwd",
     .flags = QUICK | FOREIGN_USER,
     .namespaces = FULL,
     .request = SESSION | ALL_ELSE,
     .cwd = "/proc"},
    {.name = "full, ids, own memory",
     .flags = FOREIGN_USER,
     .namespaces = FULL,
     .request = SESSION | ALL_ELSE,
     .cwd = "/proc",
     .denied = {{PARENT, SYS_openat, 0, ENOENT, 1, 0}}},
    {.name = "full, no standard fds", .flags = NO_STANDARD, .namespaces = FULL, .request = SESSION},
    {.name = "full, fds copied",
     .namespaces = FULL,
     .request = SESSION | SH_CLOSE_FDS,
     .avoid = SH_AVOID_SHARED_FILES},
    {.name = "full, no holder file",
     .flags = NO_HOLDER_FILE,
     .namespaces = FULL,
     .request = SESSION},
    {.name = "full, no netlink",
     .namespaces = FULL,
     .request = SESSION,
     .denied = {{COMMAND, SYS_socket, 16, EPERM, 0, 0}}},
    {.name = "full, unshare denied",
     .namespaces = FULL,
     .request = SESSION,
     .denied = {{MIDDLE, SYS_unshare, 0, EPERM, 0, 0}, {COMMAND, SYS_unshare, 0, EPERM, 0, 0}}},
    {.name = "net, unshare denied",
     .namespaces = NET,
     .denied = {{COMMAND, SYS_unshare, 0, EPERM, 0, 0}}},
    {.name = "full, program missing",
     .flags = QUICK,
     .namespaces = FULL,
     .request = SESSION,
     .file = "/nonexistent",
     .stage = SH_STAGE_EXEC,
     .error = ENOENT},
    {.name = "net, by clone", .namespaces = NET, .mode = SH_START_CLONE},
    {.name = "full, by clone",
     .flags = QUICK,
     .namespaces = FULL,
     .request = SESSION,
     .mode = SH_START_CLONE},
    {.name = "full, cgroup, ids, by clone",
     .flags = IN_CGROUP | FOREIGN_USER,
     .namespaces = FULL,
     .request = SESSION | ALL_ELSE,
     .mode = SH_START_CLONE,
     .cwd = "/proc"},
    {.name = "net, cgroup, by pipe",
     .flags = IN_CGROUP,
     .namespaces = NET | SH_NEWIPC | SH_NEWNS,
     .mode = SH_START_PIPE},
    {.name = "cgroup", .flags = IN_CGROUP},
    {.name = "set of net", .flags = IN_SET, .namespaces = NET},
    {.name = "set", .flags = QUICK | IN_SET, .namespaces = FULL, .request = SESSION},
    {.name = "set, ids, fds, cgroup",
     .flags = IN_SET | IN_CGROUP | FOREIGN_USER,
     .namespaces = FULL,
     .request = SESSION | ALL_ELSE,
     .cwd = "/proc"},
    {.name = "set, by the intermediate",
     .flags = QUICK | IN_SET,
     .namespaces = FULL,
     .request = SESSION,
     .avoid = SH_AVOID_THREAD_SETNS},
    {.name = "set, by the intermediate, ids, fds",
     .flags = IN_SET | FOREIGN_USER,
     .namespaces = FULL,
     .request = SESSION | ALL_ELSE,
     .avoid = SH_AVOID_THREAD_SETNS,
     .cwd = "/proc"},
    {.name = "set, by clone",
     .flags = IN_SET,
     .namespaces = FULL,
     .request = SESSION,
     .mode = SH_START_CLONE},
    {.name = "set, by the intermediate, by clone",
     .flags = IN_SET,
     .namespaces = FULL,
     .request = SESSION,
     .avoid = SH_AVOID_THREAD_SETNS,
     .mode = SH_START_CLONE},
    {.name = "set, by pipe",
     .flags = IN_SET,
     .namespaces = FULL,
     .request = SESSION,
     .mode = SH_START_PIPE},
    {.name = "set, given", .flags = IN_SET | GIVES, .namespaces = FULL, .request = SESSION},
    {.name = "set, closed meanwhile",
     .flags = QUICK | IN_SET | CLOSES,
     .namespaces = FULL,
     .request = SESSION},
    {.name = "preparing", .flags = QUICK | MAKES_SET, .namespaces = FULL},
    {.name = "preparing net", .flags = MAKES_SET, .namespaces = NET},
    {.name = "preparing, by clone", .flags = MAKES_SET, .namespaces = FULL, .mode = SH_START_CLONE},
    {.name = "preparing, unshare denied",
     .flags = MAKES_SET,
     .namespaces = FULL,
     .denied = {{MIDDLE, SYS_unshare, 0, EPERM, 0, 0}, {HOLDER, SYS_unshare, 0, EPERM, 0, 0}}},
    {.name = "preparing, best effort",
     .flags = MAKES_SET,
     .namespaces = FULL,
     .request = SH_BEST_EFFORT},
    {.name = "user", .flags = QUICK, .namespaces = USER, .request = SESSION},
    {.name = "user, root inside, no pid",
     .namespaces = SH_NEWUSER | NET | SH_NEWNS,
     .request = SH_USER_ROOT},
    {.name = "user, fds, by clone",
     .namespaces = USER,
     .request = SESSION | SH_CLOSE_FDS | SH_USER_ROOT,
     .mode = SH_START_CLONE},
    {.name = "user, best effort", .namespaces = USER, .request = SESSION | SH_BEST_EFFORT},
    {.name = "user, unshare denied",
     .namespaces = USER,
     .request = SESSION,
     .denied = {{MIDDLE, SYS_unshare, 0, EPERM, 0, 0}, {COMMAND, SYS_unshare, 0, EPERM, 0, 0}}},
    {.name = "set of user", .flags = IN_SET, .namespaces = USER, .request = SESSION},
    {.name = "set of user, no pid",
     .flags = IN_SET,
     .namespaces = SH_NEWUSER | NET,
     .request = SH_USER_ROOT},
    {.name = "preparing user", .flags = MAKES_SET, .namespaces = USER},
    {.name = "full, signals denied",
     .namespaces = FULL,
     .request = SESSION,
     .denied = {{PARENT, SYS_pidfd_send_signal, 0, EPERM, 0, 0}}},
    {.name = "set, by the intermediate, signals denied",
     .flags = IN_SET,
     .namespaces = FULL,
     .request = SESSION,
     .avoid = SH_AVOID_THREAD_SETNS,
     .denied = {{PARENT, SYS_pidfd_send_signal, 0, EPERM, 0, 0}}},
    {.name = "preparing, signals denied",
     .flags = MAKES_SET,
     .namespaces = FULL,
     .denied = {{PARENT, SYS_pidfd_send_signal, 0, EPERM, 0, 0}}},
    {.name = "net, best effort", .namespaces = NET, .request = SH_BEST_EFFORT},
    {.name = "full, best effort",
     .flags = QUICK,
     .namespaces = FULL,
     .request = SESSION | SH_BEST_EFFORT},
    {.name = "full, cgroup, best effort",
     .flags = IN_CGROUP,
     .namespaces = FULL,
     .request = SESSION | SH_BEST_EFFORT},
    {.name = "full, best effort, by clone",
     .namespaces = FULL,
     .request = SESSION | SH_BEST_EFFORT,
     .mode = SH_START_CLONE},
    {.name = "full, best effort, no net",
     .flags = QUICK,
     .namespaces = FULL,
     .request = SESSION | SH_BEST_EFFORT,
     .denied = {{COMMAND, SYS_unshare, 0, EPERM, 0, 0},
                {PARENT, SYS_clone3, 0, EPERM, 1, 1},
                {MIDDLE, SYS_unshare, SH_NEWNET, EPERM, 0, 0}},
     .missing = SH_NEWNET},
    {.name = "net, best effort, by pipe",
     .namespaces = NET | SH_NEWIPC | SH_NEWNS,
     .request = SESSION | SH_BEST_EFFORT,
     .mode = SH_START_PIPE},
};
enum { SCENARIOS = sizeof scenarios / sizeof *scenarios };

#endif
