/* unruly READY HOLD behaviour…: starts processes that are hard to end.
 *
 * Each writes a byte to descriptor READY once it is in place; then the command
 * reads from HOLD and exits with 7. `bomb` forks until it cannot, and all of
 * its children do; `orphans=N` has its processes end, and fails with 8 if the
 * namespace keeps any of them, as a zombie or otherwise.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int ready, hold;

static void say(void) {
    if (write(ready, "x", 1) != 1)
        _exit(9);
}

_Noreturn static void stay(void) {
    for (;;)
        pause();
}

static void leave_to_pid1(void) {
    if (fork() > 0)
        _exit(0);
}

static void ignore(void) {
    for (int number = 1; number < 65; number++)
        signal(number, SIG_IGN);
}

_Noreturn static void run_daemon(void) {
    ignore();
    setsid();
    leave_to_pid1();
    setsid();
    say();
    stay();
}

_Noreturn static void run_stopped(void) {
    say();
    raise(SIGSTOP);
    stay();
}

_Noreturn static void run_blocked(void) {
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    say();
    stay();
}

_Noreturn static void run_spinning(void) {
    ignore();
    say();
    for (;;)
        __asm__ volatile("");
}

_Noreturn static void run_vforked(void) {
    if (vfork() == 0) {
        say();
        stay();
    }
    _exit(0);
}

/* Only the first to be refused says so; nobody ever stops. */
static void run_bomb(void) {
    pid_t first = getpid();
    for (;;) {
        pid_t pid = fork();
        if (pid < 0 && getpid() == first)
            break;
    }
    say();
}

static int count_processes(void) {
    int count = 0;
    DIR *directory = opendir("/proc");
    if (!directory)
        return -1;
    for (struct dirent *entry; (entry = readdir(directory));)
        count += atoi(entry->d_name) > 0;
    closedir(directory);
    return count;
}

/* The pipe's end of file says that all have exited; then only the holder and we may be there. */
static void run_orphans(int wanted) {
    int ends[2];
    if (pipe(ends) != 0)
        _exit(9);
    for (int i = 0; i < wanted; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            leave_to_pid1();
            _exit(3);
        }
        if (pid < 0 || waitpid(pid, NULL, 0) != pid)
            _exit(9);
    }
    close(ends[1]);
    char none;
    if (read(ends[0], &none, 1) != 0)
        _exit(9);
    struct timespec pause = {0, 1000000};
    for (int i = 0; i < 5000 && count_processes() != 2; i++)
        nanosleep(&pause, NULL);
    if (count_processes() != 2)
        _exit(8);
    say();
}

static void start(const char *behaviour) {
    static const struct {
        const char *name;
        void (*run)(void);
    } table[] = {{"daemon", run_daemon},
                 {"stopped", run_stopped},
                 {"blocked", run_blocked},
                 {"spinning", run_spinning},
                 {"vforked", run_vforked}};
    for (unsigned i = 0; i < sizeof table / sizeof *table; i++)
        if (strcmp(behaviour, table[i].name) == 0) {
            pid_t pid = fork();
            if (pid == 0)
                table[i].run();
            if (table[i].run == run_daemon)
                waitpid(pid, NULL, 0); /* it has left the rest to pid 1 */
            return;
        }
    if (strcmp(behaviour, "bomb") == 0)
        run_bomb();
    else if (strncmp(behaviour, "orphans=", 8) == 0)
        run_orphans(atoi(behaviour + 8));
    else
        _exit(9);
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 9;
    ready = atoi(argv[1]);
    hold = atoi(argv[2]);
    for (int i = 3; i < argc; i++)
        start(argv[i]);
    char none;
    while (read(hold, &none, 1) < 0 && errno == EINTR)
        ;
    return 7;
}
