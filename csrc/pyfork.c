/* The slow path: a real fork, so that Python code can run before exec. */
#define _GNU_SOURCE
#include <errno.h>
#include <unistd.h>

#include <Python.h>

#include "parent.h"
#include "state.h"
#include "sys.h"

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
            sh_adopt(process, pid, sh_pidfd_open(pid));
        PyOS_AfterFork_Parent();
    }
    PyGILState_Release(state);
    return pid < 0 ? -error : pid;
}

int sh_fork(const struct sh_request *request, struct sh_process *process, struct sh_orders **out) {
    int ends[2];
    sh_begin(process);
    struct sh_orders *orders = sh_prepare_report(request, process, ends);
    if (!orders)
        return -process->result.error;
    uint64_t mask;
    sh_block_signals(&mask);
    orders->mask = mask;
    *out = orders;
    process->report = ends[0];
    sh_own_report = ends[1];
    pid_t pid = fork_python(process);
    sh_own_report = -1;
    if (pid == 0)
        return 1;
    sh_restore_signals(&mask);
    SYS(close, ends[1]);
    sh_release(orders);
    if (pid > 0)
        return 0;
    sh_report_close(ends[0]);
    process->report = 0;
    return sh_refuse(process, SH_STAGE_CLONE, -pid, 0);
}

int sh_fork_result(struct sh_process *process, char *bytes, uint32_t size, uint32_t *length) {
    if (sh_report_read(process->report, bytes, size, length) == 1)
        return 1;
    sh_report_close(process->report);
    process->report = 0;
    int outcome = sh_report_parse(bytes, *length, &process->result);
    if (outcome == 0)
        return 0;
    process->state = SH_NEW;
    sh_bury(process, process->pid, -1, SH_STAGE_PRE_EXEC, outcome == 2);
    if (process->pidfd > 0)
        sh_close_pidfd(process->pidfd);
    process->pidfd = 0;
    return -1;
}
