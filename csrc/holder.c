/* The holder: keeps a namespace set alive, as pid 1 if it has a pid namespace.
 *
 *   fd 0  pidfd of the owner     fd 1  a pipe: the command's pid (4 bytes), or end of file
 *   fd 2  an eventfd, which says that we run
 *
 * It ends with the owner, with the command or, if there is none, with the
 * pipe; the kernel then kills everything left in the pid namespace
 * (pid_namespaces(7)). It blocks all signals, and SIGCHLD is ignored from
 * birth, so that the kernel reaps orphans without waking it. Libc-free: it
 * starts in a fraction of libc's time and needs one page of stack.
 */
#include <poll.h>

#include "sys.h"

enum { OWNER, LINE, COMMAND, COUNT, READY = 2 };

_Noreturn static void end(void) {
    for (;;)
        SYS(exit_group, 0);
}

/* Its number in this namespace. It cannot be another's: the owner reaps the
 * command only after this start, and numbers are not given again at once. */
static void watch(struct pollfd *fds) {
    int32_t pid = 0;
    long length;
    do
        length = SYS(read, LINE, &pid, sizeof pid);
    while (length == -EINTR);
    if (length != sizeof pid)
        end();
    long fd = SYS(pidfd_open, pid, 0);
    if (fd < 0)
        end(); /* gone already */
    fds[COMMAND].fd = (int)fd;
    fds[LINE].fd = -1;
    SYS(close, LINE);
}

/* Until exec our memory was the owner's, which nobody in the set may reach. */
static void announce(void) {
    uint64_t one = 1;
    if (SYS(write, READY, &one, sizeof one) != sizeof one)
        end();
    SYS(close, READY);
}

#ifdef __x86_64__
__attribute__((force_align_arg_pointer)) /* the ABI aligns calls, not the entry */
#endif
_Noreturn void _start(void) {
    struct pollfd fds[COUNT];
    for (int i = 0; i < COUNT; i++) {
        fds[i].fd = i == COMMAND ? -1 : i;
        fds[i].events = POLLIN;
        fds[i].revents = 0;
    }
    announce();
    for (;;) {
        long ready = SYS(ppoll, fds, COUNT, 0, 0, 0);
        if (ready == -EINTR)
            continue;
        if (ready < 0 || fds[OWNER].revents || fds[COMMAND].revents)
            end();
        if (fds[LINE].revents)
            watch(fds);
    }
}
