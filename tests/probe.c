/* The probe: reports as JSON what a started command sees.
 *
 *   probe REPORT [anything…]
 *
 * Everything is collected before the report file is opened, so that the
 * descriptors reported are those that it was born with. Bytes outside ASCII
 * are written as \u00XX (latin-1).
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

enum { MAX_FDS = 4096 };
static struct {
    int fd, flags, status;
    struct stat file;
} fds[MAX_FDS];
static int nfds;

static void collect_fds(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    for (int fd = 0; fd < (int)limit.rlim_cur && nfds < MAX_FDS; fd++) {
        int flags = fcntl(fd, F_GETFD);
        if (flags < 0)
            continue;
        fds[nfds].fd = fd;
        fds[nfds].flags = flags;
        fds[nfds].status = fcntl(fd, F_GETFL);
        fstat(fd, &fds[nfds].file);
        nfds++;
    }
}

static void put_string(FILE *out, const char *text) {
    putc('"', out);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c < 32 || c > 126 || c == '"' || c == '\\')
            fprintf(out, "\\u%04x", c);
        else
            putc(c, out);
    }
    putc('"', out);
}

static void put_strings(FILE *out, const char *name, char **strings) {
    fprintf(out, "\"%s\": [", name);
    for (int i = 0; strings[i]; i++) {
        if (i)
            putc(',', out);
        put_string(out, strings[i]);
    }
    fprintf(out, "],\n");
}

static void put_fds(FILE *out) {
    fprintf(out, "\"fds\": {");
    for (int i = 0; i < nfds; i++)
        fprintf(out, "%s\"%d\": [%lu, %lu, %d, %d]", i ? ", " : "", fds[i].fd,
                (unsigned long)fds[i].file.st_dev, (unsigned long)fds[i].file.st_ino, fds[i].flags,
                fds[i].status & O_ACCMODE);
    fprintf(out, "},\n");
}

static void put_ids(FILE *out) {
    uid_t ruid, euid, suid;
    gid_t rgid, egid, sgid;
    static gid_t groups[65536];
    getresuid(&ruid, &euid, &suid);
    getresgid(&rgid, &egid, &sgid);
    int ngroups = getgroups(65536, groups);
    fprintf(out, "\"uids\": [%u, %u, %u],\n\"gids\": [%u, %u, %u],\n\"groups\": [", ruid, euid,
            suid, rgid, egid, sgid);
    for (int i = 0; i < ngroups; i++)
        fprintf(out, "%s%u", i ? ", " : "", groups[i]);
    mode_t mask = umask(0);
    umask(mask);
    fprintf(out, "],\n\"umask\": %u,\n", mask);
}

/* Signal sets and capabilities, as the kernel prints them. */
static void put_status(FILE *out, FILE *status) {
    static const char *const wanted[] = {"SigBlk", "SigIgn", "SigCgt", "CapEff", "NoNewPrivs"};
    char line[512];
    while (status && fgets(line, sizeof line, status))
        for (unsigned i = 0; i < sizeof wanted / sizeof *wanted; i++) {
            size_t length = strlen(wanted[i]);
            if (strncmp(line, wanted[i], length) != 0 || line[length] != ':')
                continue;
            line[strcspn(line, "\n")] = 0;
            fprintf(out, "\"%s\": \"%s\",\n", wanted[i], line + length + 2);
        }
}

static void put_namespaces(FILE *out) {
    static const char *const names[] = {"net", "ipc", "mnt", "pid", "uts", "user", "cgroup"};
    fprintf(out, "\"namespaces\": {");
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        char path[64];
        struct stat status;
        snprintf(path, sizeof path, "/proc/self/ns/%s", names[i]);
        unsigned long inode = stat(path, &status) == 0 ? (unsigned long)status.st_ino : 0;
        fprintf(out, "%s\"%s\": %lu", i ? ", " : "", names[i], inode);
    }
    fprintf(out, "},\n");
}

int main(int argc, char **argv) {
    if (argc < 2)
        return 2;
    collect_fds();
    char cwd[4096] = "";
    if (!getcwd(cwd, sizeof cwd))
        cwd[0] = 0;
    FILE *status = fopen("/proc/self/status", "re");
    FILE *out = fopen(argv[1], "we");
    if (!out)
        return 3;
    fprintf(out, "{\n");
    put_strings(out, "argv", argv);
    put_strings(out, "env", environ);
    put_fds(out);
    put_ids(out);
    put_status(out, status);
    put_namespaces(out);
    fprintf(out, "\"cwd\": ");
    put_string(out, cwd);
    fprintf(out, ",\n\"pid\": %d, \"ppid\": %d, \"pgid\": %d, \"sid\": %d,\n", getpid(), getppid(),
            getpgrp(), getsid(0));
    fprintf(out, "\"dumpable\": %d, \"nice\": %d\n}\n", prctl(PR_GET_DUMPABLE),
            getpriority(PRIO_PROCESS, 0));
    return fclose(out) == 0 ? 0 : 4;
}
