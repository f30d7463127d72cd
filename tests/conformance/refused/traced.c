/* A process that is traced already, here by its own parent. */
#include "ready.h"

#include <sys/ptrace.h>

int main(void)
{
	begin();
	pid_t child = fork();
	if (!child)
		for (;;)
			pause();
	if (ptrace(PTRACE_SEIZE, child, 0, 0))
		unavailable("ptrace");
	ready_and_wait();
	int status;
	expect(!ptrace(PTRACE_INTERRUPT, child, 0, 0) && waitpid(child, &status, 0) == child &&
		       WIFSTOPPED(status),
	       "the trace is broken: %s", strerror(errno));
	ptrace(PTRACE_DETACH, child, 0, 0);
	kill(child, SIGKILL);
	expect(waitpid(child, &status, 0) == child && WTERMSIG(status) == SIGKILL, "the child ended with %x",
	       status);
	return verdict();
}
