/* libc's mappings that the code under test makes in the parent: they can fail,
 * and each is known until it is gone. Linked with --wrap. The instrument that
 * includes this defines decide(): the errno by which a call is to fail, or 0. */
#ifndef INSTRUMENTS_MAPPINGS_H
#define INSTRUMENTS_MAPPINGS_H

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "state.h"

static int decide(long number, long a, long b);

/* Alive. */
static struct mapping {
    char *at;
    size_t size;
} mappings[64];
enum { MAPPINGS = sizeof mappings / sizeof *mappings };

void *__real_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *at, size_t size);
int __real_mprotect(void *at, size_t size, int protection);
void *__wrap_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *at, size_t size);
int __wrap_mprotect(void *at, size_t size, int protection);

void *__wrap_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    int error = decide(SYS_mmap, 0, 0);
    if (error) {
        errno = error;
        return MAP_FAILED;
    }
    void *made = __real_mmap(at, size, protection, flags, fd, offset);
    for (int i = 0; made != MAP_FAILED; i++) {
        if (i == MAPPINGS)
            abort();
        if (mappings[i].at)
            continue;
        mappings[i] = (struct mapping){made, size};
        break;
    }
    return made;
}

int __wrap_munmap(void *at, size_t size) {
    for (int i = 0; i < MAPPINGS; i++)
        if (mappings[i].at == at && mappings[i].size == size) {
            mappings[i].at = NULL;
            return __real_munmap(at, size);
        }
    abort();
}

int __wrap_mprotect(void *at, size_t size, int protection) {
    int error = decide(SYS_mprotect, 0, 0);
    if (error) {
        errno = error;
        return -1;
    }
    return __real_mprotect(at, size, protection);
}

/* All but what the pool keeps. */
static int count_mappings(void) {
    int count = 0;
    for (int i = 0; i < MAPPINGS; i++)
        count += mappings[i].at != NULL;
    for (int i = 0; i < SH_POOL; i++)
        count -= sh_state.scratch[i] != NULL;
    return count;
}

static void empty_pool(void) {
    for (int i = 0; i < SH_POOL; i++) {
        char *scratch = atomic_exchange(&sh_state.scratch[i], NULL);
        for (int j = 0; scratch && j < MAPPINGS; j++)
            if (mappings[j].at && mappings[j].at <= scratch &&
                scratch < mappings[j].at + mappings[j].size) {
                __real_munmap(mappings[j].at, mappings[j].size);
                mappings[j].at = NULL;
            }
    }
}

#endif
