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

/* Make one raw system call. Returns its result, or the negated errno; errno itself is not changed. */
long tp_syscall(long nr, long a, long b, long c, long d, long e, long f);

/* The credentials that the kernel checks when it resolves a path: credentials(7). */
struct tp_rights {
	uint32_t uid, gid; /* fsuid, fsgid */
	const uint32_t *groups;
	size_t count;
	uint64_t effective; /* capabilities, from those that the thread may have; not read for its own rights */
};

/*
 * Make one raw system call with these rights in the calling thread. Its own rights are restored before this returns, and
 * other threads are not affected. -EPERM also if the thread may not take these rights.
 */
long tp_syscall_as(const struct tp_rights *wanted, const struct tp_rights *own, long nr, long a, long b, long c, long d,
		   long e, long f);

/*
 * Send this process a stop signal, unless there is something to read from fd. A SIGCONT that comes after that was written
 * is not lost. Returns 1 if the signal was sent: then the process was stopped before this returns, or the signal is blocked;
 * 0 if not: then a SIGCONT is pending; or a negated errno.
 */
long tp_stop(int32_t sig, int32_t fd);

/* The batch interpreter: position-independent code, see batch.c. */
const void *tp_batch_code(void);
size_t tp_batch_size(void);

/* Mark in out[i] whether page i of count pages at pages holds only zeros. */
void tp_zero_pages(const void *pages, size_t count, size_t page_size, uint8_t *out);

/*
 * Read count pieces, each an offset and a size, from a descriptor into buffer, one after the other. Returns 0, or a negated
 * errno: -ESRCH at the end of the file, as /proc/PID/mem ends with its process.
 */
long tp_read_pieces(int fd, const uint64_t *pieces, size_t count, void *buffer);

/*
 * Copy count pieces of buffer, each an address, a size and an offset in buffer, to the memory of a stopped process. Pages
 * that a userfaultfd (-1: none) watches and that are missing are made with their content. Returns 0, or a negated errno.
 */
long tp_fill(int32_t pid, int32_t userfaultfd, const uint64_t *pieces, size_t count, const void *buffer);

/* A descriptor of a process. */
struct tp_descriptor {
	int32_t pid, fd;
};

/*
 * Search open file descriptions, each given by one of its descriptors and sorted by kcmp(2), for the one that wanted
 * refers to. Returns 1 if found, else 0, or a negated errno. *place is its index, or where to insert it.
 */
long tp_find_description(const struct tp_descriptor *wanted, const struct tp_descriptor *known, size_t count,
			 size_t *place);

/* A socket option to be read. */
struct tp_option {
	int32_t level, name;
	uint32_t room;	/* for its value, in bytes */
	int32_t length; /* of its value; or a negated errno */
};

/* Read options of a socket. The values are written one after the other, each into its room. */
void tp_getsockopts(int fd, struct tp_option *options, size_t count, uint8_t *values);

/*
 * Where this processor has a register set in a standard-format xsave area, by the number of its bit in XCR0: its offset
 * and its size, in bytes. Returns 0 if it has no such set.
 */
int tp_register_set(uint32_t number, uint32_t *place);

/* The stages of tp_spawn; a struct tp_report names one. */
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
	TP_STAGE_LIMITS,
	TP_STAGE_DESCRIPTORS,
	TP_STAGE_EXECVE
};

struct tp_report {
	int32_t stage;
	int32_t value;
};

struct tp_go {
	int32_t first_fd, end_fd; /* init inherits the descriptors of this range */
};

/* A soft limit (RLIMIT_*). */
struct tp_limit {
	int32_t resource;
	uint64_t soft;
};

struct tp_spawn {
	uint64_t namespaces;  /* CLONE_NEW*, 0: none */
	uint32_t uid, gid;    /* mapped to themselves in a new user namespace */
	int32_t others_map;   /* others write id maps to the helper's /proc; the helper then writes missing ones */
	int64_t monotonic_ns; /* offsets of the clocks in a new time namespace */
	int64_t boottime_ns;
	int32_t last_pid;	       /* PIDs in a new namespace follow this one */
	int32_t pid_max;	       /* and stay below this */
	uint64_t ignored;	       /* signals (bit n - 1 is n) to ignore; all others get their default action */
	uint64_t blocked;	       /* the signal mask */
	const struct tp_limit *limits; /* to set; the others stay as the caller has them */
	size_t limit_count;
	int32_t new_session;
	int32_t keep_capabilities; /* through execve: those in the new user namespace, or else the caller's */
	int32_t gate;		   /* a waiting process reads a struct tp_go here */
	int32_t caller;		   /* a pidfd of the caller: init ends with the caller */
	int32_t report;		   /* struct tp_report is written here; closed by a successful execve */
	const char *path;
	char *const *argv;
	char *const *environment;
};

/*
 * Start init as a child of the caller, through a helper process. Returns the helper's PID, which the caller must reap, or
 * a negated errno. A report has init's PID. Until init reads a struct tp_go, it shares the caller's descriptor table: it
 * has all descriptors that the caller opens meanwhile.
 */
long tp_spawn(const struct tp_spawn *s);

/* A walk to a PID: using up the PIDs that the kernel assigns before it. */
struct tp_walk {
	int64_t target;	    /* the PID */
	int64_t near;	    /* how many PIDs may be left before it */
	int64_t first, end; /* the kernel assigns PIDs from first to end - 1, again and again */
	int64_t most_ns;    /* the time limit */
	int32_t loadavg;    /* a descriptor of /proc/loadavg */
	int32_t walkers;    /* the number of processes that use up PIDs in parallel */
};

/*
 * Use up PIDs until at most w->near are left before the target, or until the time limit, in child processes that have
 * ended when this returns. Returns how many PIDs are left, or a negated errno: -EAGAIN if the user may not have more
 * processes.
 */
long tp_walk(const struct tp_walk *w);

/* cffi: end */

#endif
