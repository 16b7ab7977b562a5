/* The calls that isolated starts make, and the stages that their failure can have. */
#ifndef INSTRUMENTS_ISOLATION_CALLS_H
#define INSTRUMENTS_ISOLATION_CALLS_H

#include <stddef.h>

#include "spawnhelper.h"
#include "sys.h"

enum { CALLOC = -1, MALLOC = -2 }; /* libc's */

#define S(stage) (1U << SH_STAGE_##stage)
#define ANY (~0U)

static const struct known {
    long number;
    const char *name;
    unsigned parent, child; /* stages; 0: its failure fails no start */
} known[] = {
    {CALLOC, "calloc", S(CLONE), 0}, /* and of the set itself */
    {MALLOC, "malloc", 0, 0},
    {SYS_chdir, "chdir", 0, S(CHDIR)},
    {SYS_chroot, "chroot", 0, S(NAMESPACES) | S(PROPAGATION)},
    {SYS_clock_nanosleep, "clock_nanosleep", 0, 0},
    {SYS_clone, "clone", S(CLONE) | S(NAMESPACES), S(CLONE) | S(NAMESPACES)},
    {SYS_clone3, "clone3", S(CLONE) | S(NAMESPACES) | S(CGROUP),
     S(CLONE) | S(NAMESPACES) | S(CGROUP)},
    {SYS_close, "close", 0, 0},
    {SYS_close_range, "close_range", 0, S(FDS)},
    {SYS_dup3, "dup3", 0, S(FDS)},
    {SYS_eventfd2, "eventfd2", S(CLONE) | S(NAMESPACES), 0},
    {SYS_execve, "execve", 0, S(EXEC)},
    {SYS_execveat, "execveat", 0, S(NAMESPACES)},
    {SYS_exit_group, "exit_group", 0, 0},
    {SYS_faccessat, "faccessat", S(CLONE) | S(NAMESPACES), 0},
    {SYS_fchdir, "fchdir", 0, S(NAMESPACES) | S(PROPAGATION)},
    {SYS_fcntl, "fcntl", S(CLONE) | S(FDS) | S(NAMESPACES) | S(CGROUP), S(FDS)},
    {SYS_getcwd, "getcwd", 0, S(CHDIR)},
    {SYS_getdents64, "getdents64", 0, S(FDS)},
    {SYS_getpid, "getpid", 0, 0},
    {SYS_getpriority, "getpriority", 0, 0},
    {SYS_gettid, "gettid", 0, 0},
    {SYS_ioctl, "ioctl", 0, S(LOOPBACK)},
    {SYS_kill, "kill", 0, 0},
    {SYS_memfd_create, "memfd_create", S(CLONE) | S(NAMESPACES), 0},
    {SYS_mmap, "mmap", S(CLONE), 0},
    {SYS_mount, "mount", 0, S(PROPAGATION) | S(PROC)},
    {SYS_mprotect, "mprotect", S(CLONE), 0},
    {SYS_nanosleep, "nanosleep", 0, 0},
    {SYS_openat, "openat", S(CLONE) | S(CGROUP) | S(NAMESPACES),
     S(CGROUP) | S(NAMESPACES) | S(PROPAGATION)},
    {SYS_pidfd_open, "pidfd_open", S(CLONE) | S(NAMESPACES), S(NAMESPACES) | S(PROPAGATION)},
    {SYS_pidfd_send_signal, "pidfd_send_signal", 0, 0},
    {SYS_pipe2, "pipe2", S(CLONE) | S(NAMESPACES), 0},
    {SYS_ppoll, "ppoll", 0, 0},
    {SYS_prctl, "prctl", 0, 0},
    {SYS_prlimit64, "prlimit64", 0, S(FDS)},
    {SYS_read, "read", 0, S(NAMESPACES)},
    {SYS_recvfrom, "recvfrom", 0, S(LOOPBACK)},
    {SYS_rt_sigaction, "rt_sigaction", 0, S(CLONE)},
    {SYS_rt_sigprocmask, "rt_sigprocmask", 0, S(EXEC)},
    {SYS_sendto, "sendto", 0, S(LOOPBACK)},
    {SYS_sethostname, "sethostname", 0, S(HOSTNAME)},
    {SYS_setns, "setns", S(CLONE) | S(NAMESPACES), S(NAMESPACES) | S(PROPAGATION)},
    {SYS_setsid, "setsid", 0, S(CLONE)},
    {SYS_socket, "socket", 0, S(LOOPBACK)},
    {SYS_umask, "umask", 0, S(UMASK)},
    {SYS_unshare, "unshare", S(CLONE), S(NAMESPACES) | S(FDS)},
    {SYS_waitid, "waitid", 0, 0},
    {SYS_write, "write", S(CLONE) | S(NAMESPACES), S(CGROUP) | S(NAMESPACES) | S(CLONE)},
    {SH_SYS_setgroups, "setgroups", 0, S(GROUPS)},
    {SH_SYS_setresgid, "setresgid", 0, S(GID)},
    {SH_SYS_setresuid, "setresuid", 0, S(UID)},
};

static const struct known *find_known(long number) {
    static const struct known unknown = {0, "a call that no table knows", 0, 0};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].number == number)
            return &known[i];
    return &unknown;
}

#endif
