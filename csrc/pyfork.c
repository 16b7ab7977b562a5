/* The slow path: a real fork, so that Python code can run before exec. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <Python.h>

#include "spawnhelper.h"
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

/* Before the pipe opens: it could take the number of a source that is closed. */
static int check_sources(const struct sh_request *request) {
    if (!(request->flags & SH_STANDARD_FDS))
        for (uint32_t i = 0; i < request->nfds; i++)
            if (SYS(fcntl, request->fds[i].source, F_GETFD) < 0)
                return request->fds[i].source;
    return -1;
}

static int open_report(const struct sh_request *request, struct sh_process *process) {
    int ends[2];
    long error = SYS(pipe2, ends, O_CLOEXEC);
    if (error < 0)
        return (int)error;
    ends[0] = move_away(request, ends[0]);
    ends[1] = move_away(request, ends[1]);
    if (ends[0] < 0 || ends[1] < 0) {
        error = ends[0] < 0 ? ends[0] : ends[1];
        for (int i = 0; i < 2; i++)
            if (ends[i] >= 0)
                SYS(close, ends[i]);
        return (int)error;
    }
    process->report = ends[0];
    return ends[1];
}

/* Python's own fork hooks, as os.fork() runs them; the pid is in the handle
 * before another bytecode can run. */
static pid_t fork_python(struct sh_process *process) {
    PyGILState_STATE state = PyGILState_Ensure();
    PyOS_BeforeFork();
    pid_t pid = fork();
    int error = errno;
    if (pid == 0) {
        PyOS_AfterFork_Child();
    } else {
        if (pid > 0)
            sh_adopt(process, pid, (int)SYS(pidfd_open, pid, 0));
        PyOS_AfterFork_Parent();
    }
    PyGILState_Release(state);
    return pid < 0 ? -error : pid;
}

int sh_fork(const struct sh_request *request, struct sh_process *process,
            struct sh_orders **orders) {
    int culprit = check_sources(request);
    if (culprit >= 0)
        return sh_refuse(process, SH_STAGE_FDS, EBADF, culprit);
    int report = open_report(request, process);
    if (report < 0)
        return sh_refuse(process, SH_STAGE_CLONE, -report, 0);
    struct sh_scratch *scratch = sh_prepare(request, process, report, orders);
    if (!scratch) {
        SYS(close, report);
        SYS(close, process->report);
        process->report = -1;
        return -process->result.error;
    }
    (*orders)->result = &process->result;
    (*orders)->report = report;
    (*orders)->clear_signals = 1;
    (*orders)->shared_files = -1;
    uint64_t mask;
    sh_block_signals(&mask);
    (*orders)->mask = mask;
    pid_t pid = fork_python(process);
    if (pid == 0)
        return 1;
    sh_restore_signals(&mask);
    SYS(close, report);
    sh_release(scratch);
    if (pid > 0)
        return 0;
    SYS(close, process->report);
    process->report = -1;
    return sh_refuse(process, SH_STAGE_CLONE, -pid, 0);
}

static int read_report(struct sh_process *process, char *bytes, uint32_t size, uint32_t *length) {
    while (*length < size) {
        long got = SYS(read, process->report, bytes + *length, size - *length);
        if (got < 0)
            return (int)got;
        if (got == 0)
            return 0;
        *length += (uint32_t)got;
    }
    return 0;
}

/* bytes receives the child's records: "exec is next" (no error), or a failure,
 * or both; a failure may have text behind it. */
int sh_fork_result(struct sh_process *process, char *bytes, uint32_t size, uint32_t *length) {
    struct sh_result *result = &process->result;
    if (read_report(process, bytes, size, length) == -EINTR)
        return 1;
    SYS(close, process->report);
    process->report = -1;
    uint32_t records = *length / sizeof *result;
    if (records > 0)
        memcpy(result, bytes, sizeof *result);
    if (records == 1 && result->error == 0 && result->stage == SH_STAGE_EXEC)
        return 0;
    if (records > 1 && result->error == 0 && result->stage == SH_STAGE_EXEC)
        memcpy(result, bytes + sizeof *result, sizeof *result);
    int status = sh_reap_failed(process->pid, process->pidfd);
    process->pidfd = -1;
    process->state = SH_NEW;
    if (records == 0) {
        sh_refuse(process, SH_STAGE_PRE_EXEC, ECHILD, WIFSIGNALED(status) ? WTERMSIG(status) : 0);
        result->started = 1;
    }
    return -1;
}
