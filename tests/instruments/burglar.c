/* burglar ADDRESS: as soon as it is started in a pid namespace, looks whether
 * pid 1 still has the memory of the process that made it. 1: it has. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char secret[] = "the secret of the parent";

int main(int argc, char **argv) {
    char seen[sizeof secret];
    if (argc != 2)
        return 2;
    for (int tries = 0; tries < 3; tries++) {
        int memory = open("/proc/1/mem", O_RDONLY);
        long got = memory < 0 ? -1 : pread(memory, seen, sizeof seen, strtol(argv[1], NULL, 0));
        if (got == sizeof seen && memcmp(seen, secret, sizeof seen) == 0)
            return 1;
        if (memory >= 0)
            close(memory);
    }
    return 0;
}
