/* The probe: reports as JSON what a started command sees.
 *
 *   probe REPORT [anything…]
 *
 * Everything is collected before the report file is opened, so that the
 * descriptors reported are those that it was born with. Bytes outside ASCII
 * are written as \u00XX (latin-1). What cannot be found out is null.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
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

/* ---- network: one netlink dump of interfaces and one of addresses ---- */

struct list {
    FILE *out;
    int count;
};

static void put_interface(struct list *list, struct nlmsghdr *header) {
    struct ifinfomsg *interface = NLMSG_DATA(header);
    char name[IF_NAMESIZE] = "?";
    if_indextoname((unsigned)interface->ifi_index, name);
    fprintf(list->out, "%s\"%s\": %u", list->count++ ? ", " : "", name,
            interface->ifi_flags & (IFF_UP | IFF_LOOPBACK));
}

static void put_address(struct list *list, struct nlmsghdr *header) {
    struct ifaddrmsg *address = NLMSG_DATA(header);
    struct rtattr *attribute = IFA_RTA(address);
    int length = (int)IFA_PAYLOAD(header);
    char name[IF_NAMESIZE] = "?", text[INET6_ADDRSTRLEN] = "?";
    unsigned flags = address->ifa_flags;
    for (; RTA_OK(attribute, length); attribute = RTA_NEXT(attribute, length)) {
        if (attribute->rta_type == IFA_ADDRESS)
            inet_ntop(address->ifa_family, RTA_DATA(attribute), text, sizeof text);
        if (attribute->rta_type == IFA_FLAGS)
            memcpy(&flags, RTA_DATA(attribute), sizeof flags);
    }
    if_indextoname(address->ifa_index, name);
    fprintf(list->out, "%s[\"%s\", \"%s\", %u, %u, %u]", list->count++ ? ", " : "", name, text,
            address->ifa_prefixlen, address->ifa_scope,
            flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED | IFA_F_DEPRECATED));
}

/* Whether the kernel answered to the end. */
static int dump(struct list *list, int type, void (*put)(struct list *, struct nlmsghdr *)) {
    struct {
        struct nlmsghdr header;
        struct rtgenmsg family;
    } query = {.header = {.nlmsg_len = NLMSG_LENGTH(sizeof(struct rtgenmsg)),
                          .nlmsg_type = (unsigned short)type,
                          .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP}};
    static char buffer[65536] __attribute__((aligned(NLMSG_ALIGNTO)));
    int found = 0, fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0 || send(fd, &query, query.header.nlmsg_len, 0) < 0)
        return 0;
    for (;;) {
        int length = (int)recv(fd, buffer, sizeof buffer, 0);
        struct nlmsghdr *header = (struct nlmsghdr *)buffer;
        if (length <= 0)
            break;
        for (; NLMSG_OK(header, length); header = NLMSG_NEXT(header, length)) {
            if (header->nlmsg_type == NLMSG_DONE)
                found = 1;
            else if (header->nlmsg_type != NLMSG_ERROR)
                put(list, header);
        }
        if (found || ((struct nlmsghdr *)buffer)->nlmsg_type == NLMSG_ERROR)
            break;
    }
    close(fd);
    return found;
}

static void put_network(FILE *out) {
    char hostname[256] = "";
    gethostname(hostname, sizeof hostname - 1);
    fprintf(out, "\"hostname\": ");
    put_string(out, hostname);
    struct list interfaces = {out, 0}, addresses = {out, 0};
    fprintf(out, ",\n\"interfaces\": {");
    int complete = dump(&interfaces, RTM_GETLINK, put_interface);
    fprintf(out, "},\n\"addresses\": [");
    complete &= dump(&addresses, RTM_GETADDR, put_address);
    fprintf(out, "],\n\"network_known\": %s,\n", complete ? "true" : "false");
}

/* ---- mounts and /proc ---- */

/* A mountinfo line: id, parent, device, root, mount point, options, then
 * optional fields ("shared:1 master:2"), "-" and the file system. */
static void put_mounts(FILE *out, FILE *mountinfo) {
    static char line[65536], propagation[256];
    int count = 0, has_root = 0;
    fprintf(out, "\"mounts\": [");
    while (mountinfo && fgets(line, sizeof line, mountinfo)) {
        int id, parent, end = 0;
        static char point[4096];
        if (sscanf(line, "%d %d %*s %*s %4095s %*s %n", &id, &parent, point, &end) != 3 || !end)
            continue;
        char *type = strstr(line + end - 1, " - ");
        if (!type)
            continue;
        *type = 0;
        const char *fields = type > line + end ? line + end : "";
        fprintf(out, "%s\n[%d, %d, ", count++ ? "," : "", id, parent);
        put_string(out, point);
        fprintf(out, ", ");
        put_string(out, fields);
        fprintf(out, "]");
        if (strcmp(point, "/") == 0) {
            has_root = 1;
            snprintf(propagation, sizeof propagation, "%.255s", fields);
        }
    }
    fprintf(out, "],\n\"propagation\": ");
    if (has_root)
        put_string(out, propagation);
    else
        fprintf(out, "null");
    struct stat root;
    if (stat("/", &root) != 0)
        memset(&root, 0, sizeof root);
    fprintf(out, ",\n\"root\": [%lu, %lu],\n", (unsigned long)root.st_dev,
            (unsigned long)root.st_ino);
}

static void put_proc(FILE *out) {
    char self[32] = "", first[64] = "";
    ssize_t length = readlink("/proc/self", self, sizeof self - 1);
    int own = length > 0 && atoi(self) == getpid();
    FILE *file = fopen("/proc/1/comm", "re");
    if (file && fgets(first, sizeof first, file))
        first[strcspn(first, "\n")] = 0;
    if (file)
        fclose(file);
    fprintf(out, "\"proc_is_own\": %s, \"pid1\": ", own ? "true" : "false");
    put_string(out, first);
    fprintf(out, ",\n\"processes\": [");
    DIR *directory = opendir("/proc");
    int count = 0;
    for (struct dirent *entry; directory && (entry = readdir(directory));)
        if (atoi(entry->d_name) > 0)
            fprintf(out, "%s%d", count++ ? ", " : "", atoi(entry->d_name));
    if (directory)
        closedir(directory);
    fprintf(out, "],\n");
}

int main(int argc, char **argv) {
    if (argc < 2)
        return 2;
    collect_fds();
    char cwd[4096] = "";
    if (!getcwd(cwd, sizeof cwd))
        cwd[0] = 0;
    FILE *status = fopen("/proc/self/status", "re");
    FILE *mountinfo = fopen("/proc/self/mountinfo", "re");
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
    put_network(out);
    put_mounts(out, mountinfo);
    put_proc(out);
    fprintf(out, "\"cwd\": ");
    put_string(out, cwd);
    fprintf(out, ",\n\"pid\": %d, \"ppid\": %d, \"pgid\": %d, \"sid\": %d,\n", getpid(), getppid(),
            getpgrp(), getsid(0));
    fprintf(out, "\"dumpable\": %d, \"nice\": %d\n}\n", prctl(PR_GET_DUMPABLE),
            getpriority(PRIO_PROCESS, 0));
    return fclose(out) == 0 ? 0 : 4;
}
