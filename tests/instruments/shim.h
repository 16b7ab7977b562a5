/* Included before everything else in the sources under test: every system call
 * goes to the instrument with its arguments. (sh_fault() knows only the number,
 * but an injected close() must still close, as the kernel's does.) */
#ifndef INSTRUMENTS_SHIM_H
#define INSTRUMENTS_SHIM_H

#include <sched.h>

#include "sys.h"

long fault_call(long number, long a, long b, long c, long d, long e, long f);

#undef SH_CALL6
#define SH_CALL6(number, a, b, c, d, e, f, ...)                                                    \
    fault_call(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

#endif
