/* thief ADDRESS SECONDS: as another user, tries to read the parent's memory
 * through every process that comes to be. Prints how often it succeeded. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static const char secret[] = "the secret of the parent";

/* The last number given in this pid namespace (proc_loadavg(5)). */
static pid_t last_pid(void) {
    int last = 0;
    FILE *file = fopen("/proc/loadavg", "re");
    if (!file || fscanf(file, "%*s %*s %*s %*s %d", &last) != 1)
        exit(3);
    fclose(file);
    return last;
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    void *address = (void *)strtoul(argv[1], NULL, 0);
    time_t end = time(NULL) + atoi(argv[2]);
    char seen[sizeof secret];
    struct iovec here = {seen, sizeof seen}, there = {address, sizeof seen};
    long read = 0, refused = 0;
    for (pid_t pid = getpid() + 1; time(NULL) < end;) {
        int known = 0;
        for (int tries = 0; tries < 2000; tries++) {
            if (process_vm_readv(pid, &here, 1, &there, 1, 0) >= 0) {
                read += memcmp(seen, secret, sizeof secret) == 0;
                known = 1;
            } else if (errno != ESRCH) {
                refused += errno == EPERM;
                known = 1;
            } else if (known) {
                break; /* it ended */
            }
        }
        if (known)
            pid++;
        else if (last_pid() >= pid) /* missed some */
            pid = last_pid() + 1;
    }
    printf("%ld %ld\n", read, refused);
    return 0;
}
