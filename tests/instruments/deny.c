/* deny ERRNO call,call… command…: runs the command with these system calls
 * failing by that errno, as container profiles do. call:number denies it only
 * with this first argument: socket:16 is a netlink socket. */
#include <errno.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc < 4)
        return 125;
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    for (char *name = strtok(argv[2], ","); name; name = strtok(NULL, ",")) {
        char *argument = strchr(name, ':');
        if (argument)
            *argument++ = 0;
        int number = seccomp_syscall_resolve_name(name);
        if (number == __NR_SCMP_ERROR) {
            fprintf(stderr, "deny: unknown system call %s\n", name);
            return 125;
        }
        uint32_t action = SCMP_ACT_ERRNO((uint16_t)atoi(argv[1]));
        struct scmp_arg_cmp first = {.op = SCMP_CMP_EQ};
        if (argument)
            first.datum_a = (scmp_datum_t)atoi(argument);
        if (seccomp_rule_add_array(filter, action, number, argument ? 1 : 0, &first) != 0)
            return 125;
    }
    if (seccomp_load(filter) != 0) {
        perror("deny: seccomp_load");
        return 125;
    }
    execvp(argv[3], argv + 3);
    perror(argv[3]);
    return 127;
}
