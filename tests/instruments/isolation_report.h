/* What isolation_target.c, started by isolation_fault.c, sees of its isolation. */
#ifndef INSTRUMENTS_ISOLATION_REPORT_H
#define INSTRUMENTS_ISOLATION_REPORT_H

#include <stdint.h>

/* The names below /proc/self/ns. */
#define REPORT_NAMESPACES(X) X("net") X("uts") X("ipc") X("mnt") X("pid") X("user")

enum { REPORT_NET, REPORT_UTS, REPORT_IPC, REPORT_MNT, REPORT_PID, REPORT_USER, REPORT_COUNT };
enum { REPORT_FD = 20, REPORT_STATUS = 42 };

struct report {
    uint32_t valid; /* written last */
    int32_t pid, parent, session;
    int32_t proc_is_own;     /* /proc numbers processes as getpid() does */
    int32_t root_propagates; /* / has peers */
    int32_t loopback_up, has_address;
    uint64_t inodes[REPORT_COUNT];
    uint64_t root, cwd;    /* inodes */
    uint64_t fds;          /* which of the first 64 are open */
    uint64_t mask, caught; /* signals that are blocked, or not at their default */
    uint32_t uid, gid, groups, umask;
    char host[64], cgroup[64];
    char first[16]; /* the name of pid 1, as /proc has it */
};

#endif
