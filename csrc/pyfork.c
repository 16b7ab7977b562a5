/* The slow path: a real fork, so that Python code can run before exec. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <Python.h>

#include "parent.h"
#include "state.h"
#include "sys.h"

static void adopt(struct sh_process *process, struct sh_isolation *isolation, pid_t pid) {
    sh_adopt(process, pid, sh_pidfd_open(pid));
    sh_remember_pidfd(process);
    if (isolation)
        sh_isolation_adopt(isolation, process);
}

static int leave(struct sh_process *process, struct sh_orders *orders,
                 struct sh_isolation *isolation) {
    int error = sh_isolation_hold_here(isolation, orders, process);
    return error < 0 ? error : sh_isolation_leave_home(isolation);
}

/* With isolation this thread's children are born elsewhere, but not those of
 * Python's at-fork hooks. */
static pid_t fork_isolated(struct sh_process *process, struct sh_orders *orders) {
    struct sh_isolation *isolation = orders->isolation;
    if (!isolation)
        return fork();
    pid_t pid = leave(process, orders, isolation);
    if (pid == 0) {
        pid = fork();
        if (pid == 0)
            return 0;
    } else {
        errno = -pid;
        pid = -1;
    }
    int error = errno;
    sh_isolation_return_home(isolation);
    errno = error;
    return pid;
}

/* Python's own fork hooks, as os.fork() runs them; the pid is in the handle
 * before another bytecode can run. */
static pid_t fork_python(struct sh_process *process, struct sh_orders *orders, int writer) {
    PyGILState_STATE state = PyGILState_Ensure();
    PyOS_BeforeFork();
    sh_own_report = writer;
    pid_t pid = fork_isolated(process, orders);
    int error = errno;
    sh_own_report = -1;
    if (pid == 0) {
        PyOS_AfterFork_Child();
    } else {
        if (pid > 0)
            adopt(process, orders->isolation, pid);
        PyOS_AfterFork_Parent();
    }
    PyGILState_Release(state);
    return pid < 0 ? -error : pid;
}

static int start_fork(const struct sh_request *request, struct sh_process *process,
                      struct sh_isolation *isolation, struct sh_orders **out) {
    int ends[2];
    struct sh_orders *orders = sh_prepare_report(request, process, ends, isolation);
    if (!orders)
        return -process->result.error;
    uint64_t mask;
    sh_block_signals(&mask);
    orders->mask = mask;
    *out = orders;
    process->report = ends[0];
    int pid = fork_python(process, orders, ends[1]);
    if (pid == 0)
        return 1;
    sh_restore_signals(&mask);
    SYS(close, ends[1]);
    sh_release(orders);
    if (pid > 0)
        return 0;
    sh_report_close(ends[0]);
    process->report = 0;
    if (process->result.error == 0)
        sh_refuse(process, SH_STAGE_CLONE, -pid, 0);
    return pid;
}

int sh_fork(const struct sh_request *request, struct sh_process *process, struct sh_orders **out) {
    sh_begin(process);
    if (!request->namespaces && !request->set && !request->cgroup)
        return start_fork(request, process, NULL, out);
    struct sh_isolation *isolation = sh_isolation_open(request, process, NULL, 1);
    if (!isolation)
        return -process->result.error;
    sh_isolation_begin(isolation, process);
    int error = start_fork(request, process, isolation, out);
    if (error == 1)
        return 1; /* the child still obeys these orders */
    if (error < 0) {
        sh_isolation_blame(isolation, &process->result);
        sh_isolation_undo_holder(isolation);
    }
    sh_isolation_close(isolation, process);
    return error;
}

int sh_fork_result(struct sh_process *process, char *bytes, uint32_t size, uint32_t *length) {
    if (sh_report_read(process->report, bytes, size, length) == 1)
        return 1;
    sh_report_close(process->report);
    process->report = 0;
    struct sh_result before = process->result;
    int outcome = sh_report_parse(bytes, *length, &process->result);
    sh_add_notes(&process->result, before.notes, (int)before.nnotes);
    if (outcome == 0)
        return 0;
    process->state = SH_NEW;
    sh_bury(process, process->pid, -1, SH_STAGE_PRE_EXEC, outcome == 2);
    sh_end_failed(process);
    return -1;
}
