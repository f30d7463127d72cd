/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The C core: what Python cannot do to another process, and nothing else. The part of this file between the
 * cffi marks is read by build.py as the declarations of torpor._native; keep it plain C without macros.
 */
#ifndef TORPOR_H
#define TORPOR_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

/* One raw system call; the result, or the negated errno (errno itself is not touched). */
long tp_syscall(long nr, long a, long b, long c, long d, long e, long f);

/* What the kernel asks about when a path is walked: credentials(7). */
struct tp_rights {
	uint32_t uid, gid; /* of the file system */
	const uint32_t *groups;
	size_t count;
	uint64_t effective; /* capabilities; of those that it may have. Its own are not asked for */
};

/*
 * One raw system call of the calling thread with these rights. Those that it has come back before this returns, and no
 * other thread's change. -EPERM also when the thread may not take them.
 */
long tp_syscall_as(const struct tp_rights *wanted, const struct tp_rights *own, long nr, long a, long b, long c, long d,
		   long e, long f);

/* The batch interpreter: position-independent code, see batch.c. */
const void *tp_batch_code(void);
size_t tp_batch_size(void);

/* Mark in out[i] whether page i of count pages at pages holds only zeros. */
void tp_zero_pages(const void *pages, size_t count, size_t page_size, uint8_t *out);

/* A descriptor of a process. */
struct tp_descriptor {
	int32_t pid, fd;
};

/*
 * Search open file descriptions, each given by one of its descriptors and sorted by kcmp(2), for the one that wanted
 * refers to. 1 if it is there, 0 if it is not: *place is where it is, or where to insert it. Or a negated errno.
 */
long tp_find_description(const struct tp_descriptor *wanted, const struct tp_descriptor *known, size_t count,
			 size_t *place);

/* Bytes of a standard-format xsave area that holds these components (a mask as in XCR0). */
uint32_t tp_xsave_size(uint64_t features);

/* What tp_spawn was doing; told by a report. */
enum tp_stage {
	TP_STAGE_STARTED,  /* value: the PID of init */
	TP_STAGE_READY,	   /* init lives in its namespaces, and waits for a struct tp_go */
	TP_STAGE_APART,	   /* init has a descriptor table of its own */
	TP_STAGE_UNMAPPED, /* the helper lives in a new user namespace, and waits for a struct tp_go: others map ids */
	TP_STAGE_UNSHARE,  /* this one and all that follow: value is an errno */
	TP_STAGE_ID_MAPS,
	TP_STAGE_CLOCKS,
	TP_STAGE_FORK,
	TP_STAGE_SLAVE_MOUNTS,
	TP_STAGE_MOUNT_PROC,
	TP_STAGE_SUBREAPER,
	TP_STAGE_SESSION,
	TP_STAGE_CAPABILITIES,
	TP_STAGE_LIMIT,
	TP_STAGE_DESCRIPTORS,
	TP_STAGE_EXECVE
};

struct tp_report {
	int32_t stage;
	int32_t value;
};

struct tp_go {
	int32_t first_fd, end_fd; /* descriptors of this range are inherited */
};

struct tp_spawn {
	uint64_t namespaces;  /* CLONE_NEW*, 0: none */
	uint32_t uid, gid;    /* to be mapped to themselves in a new user namespace */
	int32_t others_map;   /* ids, by writing to the helper's /proc; it then maps what they have not */
	int64_t monotonic_ns; /* offsets of the clocks in a new time namespace */
	int64_t boottime_ns;
	int32_t last_pid;     /* what PIDs in a new namespace are counted from */
	uint64_t ignored;     /* signals (bit n - 1 is n) that are ignored; all others have their default action */
	uint64_t blocked;     /* the signal mask */
	uint64_t descriptors; /* the soft limit of them */
	int32_t new_session;
	int32_t keep_capabilities; /* over execve: those of the new user namespace, or the own ones */
	int32_t gate;		   /* who waits, waits until a struct tp_go can be read here */
	int32_t caller;		   /* a pidfd of the caller: init ends when it does */
	int32_t report;		   /* struct tp_report is written here; closed by a successful execve */
	const char *path;
	char *const *argv;
	char *const *environment;
};

/*
 * Start init as a child of the caller, by way of a helper. The helper's PID, for the caller to reap, or a negated errno;
 * init's PID comes as a report. Until it is told to go on, init shares the caller's table of descriptors: what the
 * caller opens meanwhile, it has.
 */
long tp_spawn(const struct tp_spawn *s);

/* A way to a PID, past those that the kernel gives before. */
struct tp_walk {
	int64_t target;	    /* the PID */
	int64_t near;	    /* how many may be left before it */
	int64_t first, end; /* PIDs are given from first to end - 1, again and again */
	int64_t most_ns;    /* that it may take */
	int32_t loadavg;    /* a descriptor of /proc/loadavg */
	int32_t walkers;    /* processes that walk side by side */
};

/*
 * Let PIDs go by until no more than w->near are left before the target, or the time is over, in processes of its own
 * that have ended when it returns. How many are left, or a negated errno: -EAGAIN where the user may have no more
 * processes.
 */
long tp_walk(const struct tp_walk *w);

/* cffi: end */

#endif
