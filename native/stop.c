/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Stop this process, and lose no SIGCONT. A stop signal discards a SIGCONT that is pending, and the reverse
 * (prepare_signal() in kernel/signal.c). So whoever looks whether to go on, and then stops, may sleep forever: between
 * both steps the SIGCONT came. Here the stop signal comes first, while it cannot act yet: a process waits for its
 * vfork(2) child without handling signals. The child looks. A SIGCONT that comes later discards the stop signal.
 */
#define _GNU_SOURCE
#include "torpor.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

long tp_stop(int32_t sig, int32_t fd)
{
	volatile long done = 1; /* the child shares this memory */
	pid_t caller = getpid(), thread = (pid_t)syscall(SYS_gettid), child = vfork();

	if (child < 0)
		return -errno;
	if (!child) {
		struct pollfd looked_at = {.fd = fd, .events = POLLIN};

		syscall(SYS_tgkill, caller, thread,
			sig); /* to another thread it would act when this one runs already */
		if (poll(&looked_at, 1, 0)) {
			kill(caller, SIGCONT);
			done = 0;
		}
		_exit(0);
	}
	waitpid(child, NULL, 0);
	return done;
}
