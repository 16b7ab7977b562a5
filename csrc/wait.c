/* The handle's life after the start: waiting, copying output, signalling. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "parent.h"
#include "state.h"
#include "sys.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

static int pidfd_of(const struct sh_process *process) {
    return process->pidfd > 0 ? process->pidfd : -1;
}

static void disown_pidfd(struct sh_process *process) {
    sh_disown_pidfd(process->pidfd);
    process->pidfd = 0;
}

/* Under the lock. Daemons close all descriptors that they do not know, and the
 * number may be a stranger's since: another child's pidfd, whose status we would
 * take. Before Linux 6.9 all pidfds look alike. */
static void check_pidfd(struct sh_process *process) {
    if (process->pidfd > 0 && process->pidfd_id != 0 &&
        sh_identify(process->pidfd) != process->pidfd_id)
        disown_pidfd(process);
}

void sh_remember_pidfd(struct sh_process *process) {
    process->pidfd_id = process->pidfd > 0 ? sh_identify(process->pidfd) : 0;
}

static int holder_of(const struct sh_process *process) {
    return process->holder_pidfd > 0 ? process->holder_pidfd : -1;
}

static void lock(struct sh_process *process) { sh_lock((_Atomic uint32_t *)&process->lock); }
static void unlock(struct sh_process *process) { sh_unlock((_Atomic uint32_t *)&process->lock); }

void sh_adopt(struct sh_process *process, int pid, int pidfd) {
    process->forks = sh_state.forks;
    process->pid = pid;
    process->pidfd = pidfd < 0 ? 0 : sh_place_pidfd(pidfd);
    process->state = SH_RUNNING;
}

/* After a fork the copy of a handle speaks of a stranger's child. The number of
 * forks tells: along a line of descent no two processes share it. (A pid would
 * not do: a fork into a new pid namespace can repeat it.) */
int sh_mine(const struct sh_process *process) { return process->forks == sh_state.forks; }

int sh_pidfd_open(int pid) {
    if (sh_avoids(SH_AVOID_PIDFD))
        return -1;
    long fd = SYS(pidfd_open, pid, 0);
    return fd < 0 ? -1 : (int)fd;
}

static long reap(int pid, int pidfd, int flags, siginfo_t *info, struct rusage *usage) {
    int type = pidfd >= 0 ? P_PIDFD : P_PID;
    memset(info, 0, sizeof *info);
    long error;
    do
        error = SYS(waitid, type, pidfd >= 0 ? pidfd : pid, info, WEXITED | __WALL | flags, usage);
    while (error == -EINTR);
    return error;
}

static int to_status(const siginfo_t *info) {
    if (info->si_code == CLD_EXITED)
        return (info->si_status & 0xff) << 8;
    return info->si_status | (info->si_code == CLD_DUMPED ? 0x80 : 0);
}

int sh_reap_failed(int pid, int pidfd) {
    siginfo_t info;
    long error = reap(pid, pidfd, 0, &info, NULL);
    if (pidfd >= 0 && (error == -EBADF || error == -EINVAL))
        error = reap(pid, -1, 0, &info, NULL); /* closed behind our back, or refused */
    if (pidfd >= 0)
        SYS(close, pidfd);
    return error < 0 ? 0 : to_status(&info);
}

/* Last: who sees the state without the lock may read the rest. */
static void publish(struct sh_process *process, int state) {
    __atomic_store_n(&process->state, state, __ATOMIC_RELEASE);
}

int sh_ended(struct sh_process *process) {
    int state = __atomic_load_n(&process->state, __ATOMIC_ACQUIRE);
    return state == SH_ENDED || state == SH_LOST;
}

/* A set dies in a tenth of a millisecond, so that even a look waits for it. */
enum { SH_SETTLE_NSEC = 20000000 };

/* Under the lock. The command is reaped, which its pid 1 has to wait for
 * (zap_pid_ns_processes); killing it ends what the command has left. */
static void end_with(struct sh_process *process, int state) {
    if (process->set)
        sh_set_leave(process->set, process);
    process->set = NULL;
    if (process->holder == 0) {
        publish(process, state);
        return;
    }
    process->outcome = state;
    if (process->holder_pidfd > 0 && sh_identify(process->holder_pidfd) != process->holder_id) {
        sh_disown_pidfd(process->holder_pidfd); /* closed behind our back */
        process->holder_pidfd = 0;
    }
    publish(process, SH_ENDING);
    sh_kill_holder(process->holder, process->holder_pidfd);
}

/* Under the lock. */
static void try_end(struct sh_process *process) {
    if (process->state != SH_ENDING || !sh_reap_holder(process->holder, &process->holder_pidfd))
        return;
    process->holder = 0;
    publish(process, process->outcome);
}

static int64_t to_usec(const struct timeval *time) {
    return (int64_t)time->tv_sec * 1000000 + time->tv_usec;
}

static void record(struct sh_process *process, const siginfo_t *info, const struct rusage *usage) {
    process->status = to_status(info);
    const long *rest = &usage->ru_maxrss; /* fourteen longs follow the times (getrusage(2)) */
    process->usage[0] = to_usec(&usage->ru_utime);
    process->usage[1] = to_usec(&usage->ru_stime);
    for (int i = 2; i < SH_USAGE; i++)
        process->usage[i] = rest[i - 2];
    process->has_usage = 1;
    process->ended_nsec = sh_now();
    end_with(process, SH_ENDED);
}

/* Since 6.15 a pidfd remembers the wait status of a process that is gone. With
 * SIGCHLD ignored the kernel wakes us just before it notes it. */
static int ask_pidfd(const struct sh_process *process, int *status) {
    if (process->pidfd <= 0 || sh_avoids(SH_AVOID_PIDFD_INFO))
        return 0;
    for (int tries = 0; tries < 100; tries++) {
        struct sh_pidfd_info info = {.mask = SH_PIDFD_INFO_EXIT};
        long error = SYS(ioctl, process->pidfd, SH_PIDFD_GET_INFO, &info);
        if (error == 0 && (info.mask & SH_PIDFD_INFO_EXIT)) {
            *status = info.exit_code;
            return 1;
        }
        if (error < 0 && error != -ESRCH)
            return 0;
        struct timespec pause = {.tv_nsec = 50000};
        SYS(clock_nanosleep, CLOCK_MONOTONIC, 0, &pause, NULL);
    }
    return 0;
}

static void record_loss(struct sh_process *process) {
    int known = ask_pidfd(process, &process->status);
    process->ended_nsec = sh_now();
    end_with(process, known ? SH_ENDED : SH_LOST);
}

/* By pid it is left a zombie for clean_up(); but its pid 1 waits for us to reap it. */
static int reap_flags(const struct sh_process *process) {
    return pidfd_of(process) >= 0 || process->holder > 0 || process->set ? 0 : WNOWAIT;
}

/* Under the lock. Takes the status if the process has ended; leaves it alone if
 * not. ECHILD: someone's waitpid(-1) was faster, or SIGCHLD is ignored. Until
 * it has ended the kernel still knows it as our child. */
static void try_reap(struct sh_process *process) {
    if (process->state != SH_RUNNING)
        return;
    check_pidfd(process);
    int flags = reap_flags(process);
    siginfo_t info;
    struct rusage usage;
    long error = reap(process->pid, pidfd_of(process), WNOHANG | flags, &info, &usage);
    if ((error == -EBADF || error == -EINVAL) && process->pidfd > 0) {
        disown_pidfd(process); /* closed behind our back: no longer ours to close */
        flags = reap_flags(process);
        error = reap(process->pid, -1, WNOHANG | flags, &info, &usage);
    }
    if (error == -ECHILD) {
        record_loss(process);
    } else if (error == 0 && info.si_pid != 0) {
        record(process, &info, &usage);
        process->zombie = (flags & WNOWAIT) != 0;
        if (process->state == SH_ENDED && process->users == 0)
            process->pidfd_id = 0; /* it has just been ours, and clean_up() closes it at once */
    }
}

static int is_over(const struct sh_process *process) {
    return process->state != SH_RUNNING && process->state != SH_ENDING;
}

/* Under the lock. The last thread out of a wait closes the pidfd, which others
 * poll; or reaps, so that nobody waits for a pid that is free again. */
static void clean_up(struct sh_process *process) {
    if (!is_over(process) || process->users > 0)
        return;
    if (process->zombie) {
        siginfo_t info;
        reap(process->pid, -1, WNOHANG, &info, NULL);
        process->zombie = 0;
    }
    check_pidfd(process);
    if (process->pidfd > 0)
        sh_close_pidfd(process->pidfd);
    if (process->holder_pidfd > 0)
        sh_close_pidfd(process->holder_pidfd);
    process->pidfd = process->holder_pidfd = 0;
}

static int in_main_thread(void) { return SYS(gettid) == SYS(getpid); }

int64_t sh_now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* A wait with a limit is cut into slices, too. */
static int64_t deadline_after(int64_t nsec) {
    if (nsec < 0)
        return -1;
    if (nsec > SH_SLICE_NSEC && in_main_thread())
        nsec = SH_SLICE_NSEC;
    int64_t start = sh_now();
    return nsec > INT64_MAX - start ? INT64_MAX : start + nsec;
}

/* >0: ready; 0: the deadline is over; <0: errno. A deadline < 0 never comes,
 * but the main thread looks up now and then. */
static long poll_until(struct pollfd *fds, unsigned count, int64_t deadline) {
    if (deadline < 0) {
        struct timespec slice = {.tv_nsec = SH_SLICE_NSEC};
        return SYS(ppoll, fds, count, in_main_thread() ? &slice : NULL, NULL, 0);
    }
    int64_t left = deadline - sh_now();
    if (left < 0)
        left = 0;
    struct timespec wait = {.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
    return SYS(ppoll, fds, count, &wait, NULL, 0);
}

/* Without a pidfd there is nothing to poll: look again, ever more rarely, up to
 * 5 ms. Only a wait without limit can sleep in the kernel. */
static long await_pid(struct sh_process *process, int64_t deadline) {
    if (deadline < 0 && in_main_thread())
        deadline = sh_now() + SH_SLICE_NSEC;
    struct timespec pause = {0, 20000};
    siginfo_t info;
    struct rusage usage;
    for (;;) {
        memset(&info, 0, sizeof info);
        int flags = WEXITED | WNOWAIT | __WALL | (deadline < 0 ? 0 : WNOHANG);
        long error = SYS(waitid, P_PID, process->pid, &info, flags, &usage);
        if (error == -EINTR || error == -ECHILD || (error == 0 && info.si_pid != 0))
            return error == -EINTR ? error : 1;
        if (sh_now() >= deadline)
            return 0;
        error = SYS(clock_nanosleep, CLOCK_MONOTONIC, 0, &pause, NULL);
        if (error == -EINTR)
            return error;
        if (pause.tv_nsec < 5000000)
            pause.tv_nsec += pause.tv_nsec / 4;
    }
}

/* One stretch of waiting: for the command, or for what it left to end. */
static long wait_once(struct sh_process *process, int64_t deadline) {
    int ending = process->state == SH_ENDING;
    check_pidfd(process);
    struct pollfd fd = {.fd = ending ? holder_of(process) : pidfd_of(process), .events = POLLIN};
    process->users++;
    unlock(process);

    if (ending && deadline >= 0 && deadline < sh_now() + SH_SETTLE_NSEC)
        deadline = sh_now() + SH_SETTLE_NSEC;
    long ready = 1;
    if (fd.fd >= 0)
        ready = poll_until(&fd, 1, deadline);
    else if (!ending)
        ready = await_pid(process, deadline);
    else /* its pidfd was closed behind our back: look soon */
        poll_until(&fd, 1, sh_now() + 1000000);

    lock(process);
    process->users--;
    if (ready > 0 && !ending)
        try_reap(process);
    else if (ready > 0)
        try_end(process);
    return ready;
}

static int wait_until(struct sh_process *process, int64_t deadline) {
    if (!sh_mine(process))
        return sh_ended(process) ? 1 : -EPERM;
    long ready = 0;
    lock(process);
    if (!is_over(process))
        ready = wait_once(process, deadline);
    if (ready > 0 && process->state == SH_ENDING)
        ready = wait_once(process, deadline);
    int ended = is_over(process);
    clean_up(process);
    unlock(process);
    if (ended)
        return 1;
    return ready < 0 && ready != -EINTR ? (int)ready : 0;
}

int sh_wait(struct sh_process *process, int64_t nsec) {
    return wait_until(process, deadline_after(nsec));
}

int sh_reap_now(struct sh_process *process) {
    if (!sh_mine(process))
        return wait_until(process, 0);
    lock(process);
    try_reap(process);
    try_end(process);
    int ended = is_over(process);
    clean_up(process);
    unlock(process);
    return ended;
}

int sh_reap(struct sh_process *process) {
    int ended = sh_reap_now(process);
    return ended == 0 && process->state == SH_ENDING ? wait_until(process, 0) : ended;
}

void sh_end_failed(struct sh_process *process) {
    lock(process);
    end_with(process, SH_NEW);
    unlock(process);
    while (process->state == SH_ENDING)
        wait_until(process, -1);
    lock(process);
    clean_up(process);
    unlock(process);
}

int sh_finish(struct sh_process *process) {
    int error = sh_signal(process, SIGKILL);
    return error < 0 ? error : sh_wait(process, -1);
}

int sh_pidfd(struct sh_process *process) {
    if (!sh_mine(process))
        return process->state == SH_RUNNING ? pidfd_of(process) : -1;
    lock(process);
    check_pidfd(process);
    int fd = process->state == SH_RUNNING ? pidfd_of(process) : -1;
    unlock(process);
    return fd;
}

int sh_hold(struct sh_process *process) {
    if (!sh_mine(process))
        return -1;
    lock(process);
    check_pidfd(process);
    int fd = process->state == SH_RUNNING ? pidfd_of(process) : -1;
    process->users += fd >= 0;
    unlock(process);
    return fd;
}

void sh_release_hold(struct sh_process *process) {
    if (!sh_mine(process))
        return;
    lock(process);
    process->users--;
    clean_up(process);
    unlock(process);
}

int sh_copy_pidfd(struct sh_process *process) {
    if (!sh_mine(process))
        return -EPERM;
    lock(process);
    check_pidfd(process);
    long fd = -ESRCH;
    int pidfd = process->state == SH_ENDING ? process->holder_pidfd : process->pidfd;
    if (process->state == SH_RUNNING || process->state == SH_ENDING)
        fd = pidfd > 0 ? SYS(fcntl, pidfd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1) : -ENOSYS;
    unlock(process);
    return (int)fd;
}

int sh_signal(struct sh_process *process, int number) {
    if (!sh_mine(process))
        return -EPERM;
    lock(process);
    check_pidfd(process);
    long error = 0;
    if (process->state == SH_RUNNING) {
        error =
            process->pidfd == 0 ? -ENOSYS : SYS(pidfd_send_signal, process->pidfd, number, NULL, 0);
        if (error == -ENOSYS || error == -EPERM) {
            /* By pid: ours until reaped, under this lock, unless the kernel reaps it
             * itself (SIGCHLD ignored) or somebody else did. */
            siginfo_t info;
            error = reap(process->pid, -1, WNOHANG | WNOWAIT, &info, NULL);
            error = error == -ECHILD ? 0 : SYS(kill, process->pid, number);
        }
    }
    unlock(process);
    return error == -ESRCH ? 0 : (int)error; /* reaped by somebody else */
}

/* Only exec sets the exit signal (execve(2)), and __WCLONE finds children
 * without. One that is killed when the mask is restored has none yet: the
 * caller's waitpid would not find it. */
static int died_before_exec(const struct sh_process *process, siginfo_t *info) {
    long error;
    do {
        memset(info, 0, sizeof *info);
        error = SYS(waitid, P_PID, process->pid, info, WEXITED | WNOWAIT | __WCLONE, NULL);
    } while (error == -EINTR);
    return error == 0 && info->si_pid != 0;
}

int sh_give(struct sh_process *process) {
    if (!sh_mine(process))
        return -EPERM;
    lock(process);
    siginfo_t info;
    if (died_before_exec(process, &info)) {
        process->result.stage = SH_STAGE_EXEC;
        process->result.error = ECHILD;
        process->result.detail = info.si_status;
        try_reap(process);
        clean_up(process);
        unlock(process);
        while (process->state == SH_ENDING)
            wait_until(process, -1);
        return -ECHILD;
    }
    process->state = SH_GIVEN;
    if (process->set)
        sh_set_leave(process->set, process);
    process->set = NULL;
    if (process->holder)
        sh_reap_later(process->holder, process->holder_pidfd, process->holder_id);
    process->holder = process->holder_pidfd = 0;
    clean_up(process);
    unlock(process);
    return process->pid;
}

int sh_give_both(struct sh_process *process, struct sh_process *other) {
    int pid = sh_give(process);
    if (pid >= 0 && other)
        sh_give(other);
    return pid;
}

/* ---- log ---- */

/* A broken terminal or pipe must come back as EPIPE, not kill the program. */
static uint64_t block_sigpipe(void) {
    uint64_t pipe = 1ULL << (SIGPIPE - 1), before = 0;
    SYS(rt_sigprocmask, SIG_BLOCK, &pipe, &before, sizeof pipe);
    return before;
}

static void restore_sigpipe(uint64_t before) {
    uint64_t pipe = 1ULL << (SIGPIPE - 1);
    struct timespec none = {0, 0};
    if (!(before & pipe))
        SYS(rt_sigtimedwait, &pipe, NULL, &none, sizeof pipe); /* ours, if any */
    SYS(rt_sigprocmask, SIG_SETMASK, &before, NULL, sizeof before);
}

/* 1: all written, or this sink is lost; 0: time over, or a signal came. */
static int write_sink(struct sh_log *log, int fd, uint32_t *done, int *error, int64_t deadline) {
    while (fd >= 0 && *error == 0 && *done < log->length) {
        long written = SYS(write, fd, log->buffer + *done, log->length - *done);
        if (written >= 0) {
            *done += (uint32_t)written;
        } else if (written == -EINTR) {
            return 0;
        } else if (written == -EAGAIN) {
            struct pollfd sink = {.fd = fd, .events = POLLOUT};
            long ready = poll_until(&sink, 1, deadline);
            if (ready <= 0)
                return ready == -EINTR ? 0 : (int)ready;
        } else {
            *error = (int)-written;
        }
    }
    return 1;
}

/* The file first: a terminal may be slow. */
static int flush_log(struct sh_log *log, int64_t deadline) {
    int done = write_sink(log, log->file, &log->file_done, &log->file_error, deadline);
    if (done == 1)
        done = write_sink(log, log->out, &log->out_done, &log->out_error, deadline);
    if (done == 1)
        log->length = log->file_done = log->out_done = 0;
    return done;
}

static void close_source(struct sh_log *log) {
    SYS(close, log->source);
    log->source = 0;
}

/* Once the command has ended only what is in the pipe counts: a daemon that
 * kept the other end must not delay the caller. */
static void note_end(struct sh_log *log) {
    int waiting = 0;
    if (SYS(ioctl, log->source, FIONREAD, &waiting) < 0)
        waiting = 0;
    log->left = waiting;
}

static int has_ended(struct sh_process *process) {
    siginfo_t info = {0};
    long error =
        SYS(waitid, P_PID, process->pid, &info, WEXITED | WNOWAIT | WNOHANG | __WALL, NULL);
    return error == -ECHILD || info.si_pid != 0;
}

/* Without a pidfd: look every 10 ms whether the command has ended. */
static long poll_output(struct sh_process *process, struct pollfd *fds, int64_t deadline) {
    if (fds[1].fd >= 0)
        return poll_until(fds, 2, deadline);
    for (;;) {
        int64_t soon = sh_now() + 10000000;
        long ready = poll_until(fds, 1, deadline >= 0 && deadline < soon ? deadline : soon);
        if (ready < 0)
            return ready;
        fds[1].revents = has_ended(process) ? POLLIN : 0;
        if (ready > 0 || fds[1].revents)
            return 1;
        if (deadline >= 0 && sh_now() >= deadline)
            return 0;
    }
}

/* It was closed while we polled it: it is not ready because the command has ended. */
static void lose_pidfd(struct sh_process *process, int fd) {
    lock(process);
    if (process->pidfd == fd)
        disown_pidfd(process);
    unlock(process);
}

/* 1: there is something to read, or the end of it is known. */
static int await_output(struct sh_process *process, struct sh_log *log, int64_t deadline) {
    lock(process);
    check_pidfd(process);
    struct pollfd fds[2] = {{.fd = log->source, .events = POLLIN},
                            {.fd = pidfd_of(process), .events = POLLIN}};
    unlock(process);
    long ready = poll_output(process, fds, deadline);
    if (ready <= 0)
        return ready == -EINTR ? 0 : (int)ready;
    if (fds[1].revents && has_ended(process))
        note_end(log);
    else if (fds[1].revents)
        lose_pidfd(process, fds[1].fd);
    return fds[0].revents || log->left >= 0;
}

static void read_output(struct sh_log *log) {
    uint32_t wanted = SH_LOG_BUFFER;
    if (log->left >= 0 && (uint32_t)log->left < wanted)
        wanted = (uint32_t)log->left;
    long length = wanted == 0 ? 0 : SYS(read, log->source, log->buffer, wanted);
    if (length == -EINTR || (length == -EAGAIN && log->left < 0))
        return;
    if (length <= 0) {
        close_source(log);
        return;
    }
    log->length = (uint32_t)length;
    if (log->left >= 0)
        log->left -= (int32_t)length;
}

static int copy_output(struct sh_process *process, struct sh_log *log, int64_t deadline) {
    for (;;) {
        int done = flush_log(log, deadline);
        if (done != 1)
            return done;
        if (log->source == 0)
            return 1;
        if (log->left < 0) {
            done = await_output(process, log, deadline);
            if (done != 1)
                return done;
        }
        read_output(log);
    }
}

int sh_wait_log(struct sh_process *process, int64_t nsec, struct sh_log *log) {
    if (!sh_mine(process))
        return -EPERM;
    int64_t deadline = deadline_after(nsec < 0 && in_main_thread() ? SH_SLICE_NSEC : nsec);
    uint64_t before = block_sigpipe();
    int done = copy_output(process, log, deadline);
    restore_sigpipe(before);
    return done == 1 ? wait_until(process, deadline) : done;
}
