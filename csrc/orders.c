/* Building the orders: memory for the child, argv and env vectors, the program, the fd plan. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "parent.h"
#include "state.h"
#include "sys.h"

/* ---- scratch: the child's stack and everything the orders point to ---- */

enum { STACK = 32 * 1024, ROOM = 92 * 1024 };

/* One page, whatever its size: the kernel rounds mprotect(2) up. */
static size_t guard_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }
static size_t block_size(void) { return guard_size() + STACK + ROOM; }

struct sh_scratch {
    struct sh_orders orders;
    void *extra; /* room beyond the block, for a huge request */
    size_t extra_size;
    char *room, *end;
};

static char *block_of(struct sh_scratch *scratch) { return (char *)scratch - STACK - guard_size(); }

/* Blocks are kept: fresh pages cost more than the rest of the parent's work. */
static struct sh_scratch *take_scratch(void) {
    for (int i = 0; i < SH_POOL; i++) {
        void *found = atomic_exchange(&sh_state.scratch[i], NULL);
        if (found)
            return found;
    }
    char *block = mmap(NULL, block_size(), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (block == MAP_FAILED)
        return NULL;
    if (mprotect(block, guard_size(), PROT_NONE) != 0) {
        munmap(block, block_size());
        return NULL;
    }
    return (struct sh_scratch *)(block + guard_size() + STACK);
}

static struct sh_scratch *scratch_of(struct sh_orders *orders) {
    return (struct sh_scratch *)orders; /* its first member */
}

char *sh_stack(struct sh_orders *orders, size_t *size) {
    *size = STACK;
    return (char *)scratch_of(orders) - STACK;
}

static void return_scratch(struct sh_scratch *scratch) {
    for (int i = 0; i < SH_POOL; i++) {
        void *empty = NULL;
        if (atomic_compare_exchange_strong(&sh_state.scratch[i], &empty, scratch))
            return;
    }
    munmap(block_of(scratch), block_size());
}

void sh_release(struct sh_orders *orders) {
    struct sh_scratch *scratch = scratch_of(orders);
    if (scratch->extra)
        munmap(scratch->extra, scratch->extra_size);
    return_scratch(scratch);
}

char *sh_take_stack(uint64_t *size) {
    *size = STACK;
    return (char *)take_scratch();
}

void sh_return_stack(char *top) { return_scratch((struct sh_scratch *)top); }

static int make_room(struct sh_scratch *scratch, size_t size) {
    memset(scratch, 0, sizeof *scratch);
    scratch->room = (char *)(scratch + 1);
    scratch->end = (char *)scratch + ROOM;
    if (size <= (size_t)(scratch->end - scratch->room))
        return 0;
    scratch->extra_size = size;
    scratch->extra = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (scratch->extra == MAP_FAILED) {
        scratch->extra = NULL;
        return -ENOMEM;
    }
    scratch->room = scratch->extra;
    scratch->end = scratch->room + size;
    return 0;
}

static void *carve(struct sh_scratch *scratch, size_t size) {
    void *piece = scratch->room;
    scratch->room += (size + 15) & ~(size_t)15;
    return piece;
}

/* ---- orders ---- */

static char *const *to_vector(struct sh_scratch *scratch, const char *packed, uint32_t count) {
    const char **vector = carve(scratch, (count + 1) * sizeof *vector);
    for (uint32_t i = 0; i < count; i++) {
        vector[i] = packed;
        packed += strlen(packed) + 1;
    }
    vector[count] = NULL;
    return (char *const *)vector;
}

static int is_executable(const char *name, int *error) {
    struct stat status;
    if (stat(name, &status) != 0) {
        if (errno == EACCES)
            *error = -EACCES;
        return 0;
    }
    /* Raw: libc takes faccessat2, which old seccomp profiles refuse, even where
     * the old call would do. AT_EACCESS has no other way. */
    int by_effective = geteuid() != getuid() || getegid() != getgid();
    int allowed = by_effective ? faccessat(AT_FDCWD, name, X_OK, AT_EACCESS) == 0
                               : SYS(faccessat, AT_FDCWD, name, X_OK) == 0;
    if (S_ISREG(status.st_mode) && allowed)
        return 1;
    *error = -EACCES;
    return 0;
}

/* directory[0:length] "/" name; an empty directory is the current one. */
static int join(const char *directory, size_t length, const char *name, char *buffer, size_t size) {
    size_t tail = strlen(name) + 1;
    if (length + 1 + tail > size)
        return 0;
    memcpy(buffer, directory, length);
    if (length > 0)
        buffer[length++] = '/';
    memcpy(buffer + length, name, tail);
    return 1;
}

/* What execvp(3) in the child would find: a relative hit counts from the
 * command's cwd, and a refused candidate is remembered but does not end the search. */
int sh_find(const char *name, const char *path, const char *cwd, char *buffer, uint32_t size) {
    char probe[PATH_MAX];
    int error = -ENOENT;
    for (const char *entry = path;; entry++) {
        size_t length = strcspn(entry, ":");
        if (join(entry, length, name, buffer, size)) {
            const char *seen = buffer;
            if (cwd && buffer[0] != '/')
                seen = join(cwd, strlen(cwd), buffer, probe, sizeof probe) ? probe : NULL;
            if (seen && is_executable(seen, &error))
                return 0;
        }
        entry += length;
        if (!*entry)
            return error;
    }
}

static const char *path_of(char *const *env) {
    for (; *env; env++)
        if (strncmp(*env, "PATH=", 5) == 0)
            return *env + 5;
    return "/bin:/usr/bin";
}

/* The map, with the log's pipe for 1 and 2. Everything that named the original
 * stdout or stderr as its own stays. */
static const struct sh_fdpair *redirect(struct sh_scratch *scratch,
                                        const struct sh_request *request) {
    struct sh_fdpair *fds = carve(scratch, request->nfds * sizeof *fds);
    for (uint32_t i = 0; i < request->nfds; i++) {
        fds[i] = request->fds[i];
        if (fds[i].target == STDOUT_FILENO || fds[i].target == STDERR_FILENO)
            fds[i].source = request->output;
    }
    return fds;
}

static int check_fds(struct sh_scratch *scratch, int *culprit) {
    struct sh_orders *orders = &scratch->orders;
    const struct sh_request *request = orders->request;
    orders->fds = request->output > 0 ? redirect(scratch, request) : request->fds;
    orders->nfds = request->nfds;
    if (request->flags & SH_STANDARD_FDS)
        return 0;
    for (uint32_t i = 0; i < request->nfds; i++)
        if (SYS(fcntl, orders->fds[i].source, F_GETFD) < 0) {
            *culprit = orders->fds[i].source;
            return -EBADF;
        }
    return 0;
}

/* In a shared table the pidfd of the very child would take the closed number. */
static int lacks_standard_fd(const struct sh_orders *orders) {
    if (orders->request->flags & SH_STANDARD_FDS)
        for (uint32_t i = 0; i < orders->nfds; i++)
            if (SYS(fcntl, orders->fds[i].source, F_GETFD) < 0)
                return 1;
    return 0;
}

/* A copy of the fd table costs what is open in it. A child that keeps nothing
 * above its sources, or nothing of the region where our pidfds are, can detach
 * from ours without that part. */
static void share_files(struct sh_orders *orders, int close_rest, int reserved) {
    orders->shared_files = -1;
    orders->shared_to = ~0U;
    int from = 0, to = -1;
    if (!close_rest && (sh_avoids(SH_AVOID_CLOSE_RANGE) || !sh_pidfd_region(&from, &to)))
        return;
    if (sh_avoids(SH_AVOID_SHARED_FILES) || lacks_standard_fd(orders))
        return;
    int highest = reserved > STDERR_FILENO ? reserved : STDERR_FILENO;
    if (orders->isolation && orders->isolation->highest > highest)
        highest = orders->isolation->highest;
    for (uint32_t i = 0; i < orders->nfds; i++)
        if (orders->fds[i].source > highest)
            highest = orders->fds[i].source;
    if (!close_rest && highest >= from)
        return;
    orders->shared_files = close_rest ? highest + 1 : from;
    if (!close_rest)
        orders->shared_to = (unsigned)to;
}

static void plan_fds(struct sh_scratch *scratch, int reserved) {
    struct sh_orders *orders = &scratch->orders;
    int close_rest = (orders->request->flags & SH_CLOSE_FDS) != 0;
    struct sh_fdstep *steps = carve(scratch, SH_FDSTEPS(orders->nfds) * sizeof *steps);
    orders->parked = carve(scratch, orders->nfds * sizeof *orders->parked);
    orders->nsteps =
        sh_fdplan(orders->fds, orders->nfds, close_rest, reserved, orders->parked, steps);
    orders->steps = steps;
    share_files(orders, close_rest, reserved);
}

static size_t room_for(const struct sh_request *request) {
    size_t vectors = ((size_t)request->argc + request->envc + 2) * sizeof(char *);
    size_t fds = request->nfds * (sizeof(struct sh_fdpair) + sizeof(int)) +
                 SH_FDSTEPS(request->nfds) * sizeof(struct sh_fdstep);
    return vectors + fds + PATH_MAX + 8 * 16;
}

static int find_program(struct sh_scratch *scratch) {
    struct sh_orders *orders = &scratch->orders;
    const struct sh_request *request = orders->request;
    const char *name = request->file ? request->file : request->argv;
    orders->file = name;
    if (!(request->flags & SH_LOOKUP) || strchr(name, '/'))
        return 0;
    char *found = carve(scratch, PATH_MAX);
    orders->file = found;
    return sh_find(name, path_of(orders->envp), request->cwd, found, PATH_MAX);
}

struct sh_orders *sh_prepare(const struct sh_request *request, struct sh_process *process,
                             int reserved, struct sh_isolation *isolation) {
    struct sh_scratch *scratch = take_scratch();
    if (!scratch) {
        sh_refuse(process, SH_STAGE_CLONE, ENOMEM, 0);
        return NULL;
    }
    struct sh_orders *orders = &scratch->orders;
    int stage = SH_STAGE_CLONE, culprit = 0;
    int error = make_room(scratch, room_for(request));
    if (error == 0) {
        orders->request = request;
        orders->report = reserved;
        orders->isolation = isolation;
        orders->avoid = atomic_load(&sh_state.avoid);
        orders->argv = to_vector(scratch, request->argv, request->argc);
        orders->envp = to_vector(scratch, request->env, request->envc);
        stage = SH_STAGE_FDS;
        error = check_fds(scratch, &culprit);
    }
    if (error == 0) {
        stage = SH_STAGE_EXEC;
        error = find_program(scratch);
    }
    if (error < 0) {
        sh_refuse(process, stage, -error, culprit);
        sh_release(orders);
        return NULL;
    }
    plan_fds(scratch, reserved);
    return orders;
}
