/* Children of a program, each with a state of its own: they make it, wait, and judge it. */
#ifndef TORPOR_CONFORMANCE_CHILDREN_H
#define TORPOR_CONFORMANCE_CHILDREN_H

#include "ready.h"

enum { MAX_CHILDREN = 16 };

/* Does all that a program does. `make` is called in each child, with its number; `holds` says afterwards whether the
 * state is what it was. */
static inline int judged_in_children(int count, void (*make)(int number), bool (*holds)(void))
{
	pid_t pids[MAX_CHILDREN];
	sigset_t signals, end;
	sigemptyset(&end);
	sigaddset(&end, SIGTERM);
	signals = end;
	sigaddset(&signals, SIGUSR1);
	begin();
	sigprocmask(SIG_BLOCK, &signals, NULL);
	for (int k = 0; k < count; k++) {
		int got;
		pids[k] = fork();
		if (!pids[k]) {
			make(k);
			kill(getppid(), SIGUSR1);
			sigwait(&end, &got);
			_exit(!holds());
		}
		sigwait(&signals, &got);
		sleeps_in(pids[k], SYS_rt_sigtimedwait);
	}
	ready_and_wait();
	for (int k = 0; k < count; k++) {
		int status = -1;
		kill(pids[k], SIGTERM);
		waitpid(pids[k], &status, 0);
		expect(!status, "child %d ended with %#x: its state is not what it was", k, status);
	}
	return verdict();
}

#endif
