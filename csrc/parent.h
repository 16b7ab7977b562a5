/* What the files of the parent's side share. */
#ifndef SPAWNHELPER_PARENT_H
#define SPAWNHELPER_PARENT_H

#include <stddef.h>
#include <stdint.h>

#include "spawnhelper.h"

/* orders.c: the orders with everything that they point to, and the child's
 * stack, in one block. NULL: refused, process->result says why. The reserved
 * descriptor (-1: none) survives in the child. */
struct sh_orders *sh_prepare(const struct sh_request *request, struct sh_process *process,
                             int reserved);
void sh_release(struct sh_orders *orders);
char *sh_stack(struct sh_orders *orders, size_t *size);

/* report.c: the pipe for children that do not share our memory. */

/* Fills ends (read, write); neither is a descriptor that the request names,
 * nor below 3. 0 or a negative errno, with culprit the source that is closed. */
int sh_report_open(const struct sh_request *request, int ends[2], int *culprit);
/* The reader, last; the write end is simply closed. */
void sh_report_close(int reader);
/* Reads until end of file: 0, or 1 (a signal came, call again). */
int sh_report_read(int fd, char *bytes, uint32_t size, uint32_t *length);
/* What the bytes say: 0 (exec'd), 1 (a failure, in result), 2 (died in silence). */
int sh_report_parse(const char *bytes, uint32_t length, struct sh_result *result);

/* launch.c */

/* Every start begins with it. */
void sh_begin(struct sh_process *process);
/* sh_prepare for a child that will report through a new pipe. */
struct sh_orders *sh_prepare_report(const struct sh_request *request, struct sh_process *process,
                                    int ends[2]);
void sh_block_signals(uint64_t *before);
void sh_restore_signals(const uint64_t *before);
/* Fills in the result of a start that had no child; the negative errno. */
int sh_refuse(struct sh_process *process, int stage, int error, int detail);
/* Reaps a child that never became the command. If it died in silence the result
 * says so, with the stage. The negative errno. */
int sh_bury(struct sh_process *process, int pid, int pidfd, int stage, int silent);

/* wait.c */
void sh_adopt(struct sh_process *process, int pid, int pidfd);
/* Reaps; the wait status. */
int sh_reap_failed(int pid, int pidfd);
int sh_pidfd_open(int pid);
int64_t sh_now(void); /* nanoseconds, CLOCK_MONOTONIC */

/* drop.c, pidfds.c: the child of a fork owns nothing. */
void sh_forget_dropped(void);
void sh_forget_pidfds(void);

/* pidfds.c */

/* Where the pidfd is to live: its number; 0: nowhere. */
int sh_place_pidfd(int fd);
void sh_close_pidfd(int fd);
/* For one that somebody else closed. */
void sh_disown_pidfd(int fd);
/* 1: a child may leave out these numbers, for it would inherit none of them. */
int sh_pidfd_region(int *from, int *to);

#endif
