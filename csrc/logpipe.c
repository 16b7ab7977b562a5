/* The descriptors of a log. They are opened and closed in C, so that whatever
 * exception strikes between two Python instructions each has one owner. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "parent.h"
#include "state.h"
#include "sys.h"

/* The standard streams' numbers, if free here, are the command's. */
static long above_standard(long fd) {
    if (fd < 0 || fd > STDERR_FILENO)
        return fd;
    long moved = SYS(fcntl, fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    SYS(close, fd);
    return moved;
}

static int take(int32_t *place, long fd) {
    fd = above_standard(fd);
    if (fd < 0)
        return (int)fd;
    *place = (int32_t)fd;
    return 0;
}

static void close_one(int32_t *fd) {
    int number = *fd;
    *fd = 0;
    if (number > 0)
        SYS(close, number);
}

void sh_log_started(struct sh_log *log) { close_one(&log->pipe_end); }

void sh_log_close(struct sh_log *log) {
    if (log->forks != sh_state.forks)
        return; /* in the child of a fork the numbers may be anybody's by now */
    close_one(&log->source);
    close_one(&log->pipe_end);
    close_one(&log->file);
}

/* Where the original stdout is; -1: it is closed, or private to us. */
static int find_stdout(const struct sh_request *request) {
    for (uint32_t i = 0; i < request->nfds; i++) {
        if (request->fds[i].target != STDOUT_FILENO)
            continue;
        int source = request->fds[i].source;
        long flags = SYS(fcntl, source, F_GETFD);
        int is_private = flags & FD_CLOEXEC && request->flags & SH_STANDARD_FDS;
        return flags < 0 || is_private ? -1 : source;
    }
    return -1;
}

static int open_all(struct sh_log *log, const char *name, int waits) {
    int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_LARGEFILE;
    int error = take(&log->file, SYS(openat, AT_FDCWD, name, flags, 0666));
    if (error < 0)
        return error;
    int ends[2];
    error = (int)SYS(pipe2, ends, O_CLOEXEC);
    if (error < 0)
        return error;
    error = take(&log->source, ends[0]);
    int other = take(&log->pipe_end, ends[1]);
    if (error == 0)
        error = other;
    if (error == 0 && waits)
        error = (int)SYS(fcntl, log->source, F_SETFL, O_NONBLOCK);
    return error;
}

int sh_log_open(struct sh_log *log, const struct sh_request *request, const char *name, int waits) {
    memset(log, 0, offsetof(struct sh_log, buffer));
    log->forks = sh_state.forks;
    log->left = -1;
    log->closed_source = sh_closed_source(request);
    log->out = find_stdout(request);
    int error = log->closed_source >= 0 ? -EBADF : open_all(log, name, waits);
    log->opened = error == 0;
    log->open_error = -error;
    if (error < 0)
        sh_log_close(log);
    return error;
}

void sh_log_discard(void *log) {
    sh_log_close(log);
    free(log);
}
