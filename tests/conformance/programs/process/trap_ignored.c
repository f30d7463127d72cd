/* SIGTRAP ignored, in a process with two threads. */
#include "ready.h"

static volatile int started;

static void *idle(void *unused)
{
	started = 1;
	pause();
	return unused;
}

int main(void)
{
	struct sigaction action;
	pthread_t other;

	begin();
	signal(SIGTRAP, SIG_IGN);
	pthread_create(&other, NULL, idle, NULL);
	while (!started)
		sched_yield();
	ready_and_wait();
	sigaction(SIGTRAP, NULL, &action);
	expect(action.sa_handler == SIG_IGN, "SIGTRAP is not ignored any more");
	if (action.sa_handler == SIG_IGN)
		raise(SIGTRAP);
	return verdict();
}
