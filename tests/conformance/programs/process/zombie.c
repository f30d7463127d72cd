/* Children that have ended and were not waited for yet: their parent gets each one's status, once. */
#include "ready.h"

#include <sys/resource.h>

int main(void)
{
	begin();
	pid_t exited = fork();
	if (!exited)
		_exit(7);
	pid_t killed = fork();
	if (!killed) {
		raise(SIGKILL);
		_exit(1);
	}
	pid_t dumped = fork();
	if (!dumped) {
		struct rlimit limit;
		getrlimit(RLIMIT_CORE, &limit);
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_CORE, &limit);
		abort();
	}
	siginfo_t info;
	waitid(P_PID, (id_t)exited, &info, WEXITED | WNOWAIT);
	waitid(P_PID, (id_t)killed, &info, WEXITED | WNOWAIT);
	waitid(P_PID, (id_t)dumped, &info, WEXITED | WNOWAIT);
	ready_and_wait();

	int status = 0;
	expect(waitpid(exited, &status, 0) == exited && WIFEXITED(status) && WEXITSTATUS(status) == 7,
	       "the child that exited with 7: status %x, %s", status, strerror(errno));
	expect(waitpid(killed, &status, 0) == killed && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
	       "the child that was killed: status %x, %s", status, strerror(errno));
	expect(waitpid(dumped, &status, 0) == dumped && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT,
	       "the child that aborted: status %x, %s", status, strerror(errno));
	expect(waitpid(-1, &status, 0) == -1 && errno == ECHILD, "a third child is there");
	return verdict();
}
