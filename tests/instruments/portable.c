/* The C core without Python: right answers natively, under valgrind, under
 * qemu-user, with musl. Prints the start mode and OK, or what went wrong. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "spawnhelper.h"

static int failures;

static void check(const char *what, int right) {
    if (!right) {
        printf("wrong: %s\n", what);
        failures++;
    }
}

static struct sh_process process;

static int run(const char *file, const char *script, const char *cwd, const struct sh_fdpair *fds,
               uint32_t nfds, uint32_t flags) {
    char argv[512];
    size_t length = 0;
    const char *words[] = {file, "-c", script};
    for (int i = 0; i < 3; i++) {
        strcpy(argv + length, words[i]);
        length += strlen(words[i]) + 1;
    }
    struct sh_request request = {.argv = argv,
                                 .argc = 3,
                                 .env = "A=1",
                                 .envc = 1,
                                 .file = file,
                                 .cwd = cwd,
                                 .fds = fds,
                                 .nfds = nfds,
                                 .flags = flags};
    memset(&process, 0, sizeof process);
    int done;
    do
        done = process.state == SH_NEW ? sh_run(&request, &process, -1) : sh_wait(&process, -1);
    while (done == 0);
    return done;
}

static int failed(int stage, int error) {
    return process.state == SH_NEW && process.result.stage == stage &&
           process.result.error == error;
}

static int exited(int code) { return process.state == SH_ENDED && process.status == code << 8; }

int main(void) {
    static const struct sh_fdpair standard[] = {{0, 0}, {1, 1}, {2, 2}};
    sh_initialize();
    for (int round = 0; round < 3; round++) {
        run("/bin/sh", "exit 7", NULL, standard, 3, SH_STANDARD_FDS);
        check("exit status", exited(7));
        run("/bin/sh", "kill -9 $$", NULL, standard, 3, SH_STANDARD_FDS);
        check("signal", process.status == 9);
        run("/nonexistent", "", NULL, standard, 3, SH_STANDARD_FDS);
        check("missing program", failed(SH_STAGE_EXEC, ENOENT));
        run("/bin/sh", "exit 0", "/nonexistent", standard, 3, SH_STANDARD_FDS);
        check("missing directory", failed(SH_STAGE_CHDIR, ENOENT));
        run("/bin/sh", "test \"$A\" = 1 && test \"$PWD\" = /", "/", standard, 3, SH_STANDARD_FDS);
        check("environment, directory", exited(0));
        run("sh", "exit 3", NULL, standard, 3, SH_STANDARD_FDS | SH_LOOKUP);
        check("lookup", exited(3));

        int fd = open("/dev/null", O_RDWR);
        const struct sh_fdpair swap[] = {{0, 0}, {1, 2}, {2, 1}, {7, fd}};
        run("/bin/sh", ": >&7 || exit 4", NULL, swap, 4, SH_CLOSE_FDS);
        check("fd map", exited(0));
        run("/bin/sh", "(: >&7) 2>/dev/null && exit 4; exit 0", NULL, standard, 3, SH_CLOSE_FDS);
        check("close_fds", exited(0));
        close(fd);
        const struct sh_fdpair closed[] = {{0, fd}};
        run("/bin/sh", "exit 0", NULL, closed, 1, 0);
        check("closed source", failed(SH_STAGE_FDS, EBADF));
        check("nothing left", waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
    }
    printf("mode %d %s\n", sh_start_mode(), failures ? "WRONG" : "OK");
    return failures != 0;
}
