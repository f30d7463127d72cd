/* A child that denies itself memory that is writable and executable (PR_SET_MDWE, Linux 6.3): so it does us, when its
 * parent has been entered already. */
#include "ready.h"

#include <sys/prctl.h>

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#endif

int main(void)
{
	begin();
	int ends[2];
	if (pipe2(ends, O_CLOEXEC))
		give_up("pipe");
	pid_t child = fork();
	if (!child) {
		int error = prctl(PR_SET_MDWE, 1, 0, 0, 0) ? errno : 0;
		if (write(ends[1], &error, sizeof error) < 0)
			_exit(1);
		pause();
		_exit(1);
	}
	if (read(ends[0], &errno, sizeof errno) != sizeof errno || errno)
		unavailable("PR_SET_MDWE");
	ready_and_wait();
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	return verdict();
}
