/* The program that isolation_fault.c starts: writes a struct report into the
 * file on REPORT_FD and ends with REPORT_STATUS. Libc-free, to start fast. With
 * the argument "orphan" it leaves a process behind that sleeps for ever. */
#include <fcntl.h>
#include <linux/sockios.h>
#include <signal.h>
#include <sys/stat.h>

#include "isolation_report.h"
#include "sys.h"

enum { INET = 2, DATAGRAM = 2, UP = 1, FDS = 64, ROOM = 16384 };

static struct report report;
static char text[ROOM + 1];

static uint64_t inode_of(const char *path) {
    struct stat status;
    return SYS(newfstatat, AT_FDCWD, path, &status, 0) < 0 ? 0 : status.st_ino;
}

static long length_of(const char *string) {
    long length = 0;
    while (string[length])
        length++;
    return length;
}

static int starts_with(const char *string, const char *start) {
    while (*start)
        if (*string++ != *start++)
            return 0;
    return 1;
}

static void copy_line(char *to, const char *from, int size) {
    int i = 0;
    for (; i < size - 1 && from[i] && from[i] != '\n'; i++)
        to[i] = from[i];
    to[i] = 0;
}

static void read_text(const char *path) {
    int fd = (int)SYS(openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    long used = 0, length;
    while (fd >= 0 && (length = SYS(read, fd, text + used, ROOM - used)) > 0)
        used += length;
    text[used] = 0;
    if (fd >= 0)
        SYS(close, fd);
}

static const char *next_line(const char *line) {
    while (*line && *line != '\n')
        line++;
    return *line ? line + 1 : line;
}

/* The fifth field of a line of mountinfo is the mount point (proc(5)). */
static int is_root(const char *line) {
    for (int field = 1; field < 5; field++) {
        while (*line && *line != ' ' && *line != '\n')
            line++;
        if (*line == ' ')
            line++;
    }
    return line[0] == '/' && line[1] == ' ';
}

static void see_mounts(void) {
    read_text("/proc/self/mountinfo");
    for (const char *line = text; *line; line = next_line(line)) {
        if (!is_root(line))
            continue;
        const char *end = next_line(line);
        for (const char *at = line; at < end; at++)
            report.root_propagates |= starts_with(at, " shared:");
    }
    read_text("/proc/self/cgroup");
    for (const char *line = text; *line; line = next_line(line))
        if (starts_with(line, "0::"))
            copy_line(report.cgroup, line + 3, sizeof report.cgroup);
    read_text("/proc/1/comm");
    copy_line(report.first, text, sizeof report.first);
    long length = SYS(readlinkat, AT_FDCWD, "/proc/self", text, ROOM);
    int32_t number = 0;
    for (long i = 0; i < length; i++)
        number = number * 10 + (text[i] - '0');
    report.proc_is_own = number == report.pid;
}

static void see_network(void) {
    struct {
        char name[16];
        union {
            short flags;
            struct {
                unsigned short family, port;
                unsigned char address[4];
                char zero[8];
            } inet;
            char room[24];
        } value;
    } request = {.name = "lo"};
    int socket = (int)SYS(socket, INET, DATAGRAM, 0);
    if (SYS(ioctl, socket, SIOCGIFFLAGS, &request) == 0)
        report.loopback_up = request.value.flags & UP;
    request.value.inet.family = INET;
    request.value.inet.port = 0;
    request.value.inet.address[0] = 10;
    request.value.inet.address[1] = request.value.inet.address[2] = 0;
    request.value.inet.address[3] = 1;
    report.has_address = SYS(bind, socket, &request.value.inet, sizeof request.value.inet) == 0;
    SYS(close, socket);
}

static void see_process(void) {
    report.pid = (int32_t)SYS(getpid);
    report.parent = (int32_t)SYS(getppid);
    report.session = (int32_t)SYS(getsid, 0);
    report.uid = (uint32_t)SYS(getuid);
    report.gid = (uint32_t)SYS(getgid);
    report.groups = (uint32_t)SYS(getgroups, 0, 0);
    report.umask = (uint32_t)SYS(umask, 0);
    report.root = inode_of("/");
    report.cwd = inode_of(".");
    for (int fd = 0; fd < FDS; fd++)
        if (SYS(fcntl, fd, F_GETFD) >= 0)
            report.fds |= 1ULL << fd;
    SYS(rt_sigprocmask, SIG_BLOCK, 0, &report.mask, sizeof report.mask);
    for (int number = 1; number <= SH_SIGNALS; number++) {
        struct sh_sigaction action;
        action.handler = 0;
        SYS(rt_sigaction, number, 0, &action, sizeof action.mask);
        if (action.handler)
            report.caught |= 1ULL << (number - 1);
    }
}

static void see_namespaces(void) {
    static const char *const names[] = {
#define NAME(name) "/proc/self/ns/" name,
        REPORT_NAMESPACES(NAME)
#undef NAME
    };
    for (int i = 0; i < REPORT_COUNT; i++)
        report.inodes[i] = inode_of(names[i]);
    struct {
        char fields[6][65];
    } name;
    if (SYS(uname, &name) == 0)
        copy_line(report.host, name.fields[1], sizeof report.host);
}

static void leave_orphan(void) {
    if (SYS(clone, SIGCHLD, 0, 0, 0, 0) != 0)
        return;
    for (;;)
        SYS(ppoll, 0, 0, 0, 0, 0);
}

__attribute__((used)) static _Noreturn void start(const long *stack) {
    const char *const *argv = (const char *const *)(stack + 1);
    see_process();
    see_namespaces();
    see_mounts();
    see_network();
    report.valid = 1;
    long written = SYS(pwrite64, REPORT_FD, &report, sizeof report, 0);
    if (stack[0] > 1 && length_of(argv[1]) > 0)
        leave_orphan();
    for (;;)
        SYS(exit_group, written == sizeof report ? REPORT_STATUS : 1);
}

/* The kernel leaves argc and argv on the stack, and nothing in the registers. */
#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txorl %ebp, %ebp\n\tmovq %rsp, %rdi\n\tandq $-16, %rsp\n\tcall "
        "start\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\n\tmov x29, xzr\n\tmov x30, xzr\n\tmov x0, sp\n\tbl start\n");
#else
#error "no entry for this architecture"
#endif
