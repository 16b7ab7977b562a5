/* ending e17 | ending s9: exits with that status, or kills itself by that
 * signal. Libc-free: the tests start thousands. */
#include "sys.h"

#if defined(__x86_64__)
__asm__(".globl _start\n"
        "_start:\n"
        "    mov %rsp, %rdi\n"
        "    and $-16, %rsp\n"
        "    call run\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n"
        "_start:\n"
        "    mov x0, sp\n"
        "    bl run\n");
#else
#error "the target exists for x86_64 and aarch64 only"
#endif

_Noreturn void run(long *stack);

/* The stack begins with argc, then argv. */
_Noreturn void run(long *stack) {
    const char *text = stack[0] > 1 ? (const char *)stack[2] : "e0";
    int number = 0;
    for (const char *at = text + 1; *at; at++)
        number = 10 * number + *at - '0';
    long self = SYS(getpid);
    if (text[0] == 's')
        SYS(kill, self, number);
    for (;;)
        SYS(exit_group, number);
}
