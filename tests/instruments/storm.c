/* Spawns from many threads while signals rain on the whole process group.
 *
 *   storm TARGET SPAWNS [THREADS]
 *
 * The handler compares its pid with the one that installed it: it must never
 * run in a child, which shares our memory until exec. One start in eight fails,
 * one in eight changes ids (to our own), one in eight closes descriptors.
 * Prints one JSON object: what was lost, left or run in the wrong process.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "spawnhelper.h"
#include "sys.h"

enum { MAX_THREADS = 64, MAX_FDS = 256 };

static const char *target;
static long parent;
static atomic_long left, ended, killed, refused, lost, wrong_answer, handled, wrong_pid;
static atomic_int over;
static atomic_int last_answer, last_stage, last_status; /* of a wrong answer */

static void handle(int number) {
    (void)number;
    if (sh_raw(SYS_getpid, 0, 0, 0, 0, 0, 0) == parent)
        atomic_fetch_add(&handled, 1);
    else
        atomic_fetch_add(&wrong_pid, 1);
}

static void *rain(void *unused) {
    (void)unused;
    struct timespec pause = {0, 50000};
    while (!atomic_load(&over)) {
        kill(0, SIGUSR1);
        nanosleep(&pause, NULL);
    }
    return NULL;
}

static void complain(int answer, const struct sh_process *process) {
    atomic_fetch_add(&wrong_answer, 1);
    atomic_store(&last_answer, answer);
    atomic_store(&last_stage, process->result.stage);
    atomic_store(&last_status, process->status);
}

static void settle(int answer, struct sh_process *process, int refusal) {
    while (answer == 0 && process->state == SH_RUNNING)
        answer = sh_wait(process, -1); /* a signal came */
    if (answer == -ENOENT && refusal) {
        atomic_fetch_add(&refused, 1);
    } else if (answer == -ECHILD && process->result.stage == SH_STAGE_EXEC &&
               process->result.detail == SIGUSR1) {
        atomic_fetch_add(&killed, 1); /* by our own rain, with the mask restored */
    } else if (answer != 1) {
        complain(answer, process);
    } else if (process->state != SH_ENDED) {
        atomic_fetch_add(&lost, 1);
    } else if (WIFSIGNALED(process->status) && WTERMSIG(process->status) == SIGUSR1) {
        atomic_fetch_add(&killed, 1);
    } else if (process->status == 0 && !refusal) {
        atomic_fetch_add(&ended, 1);
    } else {
        complain(answer, process);
    }
    sh_drop(process);
}

static void *spawn(void *unused) {
    (void)unused;
    static const struct sh_fdpair map[] = {{0, 1}, {1, 0}, {2, 2}};
    for (long turn; (turn = atomic_fetch_sub(&left, 1)) > 0;) {
        struct sh_process process = {.pidfd = -1, .report = -1};
        struct sh_request request = {
            .argv = target,
            .argc = 1,
            .env = "",
            .file = turn % 8 == 0 ? "/nonexistent/program" : target,
            .fds = map,
            .nfds = turn % 8 == 2 ? 3 : 0,
            .uid = geteuid(),
            .gid = getegid(),
            .flags =
                (turn % 8 == 1 ? SH_SET_UID | SH_SET_GID : 0) | (turn % 8 == 2 ? SH_CLOSE_FDS : 0),
        };
        settle(sh_run(&request, &process, -1), &process, turn % 8 == 0);
    }
    return NULL;
}

static int count_fds(void) {
    int count = 0;
    for (int fd = 0; fd < MAX_FDS; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

int main(int argc, char **argv) {
    pthread_t threads[MAX_THREADS], rainmaker;
    if (argc < 3)
        return 2;
    target = argv[1];
    long spawns = atol(argv[2]);
    int count = argc > 3 ? atoi(argv[3]) : 4;
    if (count < 1 || count > MAX_THREADS)
        return 2;
    setpgid(0, 0);
    prctl(PR_SET_DUMPABLE, 1);
    parent = getpid();
    atomic_store(&left, spawns);
    int fds = count_fds(), dumpable = prctl(PR_GET_DUMPABLE);
    struct sigaction action = {.sa_handler = handle}; /* without SA_RESTART */
    sigaction(SIGUSR1, &action, NULL);
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    if (pthread_create(&rainmaker, NULL, rain, NULL) != 0)
        return 2;
    for (int i = 0; i < count; i++)
        if (pthread_create(&threads[i], NULL, spawn, NULL) != 0)
            return 2;
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    atomic_store(&over, 1);
    pthread_join(rainmaker, NULL);
    clock_gettime(CLOCK_MONOTONIC, &end);
    int zombies = 0;
    while (waitpid(-1, NULL, __WALL) > 0)
        zombies++;
    printf("{\"spawns\": %ld, \"ended\": %ld, \"killed\": %ld, \"refused\": %ld, \"lost\": %ld, "
           "\"wrong_answer\": %ld, \"handled\": %ld, \"wrong_pid\": %ld, \"fds\": %d, "
           "\"zombies\": %d, \"dumpable\": %d, \"last_wrong\": [%d, %d, %d], \"seconds\": %.2f}\n",
           spawns, ended, killed, refused, lost, wrong_answer, handled, wrong_pid,
           count_fds() - fds, zombies, prctl(PR_GET_DUMPABLE) - dumpable, last_answer, last_stage,
           last_status,
           (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9);
    return 0;
}
