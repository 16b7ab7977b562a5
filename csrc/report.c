/* The pipe by which a child that does not share our memory reports. */
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "parent.h"
#include "state.h"
#include "sys.h"

/* Above every descriptor that the request names; if the limit leaves no room
 * there, on any number that is no target (sources are open). */
static int move_away(const struct sh_request *request, int fd) {
    int highest = STDERR_FILENO;
    for (uint32_t i = 0; i < request->nfds; i++) {
        if (request->fds[i].target > highest)
            highest = request->fds[i].target;
        if (request->fds[i].source > highest)
            highest = request->fds[i].source;
    }
    long moved = -EINVAL;
    if (highest < INT32_MAX)
        moved = SYS(fcntl, fd, F_DUPFD_CLOEXEC, highest + 1);
    for (int from = STDERR_FILENO + 1; moved == -EINVAL || moved == -EMFILE;) {
        moved = SYS(fcntl, fd, F_DUPFD_CLOEXEC, from);
        if (moved < 0)
            break;
        if (sh_fdplan_find(request->fds, request->nfds, (int)moved) < 0)
            break;
        SYS(close, moved);
        from = (int)moved + 1;
        moved = -EINVAL;
    }
    SYS(close, fd);
    return (int)moved;
}

/* Both ends have the pipe's inode. When all places are taken the pipe is not
 * noted, and only a stranger's fork can then delay this start. */
static void remember(const int ends[2]) {
    struct stat status;
    if (fstat(ends[0], &status) != 0)
        return;
    for (int i = 0, end = 0; i < SH_REPORTS && end < 2; i++) {
        if (sh_state.reports[i].fd != 0)
            continue;
        sh_state.reports[i].fd = ends[end++] + 1;
        sh_state.reports[i].inode = status.st_ino;
    }
}

static void forget(int fd) {
    struct stat status;
    if (fstat(fd, &status) != 0)
        return;
    for (int i = 0; i < SH_REPORTS; i++)
        if (sh_state.reports[i].inode == status.st_ino)
            sh_state.reports[i].fd = 0;
}

/* Before the pipe opens: it could take the number of a source that is closed. */
int sh_closed_source(const struct sh_request *request) {
    if (!(request->flags & SH_STANDARD_FDS))
        for (uint32_t i = 0; i < request->nfds; i++)
            if (SYS(fcntl, request->fds[i].source, F_GETFD) < 0)
                return request->fds[i].source;
    return -1;
}

static int open_ends(const struct sh_request *request, int ends[2]) {
    long error = SYS(pipe2, ends, O_CLOEXEC);
    if (error < 0)
        return (int)error;
    ends[0] = move_away(request, ends[0]);
    ends[1] = move_away(request, ends[1]);
    if (ends[0] >= 0 && ends[1] >= 0) {
        remember(ends);
        return 0;
    }
    error = ends[0] < 0 ? ends[0] : ends[1];
    for (int i = 0; i < 2; i++)
        if (ends[i] >= 0)
            SYS(close, ends[i]);
    return (int)error;
}

int sh_report_open(const struct sh_request *request, int ends[2], int *culprit) {
    *culprit = sh_closed_source(request);
    if (*culprit >= 0)
        return -EBADF;
    uint64_t mask;
    sh_block_signals(&mask); /* a handler that forks would wait for itself */
    sh_lock(&sh_state.report_lock);
    int error = open_ends(request, ends);
    sh_unlock(&sh_state.report_lock);
    sh_restore_signals(&mask);
    return error;
}

void sh_report_close(int reader) {
    uint64_t mask;
    sh_block_signals(&mask);
    sh_lock(&sh_state.report_lock);
    forget(reader);
    SYS(close, reader);
    sh_unlock(&sh_state.report_lock);
    sh_restore_signals(&mask);
}

int sh_report_read(int fd, char *bytes, uint32_t size, uint32_t *length) {
    while (*length < size) {
        long got = SYS(read, fd, bytes + *length, size - *length);
        if (got == -EINTR)
            return 1;
        if (got <= 0)
            return 0;
        *length += (uint32_t)got;
    }
    return 0;
}

static int says_exec(const struct sh_result *record) {
    return record->error == 0 && record->stage == SH_STAGE_EXEC;
}

/* The child's records: "exec is next", or a failure, or both. */
int sh_report_parse(const char *bytes, uint32_t length, struct sh_result *result) {
    uint32_t records = length / sizeof *result;
    if (records == 0)
        return 2;
    memcpy(result, bytes, sizeof *result);
    if (!says_exec(result))
        return 1;
    if (records == 1)
        return 0;
    memcpy(result, bytes + sizeof *result, sizeof *result);
    return 1;
}
