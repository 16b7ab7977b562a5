/* The child's stages of isolation, and the intermediate that makes holder and
 * command. Part of spawnhelper.c: the same rules hold.
 *
 * A pid namespace is for children only (unshare(2)): somebody must enter it and
 * make two of them, its pid 1 and the command. In our own thread that would
 * need the way back to be open, and a user namespace can have no threads; so a
 * short-lived process does it. It makes both with CLONE_PARENT: they are our
 * children, and the command's wait status needs no translation.
 */
#ifndef SPAWNHELPER_ISOLATION_H
#define SPAWNHELPER_ISOLATION_H

#include <sys/mount.h>

#include "net.h"

static int is_tolerated(int stage) {
    enum { FATAL, TOLERATED };
    static const unsigned char policies[] = {
#define SH_STAGE(name, policy) policy,
        SH_STAGES(SH_STAGE)
#undef SH_STAGE
    };
    return policies[stage] == TOLERATED;
}

/* Under best effort a failure of a tolerated stage becomes a note. */
static void give_up(orders_t *orders, int stage, long error, int detail) {
    volatile struct sh_result *result = orders->result;
    if (!orders->isolation->best_effort || !is_tolerated(stage))
        fail(orders, stage, error, detail);
    if (result->nnotes == SH_NOTES)
        return;
    volatile struct sh_note *note = &result->notes[result->nnotes++];
    note->stage = stage;
    note->error = (int)-error;
    note->detail = detail;
}

/* ---- cgroup ---- */

static long write_zero(orders_t *orders) {
    int file = (int)SYS(openat, orders->isolation->cgroup, "cgroup.procs", O_WRONLY | O_CLOEXEC, 0);
    if (file < 0)
        return file;
    long error = SYS(write, file, "0", 1);
    SYS(close, file);
    return error;
}

/* Where the clone cannot: cgroup v1, kernels before 5.7. It can wait for an RCU
 * grace period, 7 ms on an idle machine (cgroups(7) does not say so). */
static void join_cgroup(orders_t *orders) {
    if (orders->isolation->cgroup < 0 || orders->isolation->cgroup_at_birth)
        return;
    enter(orders, SH_STAGE_CGROUP);
    long error = write_zero(orders);
    if (error < 0)
        give_up(orders, SH_STAGE_CGROUP, error, 0);
}

/* ---- namespaces ---- */

/* A number in decimal; returns its length. */
static uint32_t write_number(char *text, uint32_t number) {
    char digits[10];
    uint32_t count = 0;
    do
        digits[count++] = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    for (uint32_t i = 0; i < count; i++)
        text[i] = digits[count - 1 - i];
    return count;
}

/* In the intermediate the table is our parent's, which closes the file, whatever
 * happens here; elsewhere exec does. */
static long write_file(orders_t *orders, const char *path, const char *text, uint32_t length) {
    int file = (int)SYS(openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    if (file < 0)
        return file;
    struct sh_births *births = orders->isolation->births;
    births->maps[births->nmaps++] = file;
    long error = SYS(write, file, text, length);
    return error < 0 ? error : 0;
}

/* "inside outside 1": more than the own id needs privileges outside (user_namespaces(7)). */
static long map_id(orders_t *orders, const char *path, uint32_t inside, uint32_t outside) {
    char text[32];
    uint32_t length = write_number(text, inside);
    text[length++] = ' ';
    length += write_number(text + length, outside);
    text[length++] = ' ';
    text[length++] = '1';
    return write_file(orders, path, text, length);
}

/* Who could drop a group could reach what the group is refused (CVE-2014-8989):
 * a gid is mapped only where setgroups is denied. */
static long map_ids(orders_t *orders) {
    const struct sh_isolation *isolation = orders->isolation;
    int root = (orders->request->flags & SH_USER_ROOT) != 0;
    long error = map_id(orders, "/proc/self/uid_map", root ? 0 : isolation->uid, isolation->uid);
    if (error == 0)
        error = write_file(orders, "/proc/self/setgroups", "deny", 4);
    if (error == 0)
        error = map_id(orders, "/proc/self/gid_map", root ? 0 : isolation->gid, isolation->gid);
    return error;
}

static void map_user(orders_t *orders, uint32_t had) {
    if (!(had & SH_NEWUSER))
        return;
    long error = map_ids(orders);
    if (error < 0)
        fail(orders, SH_STAGE_NAMESPACES, error, SH_NEWUSER);
}

/* The user namespace gives the rights for the others. Then the mount namespace: without it a pid
 * namespace could not get its /proc. */
static void unshare_singly(orders_t *orders, uint32_t wanted) {
    static const uint32_t flags[] = {SH_NEWUSER, SH_NEWNS,  SH_NEWPID,
                                     SH_NEWNET,  SH_NEWUTS, SH_NEWIPC};
    struct sh_births *births = orders->isolation->births;
    long error = 0;
    for (unsigned i = 0; i < sizeof flags / sizeof *flags; i++) {
        if (!(wanted & flags[i]))
            continue;
        if (flags[i] != SH_NEWPID || births->namespaces & SH_NEWNS)
            error = SYS(unshare, flags[i]);
        if (error < 0)
            give_up(orders, SH_STAGE_NAMESPACES, error, (int)flags[i]);
        else
            births->namespaces |= flags[i];
        if (error >= 0)
            map_user(orders, flags[i]);
    }
}

static void unshare_namespaces(orders_t *orders, uint32_t wanted) {
    const struct sh_isolation *isolation = orders->isolation;
    wanted &= ~isolation->births->namespaces;
    if (!wanted)
        return;
    enter(orders, SH_STAGE_NAMESPACES);
    if (isolation->one_by_one) {
        unshare_singly(orders, wanted);
        return;
    }
    long error = SYS(unshare, wanted);
    if (error < 0)
        fail(orders, SH_STAGE_NAMESPACES, error, SH_UNSHARE_REFUSED);
    isolation->births->namespaces |= wanted;
    map_user(orders, wanted);
}

static int needs_cwd(orders_t *orders) {
    const char *asked = orders->request->cwd;
    return !asked || asked[0] != '/';
}

/* setns(2) into a mount namespace moves root and cwd to its root, which is
 * outside a chroot that its creator lived in. */
static void move_into_root(orders_t *orders, const char *cwd) {
    long error = SYS(fchdir, orders->isolation->set->root);
    if (error == 0)
        error = SYS(chroot, ".");
    if (error < 0)
        fail(orders, SH_STAGE_NAMESPACES, error, SH_NEWNS);
    if (!needs_cwd(orders))
        return;
    error = SYS(chdir, cwd);
    if (error < 0)
        fail(orders, SH_STAGE_CHDIR, error, 0);
}

static const uint32_t namespace_flags[] = {
#define SH_NAMESPACE(name, file) SH_NEW##name,
    SH_NAMESPACES(SH_NAMESPACE)
#undef SH_NAMESPACE
};

static void enter_namespace(orders_t *orders, int which) {
    const struct sh_set *set = orders->isolation->set;
    if (!(set->namespaces & namespace_flags[which]))
        return;
    long error = SYS(setns, set->fds[which], namespace_flags[which]);
    if (error < 0)
        fail(orders, SH_STAGE_NAMESPACES, error, (int)namespace_flags[which]);
}

/* By the holder's pidfd in one step (5.8), unless it has capabilities that the
 * caller lacks: ptrace rights over it are needed (setns(2)). Then one by one. */
static void enter_rest(orders_t *orders) {
    const struct sh_set *set = orders->isolation->set;
    uint32_t rest = set->namespaces & ~(uint32_t)SH_NEWPID;
    if (orders->isolation->intermediate)
        rest &= ~(uint32_t)SH_NEWUSER;
    if (!rest || SYS(setns, set->holder_pidfd, rest) == 0)
        return;
    if (!orders->isolation->intermediate)
        enter_namespace(orders, SH_NAMESPACE_USER);
    for (int which = SH_NAMESPACE_NET; which < SH_NAMESPACE_COUNT; which++)
        enter_namespace(orders, which);
}

/* Explicitly given, so never entered in part: best effort does not apply. */
static void enter_set(orders_t *orders) {
    const struct sh_set *set = orders->isolation->set;
    char cwd[4096];
    if (!set)
        return;
    enter(orders, SH_STAGE_NAMESPACES);
    if (set->namespaces & SH_NEWUSER && hide_copy(orders) < 0)
        fail(orders, SH_STAGE_NAMESPACES, -EPERM, SH_NEWUSER);
    if (set->namespaces & SH_NEWNS && needs_cwd(orders)) {
        long error = SYS(getcwd, cwd, sizeof cwd);
        if (error < 0)
            fail(orders, SH_STAGE_CHDIR, error, 0);
    }
    enter_rest(orders);
    if (set->namespaces & SH_NEWNS)
        move_into_root(orders, cwd);
}

/* ---- mounts ---- */

static int own_pid(void) { return (int)SYS(getpid); }

static long make_slave(void) { return SYS(mount, 0, "/", 0, MS_REC | MS_SLAVE, 0); }

/* Below a chroot that is no mount point "/" names no mount. Entering the own
 * mount namespace leads to its real root (setns(2)), from which it does; then back. */
static long make_slave_from_outside(orders_t *orders) {
    long error = -EINVAL;
    int self = (int)SYS(openat, AT_FDCWD, "/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC, 0);
    int root = (int)SYS(openat, AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    int cwd = (int)SYS(openat, AT_FDCWD, ".", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    if (self < 0) /* no /proc in the chroot: pidfd_open is for our own pid, too */
        self = (int)SYS(pidfd_open, own_pid(), 0);
    if (self >= 0 && root >= 0 && cwd >= 0 && SYS(setns, self, SH_NEWNS) == 0) {
        error = make_slave();
        long back = SYS(fchdir, root);
        if (back == 0)
            back = SYS(chroot, ".");
        if (back == 0)
            back = SYS(fchdir, cwd);
        if (back < 0) /* outside the chroot: it must not go on */
            fail(orders, SH_STAGE_PROPAGATION, back, 0);
    }
    SYS(close, self);
    SYS(close, root);
    SYS(close, cwd);
    return error;
}

/* Mounts made inside stay inside; what the host mounts later arrives. Whether that holds. */
static int stop_propagation(orders_t *orders) {
    if (!(orders->isolation->births->namespaces & SH_NEWNS))
        return 0;
    enter(orders, SH_STAGE_PROPAGATION);
    long error = make_slave();
    if (error == -EINVAL)
        error = make_slave_from_outside(orders);
    if (error < 0)
        give_up(orders, SH_STAGE_PROPAGATION, error, 0);
    return error == 0;
}

/* Only over a tree that is known not to propagate. */
static void mount_proc(orders_t *orders, int contained) {
    if (!(orders->isolation->births->namespaces & SH_NEWPID))
        return;
    enter(orders, SH_STAGE_PROC);
    long error = -EPERM;
    if (contained)
        error = SYS(mount, "proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
    if (error < 0)
        fail(orders, SH_STAGE_PROC, error, 0);
}

/* ---- network ---- */

/* The host's own name often has no address inside. */
static void name_host(orders_t *orders) {
    if (!(orders->isolation->births->namespaces & SH_NEWUTS))
        return;
    enter(orders, SH_STAGE_HOSTNAME);
    long error = SYS(sethostname, "localhost", 9);
    if (error < 0)
        give_up(orders, SH_STAGE_HOSTNAME, error, 0);
}

static void raise_loopback(orders_t *orders) {
    if (!(orders->isolation->births->namespaces & SH_NEWNET))
        return;
    enter(orders, SH_STAGE_LOOPBACK);
    long error = sh_net_raise_loopback();
    if (error < 0)
        give_up(orders, SH_STAGE_LOOPBACK, error, 0);
}

/* ---- the whole ---- */

/* The holder must know the command by its number in this namespace, whichever it is. */
static void tell_holder(orders_t *orders) {
    const struct sh_isolation *isolation = orders->isolation;
    if (isolation->for_set || isolation->births->holder.pid <= 0)
        return;
    int32_t pid = own_pid();
    long error;
    do
        error = SYS(write, isolation->line[1], &pid, sizeof pid);
    while (error == -EINTR);
    if (error != sizeof pid)
        fail(orders, SH_STAGE_NAMESPACES, error < 0 ? error : -EIO, SH_NEWPID);
}

/* Until its exec the holder has our memory, and here are processes that could
 * read it there (/proc/1/mem). If it dies the kernel kills us, too. */
static void await_holder(orders_t *orders) {
    const struct sh_isolation *isolation = orders->isolation;
    uint64_t count;
    long error;
    if (isolation->for_set || isolation->births->holder.pid <= 0)
        return;
    enter(orders, SH_STAGE_NAMESPACES);
    do
        error = SYS(read, isolation->ready, &count, sizeof count);
    while (error == -EINTR);
    if (error < 0)
        fail(orders, SH_STAGE_NAMESPACES, error, SH_NEWPID);
}

static void furnish(orders_t *orders) {
    int contained = stop_propagation(orders);
    mount_proc(orders, contained);
    name_host(orders);
    raise_loopback(orders);
}

static void isolate(orders_t *orders) {
    if (!orders->isolation)
        return;
    join_cgroup(orders);
    tell_holder(orders);
    enter_set(orders);
    if (orders->isolation->by_clone && !orders->isolation->intermediate)
        map_user(orders, orders->isolation->fresh);
    if (!orders->isolation->intermediate || !orders->isolation->one_by_one)
        unshare_namespaces(orders, orders->isolation->fresh);
    furnish(orders);
    await_holder(orders);
}

/* A new session is a new autogroup, between which the nice value counts (sched(7),
 * bugs.gentoo.org/777492): without this a niced build would be as greedy as any. */
static void keep_nice(void) {
    long priority = SYS(getpriority, 0, 0);
    int nice = 20 - (int)priority;
    if (priority < 0 || nice == 0)
        return;
    char text[4];
    int length = 0, size = nice < 0 ? -nice : nice;
    if (nice < 0)
        text[length++] = '-';
    if (size >= 10)
        text[length++] = (char)('0' + size / 10);
    text[length++] = (char)('0' + size % 10);
    int file = (int)SYS(openat, AT_FDCWD, "/proc/self/autogroup", O_WRONLY | O_CLOEXEC, 0);
    if (file < 0)
        return; /* a kernel without, or no /proc: nothing is lost */
    SYS(write, file, text, length);
    SYS(close, file);
}

/* kill(0, …) and terminal signals from inside reach nobody outside, and the reverse. */
static void start_session(orders_t *orders) {
    if (!(orders->request->flags & SH_NEW_SESSION))
        return;
    long error = SYS(setsid);
    if (error < 0)
        fail(orders, SH_STAGE_CLONE, error, 0);
    keep_nice();
}

/* ---- making processes that share this memory ---- */

#ifdef SH_HAVE_CLONE3_ENTRY

static uint64_t birth_flags(orders_t *orders) {
    uint64_t flags = CLONE_VM | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID | CLONE_PIDFD;
    if (orders->isolation->cgroup_at_birth)
        flags |= SH_CLONE_INTO_CGROUP;
    return flags;
}

/* With clone(2) pid and pidfd would share an argument; our parent opens the pidfd. */
static long clone_old(orders_t *orders, uint64_t flags, struct sh_birth *birth, char *top,
                      void (*entry)(void *)) {
    flags &= ~(uint64_t)(CLONE_PIDFD | SH_CLONE_CLEAR_SIGHAND | SH_CLONE_INTO_CGROUP);
    return sh_clone((unsigned long)flags, top, &birth->pid, &birth->busy, entry, (void *)orders);
}

static long give_birth(orders_t *orders, uint64_t flags, struct sh_birth *birth, char *top,
                       void (*entry)(void *)) {
    const struct sh_isolation *isolation = orders->isolation;
    struct sh_clone_args args;
    sh_net_zero(&args, sizeof args);
    flags |= birth_flags(orders);
    args.flags = flags;
    args.pidfd = (uintptr_t)&birth->pidfd;
    args.parent_tid = (uintptr_t)&birth->pid;
    args.child_tid = (uintptr_t)&birth->busy;
    args.stack = (uintptr_t)(top - isolation->stack_size);
    args.stack_size = isolation->stack_size;
    if (isolation->cgroup_at_birth)
        args.cgroup = (uint64_t)isolation->cgroup;
    birth->busy = 1; /* cleared by the kernel when the memory is ours again */
    long pid = isolation->clone3 ? sh_clone3(&args, sizeof args, entry, (void *)orders)
                                 : clone_old(orders, flags, birth, top, entry);
    if (pid < 0) {
        birth->busy = 0;
        birth->pid = 0;
    }
    return pid;
}

#else

static long give_birth(orders_t *orders, uint64_t flags, struct sh_birth *birth, char *top,
                       void (*entry)(void *)) {
    (void)orders, (void)flags, (void)birth, (void)top, (void)entry;
    return -ENOSYS; /* docs/kernels.md: no pid namespaces on this architecture */
}

#endif

/* A refused clone names what it was refused for. */
static int stage_of_clone(orders_t *orders, long error, uint64_t flags) {
    if (orders->isolation->cgroup_at_birth && sh_is_cgroup_error(error))
        return SH_STAGE_CGROUP;
    if (error == -EAGAIN || error == -ENOMEM || error == -EMFILE || error == -ENFILE)
        return SH_STAGE_CLONE;
    return flags & SH_NEWPID ? SH_STAGE_NAMESPACES : SH_STAGE_CLONE;
}

/* ---- the holder, before it is exec'd ---- */

_Noreturn static void fail_holder(orders_t *orders, int stage, long error) {
    struct sh_births *births = orders->isolation->births;
    births->holder_stage = stage;
    births->holder_error = (int)-error;
    leave();
}

/* The kernel then reaps its children by itself, orphans included. */
static void ignore_children(void) {
    struct sh_sigaction action;
    action.handler = SIG_IGN;
    action.flags = 0;
    action.restorer = 0;
    action.mask = 0;
    SYS(rt_sigaction, SIGCHLD, &action, 0, sizeof action.mask);
}

/* The copy of a large table is saved, where the holder can detach from it. */
static int shares_files(orders_t *orders) {
    return !(orders->avoid & (SH_AVOID_CLOSE_RANGE | SH_AVOID_SHARED_FILES));
}

/* First of all: what is opened before would stay in our parent's table if we were killed. */
static void detach_holder_files(orders_t *orders) {
    if (!shares_files(orders))
        return;
    long error = SYS(close_range, orders->isolation->highest + 1, ~0U, SH_CLOSE_RANGE_UNSHARE);
    if (error < 0)
        error = SYS(unshare, CLONE_FILES);
    if (error < 0)
        fail_holder(orders, SH_STAGE_FDS, error);
}

/* The owner on 0, the line on 1, the eventfd on 2, the program on 3, and nothing else. */
static void arrange_holder_fds(orders_t *orders) {
    const struct sh_isolation *isolation = orders->isolation;
    long error = SYS(dup3, isolation->owner, 0, 0);
    if (error >= 0)
        error = SYS(dup3, isolation->line[0], 1, 0);
    if (error >= 0)
        error = SYS(dup3, isolation->ready, 2, 0);
    if (error >= 0)
        error = SYS(dup3, isolation->program, SH_HOLDER_PROGRAM, O_CLOEXEC);
    if (error >= 0)
        error = close_span(orders, SH_HOLDER_PROGRAM + 1, INT32_MAX);
    if (error < 0)
        fail_holder(orders, SH_STAGE_FDS, error);
}

/* By descriptor: the path may lie outside a chroot, or beyond the caller's rights. */
static void become_holder(void *argument) {
    orders_t *orders = argument;
    const struct sh_isolation *isolation = orders->isolation;
    static const char name[] = "spawnhelper";
    const char *argv[2], *env[1];
    argv[0] = name;
    argv[1] = env[0] = 0;
    detach_holder_files(orders);
    ignore_children();
    SYS(setsid);
    if (isolation->cgroup >= 0 && !isolation->cgroup_at_birth)
        write_zero(orders); /* the command says what is wrong */
    if (isolation->for_set)
        furnish(orders);
    arrange_holder_fds(orders);
    SYS(chdir, "/");
    isolation->births->holder_stage = SH_STAGE_EXEC;
    long error = SYS(execveat, SH_HOLDER_PROGRAM, "", argv, env, SH_AT_EMPTY_PATH);
    fail_holder(orders, SH_STAGE_NAMESPACES, error);
}

/* In one-shot sets it execs while the command is under way. */
long sh_make_holder(orders_t *orders) {
    const struct sh_isolation *isolation = orders->isolation;
    uint64_t flags = 0;
    if (isolation->intermediate)
        flags |= CLONE_PARENT;
    if (isolation->for_set || !isolation->intermediate)
        flags |= CLONE_VFORK;
    if (shares_files(orders))
        flags |= CLONE_FILES;
    if (isolation->by_clone && isolation->fresh & SH_NEWPID)
        flags |= SH_NEWPID;
    struct sh_births *births = isolation->births;
    uint32_t before = births->namespaces;
    if (isolation->by_clone)
        births->namespaces |= isolation->fresh & SH_NEWPID; /* before it furnishes its set */
    long pid = give_birth(orders, flags, &births->holder, isolation->holder_stack, become_holder);
    if (pid < 0) {
        births->namespaces = before;
        return pid;
    }
    return 0;
}

/* ---- the intermediate ---- */

static void obtain_pid_namespace(orders_t *orders) {
    const struct sh_isolation *isolation = orders->isolation;
    if (isolation->set) {
        enter(orders, SH_STAGE_NAMESPACES);
        enter_namespace(orders, SH_NAMESPACE_USER);
        enter_namespace(orders, SH_NAMESPACE_PID);
        return;
    }
    if (isolation->by_clone) { /* the clones have made, or will make, what is asked for */
        map_user(orders, isolation->fresh);
        return;
    }
    int all = isolation->one_by_one || isolation->for_set;
    uint32_t first = SH_NEWUSER | SH_NEWPID;
    unshare_namespaces(orders, all ? isolation->fresh : isolation->fresh & first);
}

/* With unshare denied only the holder was born into the pid namespace. */
static void follow_holder(orders_t *orders) {
    const struct sh_isolation *isolation = orders->isolation;
    int pidfd = isolation->births->holder.pidfd;
    long own = -1;
    if (pidfd < 0)
        own = pidfd = (int)SYS(pidfd_open, isolation->births->holder.pid, 0);
    long error = pidfd < 0 ? pidfd : SYS(setns, pidfd, SH_NEWPID);
    if (own >= 0)
        SYS(close, own);
    if (error < 0)
        fail(orders, SH_STAGE_NAMESPACES, error, SH_NEWPID);
}

static void make_holder(orders_t *orders) {
    const struct sh_isolation *isolation = orders->isolation;
    int pid_wanted = isolation->by_clone ? isolation->fresh & SH_NEWPID
                                         : isolation->births->namespaces & SH_NEWPID;
    if (isolation->set || (!pid_wanted && !isolation->for_set))
        return;
    long error = sh_make_holder(orders);
    if (error < 0)
        fail(orders, stage_of_clone(orders, error, isolation->fresh), error, SH_NEWPID);
    if (isolation->for_set && isolation->births->holder_stage != SH_STAGE_EXEC)
        leave(); /* it has said why */
    if (isolation->by_clone && pid_wanted)
        follow_holder(orders);
}

/* Opened by a member: /proc/PID/ns of the holder would be a matter of ptrace
 * rights, which a caller with few capabilities has not over an exec'd holder.
 * The directory is opened before the holder mounts its own /proc. */
static void keep_set(orders_t *orders) {
    static const char *const names[] = {
#define SH_NAMESPACE(name, file) file,
        SH_NAMESPACES(SH_NAMESPACE)
#undef SH_NAMESPACE
    };
    const struct sh_isolation *isolation = orders->isolation;
    int directory = isolation->births->directory;
    for (int i = 0; i < SH_NAMESPACE_COUNT; i++) {
        if (!(isolation->births->namespaces & namespace_flags[i]))
            continue;
        long fd = -1; /* no /proc: our parent takes the holder's pidfd (setns(2), 5.8) */
        if (directory >= 0)
            fd = SYS(openat, directory, names[i], O_RDONLY | O_CLOEXEC, 0);
        if (fd < 0 && directory >= 0)
            fail(orders, SH_STAGE_NAMESPACES, fd, (int)namespace_flags[i]);
        isolation->births->fds[i] = (int)fd;
    }
    if (!(isolation->births->namespaces & SH_NEWNS))
        return;
    long root = SYS(openat, AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    if (root < 0)
        fail(orders, SH_STAGE_NAMESPACES, root, SH_NEWNS);
    isolation->births->root = (int)root;
}

static void become_command(void *orders) {
    sh_child_prepare(orders);
    sh_child_execute(orders);
}

static void make_command(orders_t *orders) {
    uint64_t flags = CLONE_VFORK | CLONE_PARENT | SH_CLONE_CLEAR_SIGHAND;
    const struct sh_isolation *isolation = orders->isolation;
    if (orders->shared_files >= 0)
        flags |= CLONE_FILES;
    enter(orders, SH_STAGE_CLONE);
    struct sh_birth *command = &isolation->births->command;
    long pid = give_birth(orders, flags, command, isolation->command_stack, become_command);
    if (pid < 0)
        fail(orders, stage_of_clone(orders, pid, 0), pid, 0);
}

/* Our parent closes it, whatever happens here: the table is its own. */
static void open_own_namespaces(orders_t *orders) {
    if (orders->isolation->for_set)
        orders->isolation->births->directory =
            (int)SYS(openat, AT_FDCWD, "/proc/self/ns", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
}

void sh_intermediate(void *argument) {
    orders_t *orders = argument;
    open_own_namespaces(orders);
    obtain_pid_namespace(orders);
    make_holder(orders);
    if (orders->isolation->for_set)
        keep_set(orders);
    else
        make_command(orders);
    leave();
}

#endif
