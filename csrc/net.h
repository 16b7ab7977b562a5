/* lo of a fresh network namespace, by one netlink datagram (rtnetlink(7)).
 *
 * The addresses besides the kernel's own 127.0.0.1 and ::1: getaddrinfo() with
 * AI_ADDRCONFIG ignores loopback addresses, so that without 10.0.0.1 and fd::1
 * not even "localhost" has an address (bugs.gentoo.org/690758).
 */
#ifndef SPAWNHELPER_NET_H
#define SPAWNHELPER_NET_H

#include "sys.h"

/* linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h, linux/sockios.h; here
 * because another libc's compiler does not find the kernel's headers. */
struct nlmsghdr {
    uint32_t nlmsg_len;
    uint16_t nlmsg_type, nlmsg_flags;
    uint32_t nlmsg_seq, nlmsg_pid;
};
struct nlmsgerr {
    int32_t error;
    struct nlmsghdr msg;
};
struct sockaddr_nl {
    uint16_t nl_family, nl_pad;
    uint32_t nl_pid, nl_groups;
};
struct ifinfomsg {
    uint8_t ifi_family, ifi_pad;
    uint16_t ifi_type;
    int32_t ifi_index;
    uint32_t ifi_flags, ifi_change;
};
struct ifaddrmsg {
    uint8_t ifa_family, ifa_prefixlen, ifa_flags, ifa_scope;
    uint32_t ifa_index;
};
struct rtattr {
    uint16_t rta_len, rta_type;
};

enum {
    NETLINK_ROUTE = 0,
    NLM_F_REQUEST = 1,
    NLM_F_EXCL = 0x200,
    NLM_F_CREATE = 0x400,
    NLMSG_ERROR = 2,
    RTM_NEWLINK = 16,
    RTM_NEWADDR = 20,
    IFA_LOCAL = 2,
    IFA_F_NODAD = 2,
    SH_SIOCGIFFLAGS = 0x8913,
    SH_SIOCSIFFLAGS = 0x8914,
    SH_SIOCSIFADDR = 0x8916,
};

enum {
    SH_AF_INET = 2,
    SH_AF_INET6 = 10,
    SH_AF_NETLINK = 16,
    SH_SOCK_DGRAM = 2,
    SH_SOCK_RAW = 3,
    SH_SOCK_CLOEXEC = 02000000,
    SH_MSG_DONTWAIT = 0x40,
    SH_IFF_UP = 1,
    SH_LOOPBACK = 1, /* the index of lo in every network namespace */
    SH_NET_PREFIX = 8,
};

struct sh_net_link {
    struct nlmsghdr header;
    struct ifinfomsg link;
};

struct sh_net_inet {
    struct nlmsghdr header;
    struct ifaddrmsg address;
    struct rtattr local;
    unsigned char bytes[4];
};

struct sh_net_inet6 {
    struct nlmsghdr header;
    struct ifaddrmsg address;
    struct rtattr local;
    unsigned char bytes[16];
};

struct sh_net_orders {
    struct sh_net_link up;
    struct sh_net_inet inet;
    struct sh_net_inet6 inet6;
};

static inline void sh_net_head(struct nlmsghdr *header, int type, int flags, unsigned sequence,
                               unsigned length) {
    header->nlmsg_len = length;
    header->nlmsg_type = (unsigned short)type;
    header->nlmsg_flags = (unsigned short)(NLM_F_REQUEST | flags);
    header->nlmsg_seq = sequence;
    header->nlmsg_pid = 0;
}

static inline void sh_net_address(struct ifaddrmsg *address, struct rtattr *local, int family,
                                  int length) {
    address->ifa_family = (unsigned char)family;
    address->ifa_prefixlen = SH_NET_PREFIX;
    address->ifa_flags = IFA_F_NODAD; /* lo has no neighbours to ask */
    address->ifa_scope = 0;           /* global */
    address->ifa_index = SH_LOOPBACK;
    local->rta_len = (unsigned short)(sizeof *local + length);
    local->rta_type = IFA_LOCAL;
}

static inline void sh_net_zero(void *memory, unsigned long size) {
    for (volatile unsigned char *byte = memory; size > 0; size--)
        *byte++ = 0;
}

/* Sequence numbers 1 to 3, in this order. Without NLM_F_ACK only errors are answered. */
static inline void sh_net_write(struct sh_net_orders *orders) {
    const int create = NLM_F_CREATE | NLM_F_EXCL;
    sh_net_zero(orders, sizeof *orders);
    sh_net_head(&orders->up.header, RTM_NEWLINK, 0, 1, sizeof orders->up);
    orders->up.link.ifi_index = SH_LOOPBACK;
    orders->up.link.ifi_flags = orders->up.link.ifi_change = SH_IFF_UP;
    sh_net_head(&orders->inet.header, RTM_NEWADDR, create, 2, sizeof orders->inet);
    sh_net_address(&orders->inet.address, &orders->inet.local, SH_AF_INET, 4);
    orders->inet.bytes[0] = 10;
    orders->inet.bytes[3] = 1;
    sh_net_head(&orders->inet6.header, RTM_NEWADDR, create, 3, sizeof orders->inet6);
    sh_net_address(&orders->inet6.address, &orders->inet6.local, SH_AF_INET6, 16);
    orders->inet6.bytes[1] = 0xfd;
    orders->inet6.bytes[15] = 1;
}

/* A kernel without IPv6, or with ipv6.disable=1 or disable_ipv6: then there is no fd::1. */
static inline int sh_net_lacks_inet6(long error) {
    return error == -EOPNOTSUPP || error == -EAFNOSUPPORT || error == -EACCES ||
           error == -EADDRNOTAVAIL || error == -ENODEV || error == -EPROTONOSUPPORT;
}

/* 0, or the first error that the kernel answered with. */
static inline long sh_net_answers(int socket) {
    struct {
        struct nlmsghdr header;
        struct nlmsgerr error;
        char rest[256];
    } answer;
    for (;;) {
        long length = SYS(recvfrom, socket, &answer, sizeof answer, SH_MSG_DONTWAIT, 0, 0);
        if (length == -EINTR)
            continue;
        if (length == -EAGAIN)
            return 0;
        if (length < 0)
            return length;
        if (answer.header.nlmsg_type != NLMSG_ERROR || answer.error.error == 0)
            continue;
        if (answer.header.nlmsg_seq == 3 && sh_net_lacks_inet6(answer.error.error))
            continue;
        return answer.error.error;
    }
}

static inline long sh_net_by_netlink(void) {
    struct sh_net_orders orders;
    struct sockaddr_nl kernel;
    sh_net_zero(&kernel, sizeof kernel);
    kernel.nl_family = SH_AF_NETLINK;
    int socket = (int)SYS(socket, SH_AF_NETLINK, SH_SOCK_RAW | SH_SOCK_CLOEXEC, NETLINK_ROUTE);
    if (socket < 0)
        return socket;
    sh_net_write(&orders);
    long error = SYS(sendto, socket, &orders, sizeof orders, 0, &kernel, sizeof kernel);
    if (error >= 0)
        error = sh_net_answers(socket);
    SYS(close, socket);
    return error;
}

/* netdevice(7); our own layouts, because <net/if.h> is libc's. */
struct sh_net_request {
    char name[16];
    union {
        short flags;
        struct {
            unsigned short family, port;
            unsigned char address[4];
            char zero[8];
        } inet;
        char room[24];
    } value;
};

struct sh_net_request6 {
    unsigned char address[16];
    uint32_t prefix;
    int32_t index;
};

static inline void sh_net_name(struct sh_net_request *request, char alias) {
    sh_net_zero(request, sizeof *request);
    request->name[0] = 'l';
    request->name[1] = 'o';
    if (alias) {
        request->name[2] = ':';
        request->name[3] = alias;
    }
}

static inline long sh_net_inet_by_ioctl(int socket) {
    struct sh_net_request request;
    sh_net_name(&request, 0);
    long error = SYS(ioctl, socket, SH_SIOCGIFFLAGS, &request);
    if (error < 0)
        return error;
    request.value.flags |= SH_IFF_UP;
    error = SYS(ioctl, socket, SH_SIOCSIFFLAGS, &request);
    if (error < 0)
        return error;
    sh_net_name(&request, '1'); /* a second address needs a label; class A: prefix 8 */
    request.value.inet.family = SH_AF_INET;
    request.value.inet.address[0] = 10;
    request.value.inet.address[3] = 1;
    error = SYS(ioctl, socket, SH_SIOCSIFADDR, &request);
    return error == -EEXIST ? 0 : error; /* netlink's doing, if only its answer was refused */
}

static inline long sh_net_inet6_by_ioctl(void) {
    struct sh_net_request6 request;
    int socket = (int)SYS(socket, SH_AF_INET6, SH_SOCK_DGRAM | SH_SOCK_CLOEXEC, 0);
    if (socket < 0)
        return sh_net_lacks_inet6(socket) ? 0 : socket;
    sh_net_zero(&request, sizeof request);
    request.address[1] = 0xfd;
    request.address[15] = 1;
    request.prefix = SH_NET_PREFIX;
    request.index = SH_LOOPBACK;
    long error = SYS(ioctl, socket, SH_SIOCSIFADDR, &request);
    SYS(close, socket);
    return error < 0 && error != -EEXIST && !sh_net_lacks_inet6(error) ? error : 0;
}

static inline long sh_net_by_ioctl(void) {
    int socket = (int)SYS(socket, SH_AF_INET, SH_SOCK_DGRAM | SH_SOCK_CLOEXEC, 0);
    if (socket < 0)
        return socket;
    long error = sh_net_inet_by_ioctl(socket);
    SYS(close, socket);
    return error < 0 ? error : sh_net_inet6_by_ioctl();
}

/* A seccomp profile may refuse netlink sockets, and allow the old way. */
static inline long sh_net_raise_loopback(void) {
    long error = sh_net_by_netlink();
    if (error == -EPERM || error == -EACCES || error == -EAFNOSUPPORT ||
        error == -EPROTONOSUPPORT || error == -ENOSYS)
        return sh_net_by_ioctl();
    return error;
}

#endif
