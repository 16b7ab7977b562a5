/* The log copier: a program of its own, for callers that do not wait.
 *
 *   fd 0  what the command writes     fd 1  its original fd 1 (may be closed)
 *   fd 3  the log                     fd 4  pidfd of the command (may be closed)
 *
 * Copies until end of file, or until the command has ended and the pipe is
 * empty: a daemon that kept the other end must not keep us. A sink that fails
 * is given up, the other is served on; the exit status is then the errno, plus
 * OUT_FAILED if it was not the log. Libc-free: a libc start-up costs more than
 * all the rest (about 0.4 ms in a virtual machine).
 */
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>

#include "sys.h"

enum { SOURCE = 0, OUT = 1, LOG = 3, COMMAND = 4, SIZE = 65536, OUT_FAILED = 128 };

static char buffer[SIZE];

/* 0 or an errno. */
static long write_all(int fd, long length) {
    for (long done = 0; done < length;) {
        long written = SYS(write, fd, buffer + done, length - done);
        if (written == -EAGAIN) {
            struct pollfd sink;
            sink.fd = fd;
            sink.events = POLLOUT;
            SYS(ppoll, &sink, 1, 0, 0, 0);
        } else if (written >= 0) {
            done += written;
        } else if (written != -EINTR) {
            return -written;
        }
    }
    return 0;
}

static long log_error, out_error;

static long copy(long wanted) {
    long length;
    do
        length = SYS(read, SOURCE, buffer, wanted);
    while (length == -EINTR);
    if (length <= 0)
        return 0;
    if (!log_error)
        log_error = write_all(LOG, length);
    if (!out_error)
        out_error = write_all(OUT, length);
    return length;
}

static void drain(void) {
    int left = 0;
    if (SYS(ioctl, SOURCE, FIONREAD, &left) < 0)
        return;
    while (left > 0) {
        long copied = copy(left < SIZE ? left : SIZE);
        if (copied == 0)
            return;
        left -= (int)copied;
    }
}

/* As tee -i: Ctrl-C ends the command, whose last words are still wanted. */
static void ignore(int number) {
    struct sh_sigaction action;
    action.handler = SIG_IGN;
    action.flags = 0;
    action.restorer = 0;
    action.mask = 0;
    SYS(rt_sigaction, number, &action, 0, sizeof action.mask);
}

#ifdef __x86_64__
__attribute__((force_align_arg_pointer)) /* the ABI aligns calls, not the entry */
#endif
_Noreturn void _start(void) {
    struct pollfd fds[2];
    ignore(SIGINT);
    ignore(SIGPIPE);
    fds[0].fd = SOURCE;
    fds[1].fd = SYS(fcntl, COMMAND, 1 /* F_GETFD */) < 0 ? -1 : COMMAND;
    fds[0].events = fds[1].events = POLLIN;
    if (SYS(fcntl, OUT, 1 /* F_GETFD */) < 0)
        out_error = -1; /* there is none: nothing is lost */
    for (;;) {
        long ready = SYS(ppoll, fds, 2, 0, 0, 0);
        if (ready == -EINTR)
            continue;
        if (fds[1].fd >= 0 && fds[1].revents) {
            drain();
            break;
        }
        if (ready < 0 || !copy(SIZE))
            break;
    }
    long status = log_error ? log_error : out_error > 0 ? OUT_FAILED + out_error : 0;
    for (;;)
        SYS(exit_group, status);
}
