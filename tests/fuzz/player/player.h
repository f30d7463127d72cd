/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A program made of steps. Actors (processes and threads) take turns by a counter in shared memory, so that the same
 * steps give the same results in every run: what a woken tree sees is compared with what an undisturbed twin saw.
 */
#ifndef PLAYER_H
#define PLAYER_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ACTORS = 12, STEPS = 1000, ARGUMENTS = 5, SHARED_FD = 900, FIRST_FD = 20, FDS = 24 };

struct step {
	int actor;
	char verb[20];
	long a[ARGUMENTS];
};

struct actor {
	int pid, tid;
	bool thread, executed;
	int kind; /* of the call that it waits in; see waits.c */
	long result;
	/* futexes: what it waits at, that it is called upon, and that its call is over */
	_Atomic uint32_t word, released, back;
};

enum {
	WAIT_READ,
	WAIT_INTERRUPTED,
	WAIT_POLL,
	WAIT_PPOLL,
	WAIT_RECEIVE,
	WAIT_SELECT,
	WAIT_EPOLL,
	WAIT_COUNTER,
	WAIT_WRITE,
	WAIT_WRITE_ON,
	WAIT_FLOCK,
	WAIT_RANGE,
	WAIT_FUTEX,
	WAIT_FUTEX_LONG,
	WAIT_SIGNAL,
	WAIT_SUSPEND,
	WAIT_SLEEP,
	WAIT_UNTIL,
	WAIT_TIMER,
	WAIT_POLL_MOMENT,
	WAIT_FUTEX_MOMENT,
	WAITS
};

struct shared {
	_Atomic uint32_t turn; /* the number of the step that is to be done */
	_Atomic int ending;    /* a process that ends in this step */
	_Atomic uint32_t news; /* counts the changes of these two; a futex */
	int steps;
	struct actor actors[ACTORS];
	struct step step[STEPS];
	char place[PATH_MAX]; /* the folder that all of it happens in */
	_Atomic int stopped;  /* whether a process was ever stopped */
	_Atomic uint32_t caught[65];
	_Atomic uint32_t said;
	char log[1 << 20];
};

extern struct shared *shared;
extern _Thread_local int me;		 /* this actor's number */
extern _Thread_local sigjmp_buf *rescue; /* where a fault leads */

typedef long verb_fn(const long *a);

struct verb {
	const char *name;
	verb_fn *act;
};

extern const struct verb memory_verbs[], file_verbs[], channel_verbs[], signal_verbs[], process_verbs[], wait_verbs[];
extern const struct verb own_verbs[], terminal_verbs[], ipc_verbs[], watcher_verbs[], port_verbs[];

void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
const char *whose(int pid);	   /* a PID as the number of its actor, which is the same in every run */
const char *name(long index);	   /* one of a few paths of files */
long place_fd(int fd, long index); /* move to the number of an index; the index or -1 */
int impatient(int fd); /* make it one that does not wait, for the others would, too: its flags before, or -1 */
void patient(int fd, int flags);
bool is_reset(int fd);
bool is_terminal(int fd); /* or the other side of one: what was written there arrives some time later */
bool leads_to(int fd, const char *link);
bool has_edges(int fd); /* of an epoll, which are reported once or again */
void arrive(int fd);	/* see to it that what was written is where others look for it */
void forget_unreached(int fd);
bool has_threads(void);	 /* this process, besides its first one, or had some */
void begin_waits(void);	 /* make what is waited at */
void attach_waits(void); /* for a new program */
void wait_for(const long *a);
uint32_t own_number(void);  /* of this program, and no other */
void remove_unopened(void); /* queues that no image has */
void remove_own(void);	    /* what would be left of it in the host's IPC namespace */
void play(int actor);
void tell_all(void); /* that the turn, or what ends, is another one */
void done(void);     /* the step is over: the next one's turn */
static inline int fd_of(long index)
{
	return FIRST_FD + (int)(index % FDS);
}
#endif
