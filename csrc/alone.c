/* The child's stages in the calling process itself: for a process that Python
 * forked and that becomes the command (process._exec), or only arranges its
 * descriptors (process._setup_pipes). No memory is shared here: a stage that
 * fails comes back to the caller instead of ending the process. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "net.h"
#include "parent.h"
#include "sys.h"

static __thread jmp_buf caller;

static void come_back(void) { longjmp(caller, 1); }

static struct sh_orders *prepare(const struct sh_request *request, struct sh_process *process,
                                 struct sh_isolation *isolation) {
    struct sh_orders *orders = sh_prepare(request, process, -1, isolation);
    if (!orders)
        return NULL;
    orders->result = &process->result;
    orders->failed = come_back;
    orders->report = orders->guard[0] = orders->guard[1] = -1;
    orders->shared_files = -1;
    orders->clear_signals = 1;
    return orders;
}

int sh_become(const struct sh_request *request, struct sh_process *process,
              struct sh_orders **orders) {
    struct sh_isolation *isolation = NULL;
    memset(&process->result, 0, sizeof process->result);
    if (request->namespaces || request->cgroup) {
        isolation = sh_isolation_open(request, process, NULL, 1);
        if (!isolation)
            return -process->result.error;
        sh_isolation_begin(isolation, process);
        sh_add_notes(&process->result, isolation->notes, isolation->nnotes);
    }
    *orders = prepare(request, process, isolation);
    if (!*orders)
        return -process->result.error;
    sh_block_signals(&(*orders)->mask);
    if (setjmp(caller))
        return -process->result.error;
    sh_child_prepare(*orders);
    return 0;
}

int sh_become_execute(const struct sh_orders *orders) {
    if (setjmp(caller))
        return -orders->result->error;
    sh_child_execute(orders);
}

int sh_arrange(const struct sh_request *request, struct sh_process *process) {
    memset(&process->result, 0, sizeof process->result);
    struct sh_orders *orders = prepare(request, process, NULL);
    if (!orders)
        return -process->result.error;
    int error = 0;
    if (setjmp(caller))
        error = -process->result.error;
    else
        sh_child_arrange(orders);
    sh_release(orders);
    return error;
}

int sh_try_unshare(int flags) {
    uint64_t mask;
    sh_block_signals(&mask);
    long pid = SYS(clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        long error = SYS(unshare, flags);
        for (;;)
            SYS(exit_group, error < 0 ? -error : 0);
    }
    int status = pid < 0 ? 0 : sh_reap_failed((int)pid, -1);
    sh_restore_signals(&mask);
    if (pid < 0)
        return (int)-pid;
    return WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
}

int sh_raise_loopback(void) { return (int)sh_net_raise_loopback(); }
