/* The parent's side of isolation: what is opened before the clone, the other
 * ways when one is refused, and what a failure must undo. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "parent.h"
#include "state.h"
#include "sys.h"

/* ---- what must be open ---- */

int sh_off_standard(int fd) {
    if (fd < 0 || fd > STDERR_FILENO)
        return fd;
    long moved = SYS(fcntl, fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    SYS(close, fd);
    return (int)moved;
}

static void note_highest(struct sh_isolation *isolation, int fd) {
    if (fd > isolation->highest)
        isolation->highest = fd;
}

static int hold(struct sh_isolation *isolation, int *place, long fd) {
    *place = sh_off_standard((int)fd);
    note_highest(isolation, *place);
    return *place < 0 ? *place : 0;
}

static struct {
    const char *path, *image;
    size_t size;
    dev_t device;
    ino_t inode;
} program;

void sh_set_holder(const char *path, const char *image, uint32_t size) {
    struct stat status;
    program.path = path;
    program.image = image;
    program.size = size;
    if (stat(path, &status) == 0) {
        program.device = status.st_dev;
        program.inode = status.st_ino;
    }
}

/* Where the file cannot be reached, in a chroot or after a change of user, its
 * image serves as well. */
static long open_image(void) {
    if (program.size == 0)
        return -ENOENT; /* nor could it be read at import */
    long fd = SYS(memfd_create, "spawnhelper-holder", MFD_CLOEXEC);
    if (fd < 0)
        return fd;
    long written = SYS(write, fd, program.image, program.size);
    if (written == (long)program.size)
        return fd;
    SYS(close, fd);
    return written < 0 ? written : -EIO;
}

/* In a chroot the path may lead to somebody's file, which must not run with our rights. */
static long open_program(void) {
    struct stat status;
    long fd = SYS(openat, AT_FDCWD, program.path, O_PATH | O_CLOEXEC, 0);
    if (fd >= 0 && fstat((int)fd, &status) == 0 && status.st_dev == program.device &&
        status.st_ino == program.inode)
        return fd;
    if (fd >= 0)
        SYS(close, fd);
    return open_image();
}

static int open_line(struct sh_isolation *isolation) {
    int ends[2];
    long error = SYS(pipe2, ends, O_CLOEXEC);
    if (error < 0)
        return (int)error;
    error = hold(isolation, &isolation->line[0], ends[0]);
    int other = hold(isolation, &isolation->line[1], ends[1]);
    return error < 0 ? (int)error : other;
}

static int open_channels(struct sh_isolation *isolation) {
    int error = hold(isolation, &isolation->ready, SYS(eventfd2, 0, O_CLOEXEC));
    return error < 0 ? error : open_line(isolation);
}

static int take_stacks(struct sh_isolation *isolation) {
    isolation->holder_stack = sh_take_stack(&isolation->stack_size);
    isolation->command_stack = sh_take_stack(&isolation->stack_size);
    return isolation->holder_stack && isolation->command_stack ? 0 : -ENOMEM;
}

/* Without pidfds a holder could not tell its owner's end. */
static int open_holder(struct sh_isolation *isolation) {
    if (sh_avoids(SH_AVOID_PIDFD) || sh_start_mode() == SH_START_PIPE)
        return -ENOSYS;
    int error = hold(isolation, &isolation->owner, SYS(pidfd_open, (int)getpid(), 0));
    if (error == 0)
        error = hold(isolation, &isolation->program, open_program());
    if (error == 0)
        error = open_channels(isolation);
    return error == 0 ? take_stacks(isolation) : error;
}

/* Any directory may hold a file called cgroup.procs. */
static int is_cgroup(int directory) {
    enum { CGROUP1 = 0x27e0eb, CGROUP2 = 0x63677270 }; /* linux/magic.h */
    struct statfs system;
    return fstatfs(directory, &system) == 0 &&
           (system.f_type == CGROUP1 || system.f_type == CGROUP2);
}

static int open_cgroup(struct sh_isolation *isolation, const char *path) {
    long fd = SYS(openat, AT_FDCWD, path, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    int error = hold(isolation, &isolation->cgroup, fd);
    if (error < 0)
        return error;
    isolation->cgroup_at_birth =
        sh_start_mode() == SH_START_CLONE3 && !sh_avoids(SH_AVOID_CLONE3) && !isolation->forks;
    return isolation->cgroup_at_birth || is_cgroup(isolation->cgroup) ? 0 : -ENOENT;
}

/* A thread that has entered a pid namespace must be able to return: its every
 * later fork would go there, too. Going where it is already shows it. */
static void open_way_back(struct sh_isolation *isolation) {
    if (sh_avoids(SH_AVOID_THREAD_SETNS))
        return;
    int error = hold(isolation, &isolation->home, SYS(pidfd_open, (int)getpid(), 0));
    if (error == 0 && SYS(setns, isolation->home, SH_NEWPID) == 0)
        return;
    if (isolation->home >= 0)
        SYS(close, isolation->home);
    isolation->home = -1;
}

/* ---- opening and closing ---- */

const uint32_t sh_namespace_flags[] = {
#define SH_NAMESPACE(name, file) SH_NEW##name,
    SH_NAMESPACES(SH_NAMESPACE)
#undef SH_NAMESPACE
};

void sh_add_notes(struct sh_result *result, const struct sh_note *notes, int count) {
    for (int i = 0; i < count && result->nnotes < SH_NOTES; i++)
        result->notes[result->nnotes++] = notes[i];
}

static int is_shortage(int error) {
    return error == EMFILE || error == ENFILE || error == ENOMEM || error == EAGAIN;
}

static int is_tolerated(struct sh_isolation *isolation, int stage, int error, int detail) {
    if (!isolation->best_effort || !sh_stage_tolerated(stage) || is_shortage(error))
        return 0;
    if (isolation->nnotes == SH_NOTES)
        return 1;
    struct sh_note *note = &isolation->notes[isolation->nnotes++];
    note->stage = stage;
    note->error = error;
    note->detail = detail;
    return 1;
}

static void drop_cgroup(struct sh_isolation *isolation) {
    if (isolation->cgroup >= 0)
        SYS(close, isolation->cgroup);
    isolation->cgroup = -1;
    isolation->cgroup_at_birth = 0;
}

static void drop_pid_namespace(struct sh_isolation *isolation) {
    isolation->fresh &= ~(uint32_t)SH_NEWPID;
    isolation->intermediate = 0;
}

static int open_set(struct sh_isolation *isolation, struct sh_set *set) {
    int error = sh_set_use(set);
    if (error < 0)
        return error;
    isolation->set = set;
    isolation->nnotes = (int)set->result.nnotes;
    memcpy(isolation->notes, set->result.notes, sizeof set->result.notes);
    for (int i = 0; i < SH_NAMESPACE_COUNT; i++)
        note_highest(isolation, set->fds[i]);
    note_highest(isolation, set->root);
    note_highest(isolation, set->holder_pidfd);
    if (set->namespaces & SH_NEWPID && !(set->namespaces & SH_NEWUSER))
        open_way_back(isolation);
    if (!(set->namespaces & SH_NEWPID) || isolation->home >= 0)
        return 0;
    if (isolation->forks)
        return -EPERM;
    if (sh_start_mode() == SH_START_PIPE)
        return -ENOSYS;
    isolation->intermediate = 1;
    return take_stacks(isolation);
}

static int open_fresh(struct sh_isolation *isolation) {
    if (!(isolation->fresh & SH_NEWPID) && !isolation->for_set)
        return 0;
    if (isolation->forks && isolation->fresh & SH_NEWUSER)
        return -EINVAL; /* a thread of a program with others cannot (unshare(2)) */
    if (isolation->forks) {
        open_way_back(isolation);
        if (isolation->home < 0)
            return -EPERM;
    }
    isolation->intermediate = !isolation->forks;
    return open_holder(isolation);
}

static struct sh_isolation *allocate(const struct sh_request *request, struct sh_set *made,
                                     int forks) {
    struct sh_isolation *isolation = calloc(1, sizeof *isolation);
    if (!isolation)
        return NULL;
    isolation->births = &isolation->own_births;
    isolation->fresh = request->namespaces;
    isolation->best_effort = (request->flags & SH_BEST_EFFORT) != 0;
    isolation->forks = isolation->one_by_one = forks;
    isolation->made = made;
    isolation->for_set = made != NULL;
    if (isolation->fresh & SH_NEWUSER) {
        isolation->uid = geteuid();
        isolation->gid = getegid();
    }
    isolation->cgroup = isolation->home = isolation->owner = isolation->program = -1;
    isolation->ready = isolation->line[0] = isolation->line[1] = -1;
    return isolation;
}

static int open_namespaces(struct sh_isolation *isolation, struct sh_set *set) {
    if (set)
        return open_set(isolation, set);
    int error = open_fresh(isolation);
    if (error == 0 || isolation->for_set ||
        !is_tolerated(isolation, SH_STAGE_NAMESPACES, -error, SH_NEWPID))
        return error;
    drop_pid_namespace(isolation);
    return 0;
}

struct sh_isolation *sh_isolation_open(const struct sh_request *request, struct sh_process *process,
                                       struct sh_set *made, int forks) {
    int stage = SH_STAGE_CGROUP, error = 0;
    int culprit = sh_closed_source(request); /* before its number is taken */
    if (culprit >= 0) {
        sh_refuse(process, SH_STAGE_FDS, EBADF, culprit);
        return NULL;
    }
    struct sh_isolation *isolation = allocate(request, made, forks);
    if (!isolation) {
        sh_refuse(process, SH_STAGE_CLONE, ENOMEM, 0);
        return NULL;
    }
    if (request->cgroup)
        error = open_cgroup(isolation, request->cgroup);
    if (error < 0 && is_tolerated(isolation, stage, -error, 0)) {
        drop_cgroup(isolation);
        error = 0;
    }
    if (error == 0) {
        stage = SH_STAGE_NAMESPACES;
        error = open_namespaces(isolation, request->set);
    }
    if (error == 0)
        return isolation;
    if (is_shortage(-error))
        stage = SH_STAGE_CLONE;
    int names_pid = stage == SH_STAGE_NAMESPACES && isolation->fresh & SH_NEWPID;
    sh_refuse(process, stage, -error, names_pid ? SH_NEWPID : 0);
    sh_isolation_close(isolation, process);
    return NULL;
}

static void close_channels(struct sh_isolation *isolation) {
    int fds[] = {isolation->ready, isolation->line[0], isolation->line[1]};
    for (unsigned i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            SYS(close, fds[i]);
    isolation->ready = isolation->line[0] = isolation->line[1] = -1;
}

void sh_isolation_close(struct sh_isolation *isolation, struct sh_process *process) {
    int fds[] = {isolation->cgroup, isolation->home, isolation->owner, isolation->program};
    close_channels(isolation);
    for (unsigned i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            SYS(close, fds[i]);
    if (isolation->holder_stack)
        sh_return_stack(isolation->holder_stack);
    if (isolation->command_stack)
        sh_return_stack(isolation->command_stack);
    sh_add_notes(&process->result, isolation->notes, isolation->nnotes);
    if (isolation->set)
        sh_set_unuse(isolation->set);
    free(isolation);
}

/* ---- the calling thread and pid namespaces ---- */

int sh_isolation_leave_home(struct sh_isolation *isolation) {
    if (!isolation->set || isolation->home < 0)
        return 0;
    isolation->left_home = (int)SYS(setns, isolation->set->fds[SH_NAMESPACE_PID], SH_NEWPID);
    return isolation->left_home;
}

/* It went the same way a moment ago; so memory is short, or another thread has
 * closed the descriptor. A thread that stayed could never fork again. */
void sh_isolation_return_home(struct sh_isolation *isolation) {
    if (isolation->home < 0)
        return;
    long error = SYS(setns, isolation->home, SH_NEWPID);
    for (int tries = 0; error < 0 && tries < 1000; tries++) {
        SYS(sched_yield);
        int self = (int)SYS(pidfd_open, (int)getpid(), 0);
        error = SYS(setns, self, SH_NEWPID);
        if (self >= 0)
            SYS(close, self);
    }
}

/* For a fork of Python, which no intermediate can make. */
int sh_isolation_hold_here(struct sh_isolation *isolation, struct sh_orders *orders,
                           struct sh_process *process) {
    if (!(isolation->fresh & SH_NEWPID))
        return 0;
    long error = SYS(unshare, SH_NEWPID);
    if (error < 0) {
        if (!is_tolerated(isolation, SH_STAGE_NAMESPACES, (int)-error, SH_NEWPID))
            return sh_refuse(process, SH_STAGE_NAMESPACES, (int)-error, SH_NEWPID);
        drop_pid_namespace(isolation);
        return 0;
    }
    struct sh_births *births = isolation->births;
    births->namespaces |= SH_NEWPID;
    isolation->clone3 = !sh_avoids(SH_AVOID_CLONE3);
    error = sh_make_holder(orders);
    /* Any other failure may have used up the namespace's first number. */
    if (isolation->clone3 && (error == -ENOSYS || error == -EPERM || error == -EINVAL)) {
        isolation->clone3 = 0;
        error = sh_make_holder(orders);
    }
    if (error == 0 && births->holder_error == 0)
        return 0;
    if (error == 0)
        sh_reap_failed(births->holder.pid, births->holder.pidfd);
    int stage = error < 0 ? SH_STAGE_CLONE : births->holder_stage;
    memset(&births->holder, 0, sizeof births->holder);
    births->holder.pidfd = -1;
    return sh_refuse(process, stage, error < 0 ? (int)-error : births->holder_error, 0);
}

/* ---- the end of a start ---- */

static int has_ended(const struct sh_birth *birth) {
    siginfo_t info = {0};
    if (birth->pid <= 0)
        return 0;
    long error = SYS(waitid, P_PID, birth->pid, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, NULL);
    return error == 0 && info.si_pid != 0;
}

/* A set's holder runs, or has ended, before a command can come near its memory. */
static void await_ready(const struct sh_isolation *isolation) {
    const struct sh_birth *holder = &isolation->births->holder;
    if (isolation->births->holder_stage != SH_STAGE_EXEC)
        return;
    struct pollfd fd = {.fd = isolation->ready, .events = POLLIN};
    struct timespec slice = {.tv_nsec = 5000000};
    while (SYS(ppoll, &fd, 1, &slice, NULL, 0) <= 0 && !has_ended(holder))
        ;
}

/* The kernel clears the word when a process that shares our memory leaves it. */
static void await_departure(struct sh_birth *birth) {
    uint32_t busy;
    if (*(volatile int32_t *)&birth->pid <= 0)
        return; /* never born: PARENT_SETTID comes first */
    while ((busy = *(volatile uint32_t *)&birth->busy) != 0)
        sh_raw(SYS_futex, (long)&birth->busy, SH_FUTEX_WAIT, (long)busy, 0, 0, 0);
}

static void kill_birth(const struct sh_birth *birth) {
    if (birth->pid > 0)
        sh_kill_holder(birth->pid, birth->pidfd);
}

static int reap_birth(struct sh_birth *birth) {
    if (birth->pid <= 0)
        return 0;
    return sh_reap_failed(birth->pid, birth->pidfd);
}

/* The command first: pid 1 cannot finish dying while a process of its
 * namespace is an unreaped zombie of ours (zap_pid_ns_processes). */
static int undo(struct sh_births *births) {
    kill_birth(&births->holder);
    kill_birth(&births->command);
    await_departure(&births->command);
    await_departure(&births->holder);
    int status = reap_birth(&births->command);
    int holder_status = reap_birth(&births->holder);
    return births->command.pid > 0 ? status : holder_status;
}

void sh_isolation_undo_holder(struct sh_isolation *isolation) {
    kill_birth(&isolation->births->holder);
    reap_birth(&isolation->births->holder);
}

static void blame_holder(struct sh_result *result, const struct sh_births *births) {
    result->stage = births->holder_stage;
    result->error = births->holder_error;
    result->detail = result->stage == SH_STAGE_FDS ? SH_SHARED_FILES_REFUSED : SH_NEWPID;
}

static void blame_death(struct sh_result *result, int status) {
    result->error = ECHILD;
    result->detail = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

/* No memory is what fork says in a pid namespace whose pid 1 has ended (fork(2)). */
static void blame_pid_one(struct sh_isolation *isolation, struct sh_result *result, int ended) {
    if (isolation->set)
        sh_isolation_blame(isolation, result);
    if (!ended)
        return;
    result->stage = SH_STAGE_NAMESPACES;
    result->error = ESRCH;
}

static int is_done(const struct sh_isolation *isolation, const struct sh_result *result,
                   int status) {
    if (isolation->births->holder_error || result->error || !WIFEXITED(status))
        return 0; /* killed, it did not wait for the command to leave our memory */
    if (isolation->for_set)
        return isolation->births->holder_stage == SH_STAGE_EXEC &&
               !has_ended(&isolation->births->holder);
    return result->stage == SH_STAGE_EXEC && isolation->births->command.pid > 0;
}

/* What the intermediate left in our table. */
static void collect_fds(struct sh_isolation *isolation) {
    struct sh_births *births = isolation->births;
    if (births->directory >= 0)
        SYS(close, births->directory);
    for (int i = 0; i < births->nmaps; i++)
        SYS(close, births->maps[i]);
    if (!isolation->made)
        return;
    memcpy(isolation->made->fds, births->fds, sizeof births->fds);
    isolation->made->root = births->root;
}

int sh_isolation_conclude(struct sh_isolation *isolation, struct sh_process *process, int pid) {
    struct sh_births *births = isolation->births;
    struct sh_result *result = &process->result;
    int status = sh_reap_failed(pid, -1);
    if (isolation->for_set)
        await_ready(isolation);
    result->started = 1;
    collect_fds(isolation);
    if (is_done(isolation, result, status)) {
        await_departure(&births->command);
        await_departure(&births->holder);
        if (births->holder_error == 0 && result->error == 0) {
            if (!isolation->for_set)
                sh_adopt(process, births->command.pid,
                         births->command.pidfd >= 0 ? births->command.pidfd
                                                    : sh_pidfd_open(births->command.pid));
            sh_isolation_adopt(isolation, process);
            return 0;
        }
    }
    int holder_ended = has_ended(&births->holder);
    int killed = undo(births);
    if (isolation->made)
        sh_set_close_fds(isolation->made);
    if (births->holder_error)
        blame_holder(result, births);
    else if (result->error == 0)
        blame_death(result, WIFSIGNALED(status) ? status : killed);
    else if (result->error == ENOMEM && result->stage == SH_STAGE_CLONE)
        blame_pid_one(isolation, result, holder_ended);
    return -result->error;
}

/* Number 0 is a pidfd, too, in a program that closed its stdin. */
static int place_pidfd(const struct sh_birth *birth) {
    int pidfd = birth->pidfd >= 0 ? birth->pidfd : sh_pidfd_open(birth->pid);
    return pidfd < 0 ? 0 : sh_place_pidfd(pidfd);
}

void sh_isolation_adopt(struct sh_isolation *isolation, struct sh_process *process) {
    struct sh_birth *holder = &isolation->births->holder;
    if (isolation->set) {
        sh_set_join(isolation->set);
        process->set = isolation->set;
    }
    if (holder->pid <= 0 || isolation->for_set)
        return;
    process->holder = holder->pid;
    process->holder_pidfd = place_pidfd(holder);
    process->holder_id = sh_identify(process->holder_pidfd);
}

/* ---- refusals ---- */

void sh_isolation_blame(struct sh_isolation *isolation, struct sh_result *result) {
    if (result->stage != SH_STAGE_CLONE)
        return;
    if (isolation->left_home < 0) {
        result->stage = SH_STAGE_NAMESPACES;
        result->detail = SH_NEWPID;
    } else if (isolation->cgroup_at_birth && sh_is_cgroup_error(-result->error))
        result->stage = SH_STAGE_CGROUP;
    else if (isolation->by_clone)
        result->stage = SH_STAGE_NAMESPACES;
    else if (isolation->set && sh_set_is_dead(isolation->set)) { /* fork says ENOMEM */
        result->stage = SH_STAGE_NAMESPACES;
        result->error = ESRCH;
    }
}

static void reset(struct sh_isolation *isolation) {
    isolation->births = &isolation->own_births;
    memset(isolation->births, 0, sizeof *isolation->births);
    isolation->births->holder.pidfd = isolation->births->command.pidfd = -1;
    isolation->births->directory = isolation->births->root = -1;
    for (int i = 0; i < SH_NAMESPACE_COUNT; i++)
        isolation->births->fds[i] = -1;
    if (isolation->by_clone)
        isolation->births->namespaces = isolation->fresh & ~(uint32_t)SH_NEWPID;
}

static int retry_cgroup(struct sh_isolation *isolation, struct sh_result *result) {
    if (result->error == EBADF && !is_cgroup(isolation->cgroup))
        result->error = ENOENT;
    /* Before 5.7; and cgroup v1, which only a write can join. */
    if (isolation->cgroup_at_birth &&
        (result->error == EINVAL || result->error == E2BIG || result->error == EBADF)) {
        isolation->cgroup_at_birth = 0;
        return 1;
    }
    if (!is_tolerated(isolation, SH_STAGE_CGROUP, result->error, 0))
        return 0;
    drop_cgroup(isolation);
    return 1;
}

/* unshare(2) of all, else flags of clone (a filter may deny the one only), else
 * unshare one by one, to learn which of them is refused. */
static int retry_namespaces(struct sh_isolation *isolation, const struct sh_result *result) {
    if (result->detail == SH_UNSHARE_REFUSED && !isolation->by_clone) {
        isolation->by_clone = 1;
        return 1;
    }
    if (isolation->by_clone) {
        isolation->by_clone = 0;
        isolation->one_by_one = 1;
        return 1;
    }
    /* It was had, but no id could be mapped. */
    if (result->detail == SH_NEWUSER && isolation->fresh & SH_NEWUSER &&
        is_tolerated(isolation, SH_STAGE_NAMESPACES, result->error, SH_NEWUSER)) {
        isolation->fresh &= ~(uint32_t)SH_NEWUSER;
        return 1;
    }
    return 0;
}

int sh_isolation_retry(struct sh_isolation *isolation, struct sh_process *process) {
    struct sh_result *result = &process->result;
    int again = 0;
    if (result->detail == SH_SHARED_FILES_REFUSED && result->stage == SH_STAGE_FDS)
        return 0; /* sh_start() begins anew */
    if (result->stage == SH_STAGE_CGROUP)
        again = retry_cgroup(isolation, result);
    else if (result->stage == SH_STAGE_NAMESPACES && !isolation->set)
        again = retry_namespaces(isolation, result);
    return again;
}

/* What a failed try has left in them would mislead the next: the pid of a command
 * whose holder had no time to read it, the word of a holder that is dead. */
static int renew_channels(struct sh_isolation *isolation) {
    if (isolation->ready < 0)
        return 0;
    close_channels(isolation);
    return open_channels(isolation);
}

int sh_isolation_begin(struct sh_isolation *isolation, struct sh_process *process) {
    reset(isolation);
    memset(&process->result, 0, sizeof process->result);
    int error = isolation->tries++ > 0 ? renew_channels(isolation) : 0;
    return error < 0 ? sh_refuse(process, SH_STAGE_CLONE, -error, 0) : 0;
}

/* Where vfork is not real nobody can tell us of a holder. */
int sh_isolation_can_fork(struct sh_isolation *isolation, struct sh_process *process) {
    if (!isolation->intermediate)
        return 1;
    if (!isolation->for_set && isolation->fresh & SH_NEWPID &&
        is_tolerated(isolation, SH_STAGE_NAMESPACES, ENOSYS, SH_NEWPID)) {
        drop_pid_namespace(isolation);
        reset(isolation);
        return 1;
    }
    sh_refuse(process, SH_STAGE_NAMESPACES, ENOSYS, SH_NEWPID);
    return 0;
}
