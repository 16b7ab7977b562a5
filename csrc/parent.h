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
                             int reserved, struct sh_isolation *isolation);
void sh_release(struct sh_orders *orders);
char *sh_stack(struct sh_orders *orders, size_t *size);
/* A stack alone: its top, or NULL. */
char *sh_take_stack(uint64_t *size);
void sh_return_stack(char *top);

/* report.c: the pipe for children that do not share our memory. */

/* Fills ends (read, write); neither is a descriptor that the request names,
 * nor below 3. 0 or a negative errno, with culprit the source that is closed. */
int sh_report_open(const struct sh_request *request, int ends[2], int *culprit);
/* The reader, last; the write end is simply closed. */
void sh_report_close(int reader);
/* A source that is closed, or -1. */
int sh_closed_source(const struct sh_request *request);
/* Reads until end of file: 0, or 1 (a signal came, call again). */
int sh_report_read(int fd, char *bytes, uint32_t size, uint32_t *length);
/* What the bytes say: 0 (exec'd), 1 (a failure, in result), 2 (died in silence). */
int sh_report_parse(const char *bytes, uint32_t length, struct sh_result *result);

/* launch.c */

/* Every start begins with it. */
void sh_begin(struct sh_process *process);
/* sh_prepare for a child that will report through a new pipe. */
struct sh_orders *sh_prepare_report(const struct sh_request *request, struct sh_process *process,
                                    int ends[2], struct sh_isolation *isolation);
int sh_start_set(const struct sh_request *request, struct sh_process *process, struct sh_set *set);
void sh_block_signals(uint64_t *before);
void sh_restore_signals(const uint64_t *before);
/* Fills in the result of a start that had no child; the negative errno. */
int sh_refuse(struct sh_process *process, int stage, int error, int detail);
/* Reaps a child that never became the command. If it died in silence the result
 * says so, with the stage. The negative errno. */
int sh_bury(struct sh_process *process, int pid, int pidfd, int stage, int silent);

/* wait.c */
void sh_adopt(struct sh_process *process, int pid, int pidfd);
/* For a handle that other code lives beside: the number may come to mean another file. */
void sh_remember_pidfd(struct sh_process *process);
/* Reaps; the wait status. */
int sh_reap_failed(int pid, int pidfd);
int sh_pidfd_open(int pid);
/* What a command that failed, and is reaped, has left: holder and set. */
void sh_end_failed(struct sh_process *process);
int64_t sh_now(void); /* nanoseconds, CLOCK_MONOTONIC */

/* isolate.c */

/* What a request with isolation needs, open; NULL: refused, process->result
 * says why. made: the set that is being prepared; forks: for sh_fork(). */
struct sh_isolation *sh_isolation_open(const struct sh_request *request, struct sh_process *process,
                                       struct sh_set *made, int forks);
/* Leaves the parent's notes in process->result. */
void sh_isolation_close(struct sh_isolation *isolation, struct sh_process *process);
/* Before each try. 0, or a negative errno with the result filled in. */
int sh_isolation_begin(struct sh_isolation *isolation, struct sh_process *process);
/* After one that failed: whether there is another way. */
int sh_isolation_retry(struct sh_isolation *isolation, struct sh_process *process);
/* Whether a child that reports through a pipe can do it. */
int sh_isolation_can_fork(struct sh_isolation *isolation, struct sh_process *process);
/* From here on this thread's children are born in the set's pid namespace; and back. */
int sh_isolation_leave_home(struct sh_isolation *isolation);
void sh_isolation_return_home(struct sh_isolation *isolation);
/* A fresh pid namespace, with its holder, for this thread's next child. */
int sh_isolation_hold_here(struct sh_isolation *isolation, struct sh_orders *orders,
                           struct sh_process *process);
/* Reaps the intermediate and learns what it made. */
int sh_isolation_conclude(struct sh_isolation *isolation, struct sh_process *process, int pid);
/* The handle gets the holder, or becomes one of the set's commands. */
void sh_isolation_adopt(struct sh_isolation *isolation, struct sh_process *process);
/* Finds the step that a refused clone stands for. */
void sh_isolation_blame(struct sh_isolation *isolation, struct sh_result *result);
/* For a fork that failed after its holder was made. */
void sh_isolation_undo_holder(struct sh_isolation *isolation);
int sh_off_standard(int fd);
void sh_add_notes(struct sh_result *result, const struct sh_note *notes, int count);
extern const uint32_t sh_namespace_flags[SH_NAMESPACE_COUNT];

/* sets.c */
int sh_set_use(struct sh_set *set);
void sh_set_unuse(struct sh_set *set);
void sh_set_join(struct sh_set *set);
void sh_set_leave(struct sh_set *set, struct sh_process *process);
void sh_set_take(struct sh_set *set, struct sh_isolation *isolation);
/* What a descriptor stands for, as a number; 0: nothing. */
uint64_t sh_identify(int fd);
void sh_set_close_fds(struct sh_set *set);
void sh_forget_sets(void);
/* SIGKILL for a child that is not reaped yet. */
void sh_kill_holder(int pid, int pidfd);
/* 1: it is gone. */
int sh_reap_holder(int pid, int32_t *pidfd);
void sh_reap_later(int pid, int pidfd, uint64_t id);
void sh_forget_orphans(void);
void sh_reap_orphans(void);

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
