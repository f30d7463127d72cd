/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Use up PIDs. The kernel assigns PIDs in turn (idr_alloc_cyclic in kernel/pid.c). So a user who may not choose a PID
 * gets it by using up all PIDs before it.
 *
 * No process is needed to use up a PID. If a clone asks for a pidfd and the caller may have no more descriptors, the
 * clone fails after its PID has been allocated, and before the child is visible (copy_process in kernel/fork.c, since
 * Linux 5.2). No child runs, nothing has to be waited for, and it takes a third of the time of a child that exits at
 * once.
 */
#define _GNU_SOURCE
#include "torpor.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST_AT_ONCE 64 /* PIDs to use up between two checks of the last PID */
#define MOST_WALKERS 64

static int64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* The last word of /proc/loadavg: the PID that was assigned last in the reader's PID namespace. */
static long last_pid(int loadavg)
{
	char text[128];
	ssize_t size = pread(loadavg, text, sizeof(text) - 1, 0);
	const char *word;

	if (size <= 0)
		return -1;
	text[size] = '\0';
	word = strrchr(text, ' ');
	return word ? atol(word + 1) : -1;
}

static long left(const struct tp_walk *w)
{
	long last = last_pid(w->loadavg), distance = w->target - 1 - last;

	return last < 0 ? -1 : distance < 0 ? distance + w->end - w->first : distance;
}

static _Noreturn void walk(const struct tp_walk *w, int64_t until)
{
	struct rlimit none = {0, 0};
	sigset_t all;
	int pidfd;
	long far;

	/* Block all signals: the process that waits for the walkers handles them. */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	getrlimit(RLIMIT_NOFILE, &none);
	none.rlim_cur = 0;
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) || setrlimit(RLIMIT_NOFILE, &none))
		_exit(errno);
	while ((far = left(w)) > w->near && now_ns() < until) {
		/* Even if all walkers are preempted here, together they pass at most half of the distance. */
		long most = (far - w->near) / (2L * w->walkers), count = most > MOST_AT_ONCE ? MOST_AT_ONCE : most;

		do {
			/* Share all that can be shared, so that the kernel copies nothing for the child. */
			long flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_PIDFD;

			if (syscall(SYS_clone, flags, 0, &pidfd, 0, 0) >= 0 || errno != EMFILE)
				_exit(errno);
		} while (--count > 0);
	}
	_exit(far < 0 ? EIO : 0);
}

long tp_walk(const struct tp_walk *w)
{
	int64_t until = now_ns() + w->most_ns;
	long pids[MOST_WALKERS], count = 0, failure = 0;

	while (count < w->walkers && count < MOST_WALKERS) {
		/* Exit signal 0: the caller gets no SIGCHLD. */
		long pid = syscall(SYS_clone, 0, 0, 0, 0, 0);

		if (!pid)
			walk(w, until);
		if (pid < 0) {
			failure = count ? 0 : -errno;
			break;
		}
		pids[count++] = pid;
	}
	for (long k = 0; k < count; k++) {
		int status = 0;

		while (waitpid((pid_t)pids[k], &status, __WALL) < 0 && errno == EINTR)
			;
		if (WIFEXITED(status) && WEXITSTATUS(status))
			failure = -WEXITSTATUS(status);
		else if (!WIFEXITED(status))
			failure = -EINTR;
	}
	return failure ? failure : left(w);
}
