/* Raw system calls: no libc, no errno, no cancellation point.
 *
 * Every call answers as the kernel does: a value, or a negative errno. x86_64
 * and aarch64 have their own instruction sequences; any other architecture
 * goes through libc's syscall(), the one symbol that the child then needs.
 */
#ifndef SPAWNHELPER_SYS_H
#define SPAWNHELPER_SYS_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>

/* Numbers are the same on every architecture since 5.0; older headers lack them. */
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif

#if defined(__x86_64__) && !defined(__ILP32__)

static inline long sh_raw(long number, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* clone3 whose child runs entry(argument) on the new stack and never returns.
 * In C the child would come back through a frame that its parent still uses. */
#define SH_HAVE_CLONE3_ENTRY 1
static inline long sh_raw_clone3(const void *args, size_t size, void (*entry)(void *),
                                 void *argument) {
    register void (*r8)(void *) __asm__("r8") = entry;
    register void *r9 __asm__("r9") = argument;
    long result;
    __asm__ volatile("syscall\n\t"
                     "testq %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xorl %%ebp, %%ebp\n\t" /* unwinders stop here */
                     "movq %%r9, %%rdi\n\t"
                     "callq *%%r8\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(result)
                     : "0"((long)SYS_clone3), "D"(args), "S"(size), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* clone(2) likewise, for kernels and filters that know no clone3. The argument
 * lies at the top of the new stack; the kernel reads five registers only. */
static inline long sh_raw_clone(unsigned long flags, void *top, void *parent_tid, void *child_tid,
                                void (*entry)(void *)) {
    register long r10 __asm__("r10") = (long)child_tid;
    register long r8 __asm__("r8") = 0;
    register void (*r9)(void *) __asm__("r9") = entry;
    long result;
    __asm__ volatile("syscall\n\t"
                     "testq %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xorl %%ebp, %%ebp\n\t"
                     "movq (%%rsp), %%rdi\n\t"
                     "callq *%%r9\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(result)
                     : "0"((long)SYS_clone), "D"(flags), "S"(top), "d"(parent_tid), "r"(r10),
                       "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

#elif defined(__aarch64__)

static inline long sh_raw(long number, long a, long b, long c, long d, long e, long f) {
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc #0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory", "cc");
    return x0;
}

#define SH_HAVE_CLONE3_ENTRY 1
static inline long sh_raw_clone3(const void *args, size_t size, void (*entry)(void *),
                                 void *argument) {
    register long x8 __asm__("x8") = SYS_clone3;
    register long x0 __asm__("x0") = (long)args;
    register long x1 __asm__("x1") = (long)size;
    register void (*x10)(void *) __asm__("x10") = entry;
    register void *x11 __asm__("x11") = argument;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, xzr\n\t"
                     "mov x30, xzr\n\t"
                     "mov x0, x11\n\t"
                     "blr x10\n\t"
                     "brk #1\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x10), "r"(x11)
                     : "memory", "cc");
    return x0;
}

/* The order of clone's arguments differs: tls before child_tid (clone(2)). */
static inline long sh_raw_clone(unsigned long flags, void *top, void *parent_tid, void *child_tid,
                                void (*entry)(void *)) {
    register long x8 __asm__("x8") = SYS_clone;
    register long x0 __asm__("x0") = (long)flags;
    register long x1 __asm__("x1") = (long)top;
    register long x2 __asm__("x2") = (long)parent_tid;
    register long x3 __asm__("x3") = 0;
    register long x4 __asm__("x4") = (long)child_tid;
    register void (*x10)(void *) __asm__("x10") = entry;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, xzr\n\t"
                     "mov x30, xzr\n\t"
                     "ldr x0, [sp]\n\t"
                     "blr x10\n\t"
                     "brk #1\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x10)
                     : "memory", "cc");
    return x0;
}

#else

#include <unistd.h>

static inline long sh_raw(long number, long a, long b, long c, long d, long e, long f) {
    int kept = errno;
    long result = syscall(number, a, b, c, d, e, f);
    if (result == -1) {
        result = -errno;
        errno = kept;
    }
    return result;
}

#endif

/* A test build defines SH_FAULT and this function; it answers with the errno
 * by which the call is to fail, or 0 to let it through. */
#ifdef SH_FAULT
int sh_fault(long number);
#endif

static inline long sh_call(long number, long a, long b, long c, long d, long e, long f) {
#ifdef SH_FAULT
    int error = sh_fault(number);
    if (error)
        return -error;
#endif
    return sh_raw(number, a, b, c, d, e, f);
}

#ifdef SH_HAVE_CLONE3_ENTRY
static inline long sh_clone3(const void *args, size_t size, void (*entry)(void *), void *argument) {
#ifdef SH_FAULT
    int error = sh_fault(SYS_clone3);
    if (error)
        return -error;
#endif
    return sh_raw_clone3(args, size, entry, argument);
}

static inline long sh_clone(unsigned long flags, char *top, void *parent_tid, void *child_tid,
                            void (*entry)(void *), void *argument) {
#ifdef SH_FAULT
    int error = sh_fault(SYS_clone);
    if (error)
        return -error;
#endif
    void **slot = (void **)(top - 16);
    *slot = argument;
    return sh_raw_clone(flags, slot, parent_tid, child_tid, entry);
}
#endif

#define SH_CALL6(number, a, b, c, d, e, f, ...)                                                    \
    sh_call(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define SYS(name, ...) SH_CALL6(SYS_##name, ##__VA_ARGS__, 0, 0, 0, 0, 0, 0)

/* 32-bit architectures kept the 16-bit id calls under the plain names. */
#ifdef SYS_setgroups32
#define SH_SYS_setgroups SYS_setgroups32
#define SH_SYS_setresgid SYS_setresgid32
#define SH_SYS_setresuid SYS_setresuid32
#else
#define SH_SYS_setgroups SYS_setgroups
#define SH_SYS_setresgid SYS_setresgid
#define SH_SYS_setresuid SYS_setresuid
#endif
#define SYSNR(number, ...) SH_CALL6(number, ##__VA_ARGS__, 0, 0, 0, 0, 0, 0)

/* The kernel's struct sigaction; libc's has another layout. */
struct sh_sigaction {
    void (*handler)(int);
    unsigned long flags;
    void (*restorer)(void);
    uint64_t mask;
};

enum { SH_SIGNALS = 64 };

/* linux/sched.h has it since 5.3; ours lets the library build on older headers. */
struct sh_clone_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
    uint64_t set_tid, set_tid_size, cgroup;
};

#ifndef CLONE_VM
#define CLONE_VM 0x00000100
#define CLONE_FILES 0x00000400
#define CLONE_VFORK 0x00004000
#endif
#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x00001000
#endif
#ifndef CLONE_PARENT
#define CLONE_PARENT 0x00008000
#define CLONE_PARENT_SETTID 0x00100000
#define CLONE_CHILD_CLEARTID 0x00200000
#endif
#define SH_CLONE_CLEAR_SIGHAND 0x100000000ULL
#define SH_CLONE_INTO_CGROUP 0x200000000ULL

/* linux/sched.h; here because the C library hides them without _GNU_SOURCE. */
enum {
    SH_NEWNS = 0x00020000,
    SH_NEWUTS = 0x04000000,
    SH_NEWIPC = 0x08000000,
    SH_NEWUSER = 0x10000000,
    SH_NEWPID = 0x20000000,
    SH_NEWNET = 0x40000000,
};

enum { SH_FUTEX_WAIT = 0 }; /* linux/futex.h */

#define SH_CLOSE_RANGE_UNSHARE 2U
#define SH_AT_EMPTY_PATH 0x1000

/* linux/pidfd.h has these since 6.13 and 6.15. */
struct sh_pidfd_info {
    uint64_t mask, cgroup;
    uint32_t pid, tgid, ppid, ids[8];
    int32_t exit_code; /* a wait status */
};
#define SH_PIDFD_GET_INFO 0xc040ff0bUL /* _IOWR(PIDFS_IOCTL_MAGIC, 11, 64 bytes) */
#define SH_PIDFD_INFO_EXIT 8U

#endif
