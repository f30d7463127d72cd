/* Takes a PID for itself, so that nobody else can have it: occupy PID. Says "taken" and stays until it is killed. */
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int count, char **arguments)
{
	pid_t wanted = count == 2 ? atoi(arguments[1]) : 0;
	struct clone_args how = {
		.exit_signal = SIGCHLD,
		.set_tid = (uintptr_t)&wanted,
		.set_tid_size = 1,
	};
	long pid = syscall(SYS_clone3, &how, sizeof how);
	if (pid < 0) {
		perror("clone3");
		return 1;
	}
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		puts("taken");
		fflush(stdout);
	}
	pause();
	return 0;
}
