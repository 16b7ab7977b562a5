/* The C reference: one start and wait, and nothing that a library would add.
 *
 * Loaded into the Python process whose figures it is compared with. All that
 * can be prepared is: path, argv, envp and the child's stack.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x00001000
#endif
#define CLEAR_SIGHAND 0x100000000ULL /* CLONE_CLEAR_SIGHAND, linux/sched.h since 5.5 */
#define BY_PIDFD ((idtype_t)3)       /* P_PIDFD, sys/wait.h since glibc 2.36 */

enum { STACK_SIZE = 32 * 1024 };

struct arguments { /* struct clone_args up to CLONE_ARGS_SIZE_VER0, linux/sched.h */
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
};

struct command {
    const char *path;
    char *const *argv;
    char *const *envp;
    uint64_t mask;
};

#if defined(__x86_64__) && !defined(__ILP32__)

static inline long call(long number, long a, long b, long c, long d) {
    register long r10 __asm__("r10") = d;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
}

static inline long clone_into(struct arguments *arguments, void (*entry)(void *), void *argument) {
    register void (*r8)(void *) __asm__("r8") = entry;
    register void *r9 __asm__("r9") = argument;
    long result;
    __asm__ volatile("syscall\n\t"
                     "testq %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xorl %%ebp, %%ebp\n\t"
                     "movq %%r9, %%rdi\n\t"
                     "callq *%%r8\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(result)
                     : "0"((long)SYS_clone3), "D"(arguments), "S"(sizeof *arguments), "r"(r8),
                       "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

#elif defined(__aarch64__)

static inline long call(long number, long a, long b, long c, long d) {
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory", "cc");
    return x0;
}

static inline long clone_into(struct arguments *arguments, void (*entry)(void *), void *argument) {
    register long x8 __asm__("x8") = SYS_clone3;
    register long x0 __asm__("x0") = (long)arguments;
    register long x1 __asm__("x1") = sizeof *arguments;
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

#else
#error "the reference exists for x86_64 and aarch64 only"
#endif

static void run_child(void *argument) {
    const struct command *command = argument;
    call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&command->mask, 0, sizeof command->mask);
    call(SYS_execve, (long)command->path, (long)command->argv, (long)command->envp, 0);
    for (;;)
        call(SYS_exit_group, 127, 0, 0, 0);
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* One thread at a time: the stack is kept. Exit status, or a negative errno or signal. */
static long start_and_wait(const char *path, char *const *argv, char *const *envp) {
    static void *stack;
    if (!stack) {
        stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
        if (stack == MAP_FAILED) {
            stack = NULL;
            return -1;
        }
    }
    uint64_t all = ~(uint64_t)0;
    int pidfd = -1;
    struct command command = {.path = path, .argv = argv, .envp = envp};
    struct arguments arguments = {
        .flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLEAR_SIGHAND,
        .pidfd = (uintptr_t)&pidfd,
        .exit_signal = SIGCHLD,
        .stack = (uintptr_t)stack,
        .stack_size = STACK_SIZE,
    };
    call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&all, (long)&command.mask, sizeof all);
    long pid = clone_into(&arguments, run_child, &command);
    call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&command.mask, 0, sizeof all);
    if (pid < 0)
        return pid;
    siginfo_t info;
    if (waitid(BY_PIDFD, (id_t)pidfd, &info, WEXITED) != 0)
        return -1;
    close(pidfd);
    return info.si_code == CLD_EXITED ? info.si_status : -info.si_status;
}

/* Nanoseconds by its own clock, so that the caller's way here is no discount;
 * -1 if the command did not exit with 0. */
int64_t floor_spawn(const char *path, char *const *argv, char *const *envp);
int64_t floor_spawn(const char *path, char *const *argv, char *const *envp) {
    int64_t start = now();
    long status = start_and_wait(path, argv, envp);
    int64_t end = now();
    return status == 0 ? end - start : -1;
}
