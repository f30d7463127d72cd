/* Children that tell their parent of their end by another signal than SIGCHLD, or by none (clone(2)): only a wait with
 * __WCLONE or __WALL finds them. */
#include "ready.h"

enum { STACK = 64 << 10 };
static char stacks[4][STACK] __attribute__((aligned(16)));
static volatile sig_atomic_t heard;

static void hear(int number)
{
	heard = number;
}

static int sleeper(void *unused)
{
	(void)unused;
	return pause();
}

static pid_t child(int which, int exit_signal)
{
	pid_t pid = clone(sleeper, stacks[which] + STACK, exit_signal, NULL);
	if (pid < 0)
		give_up("clone");
	return pid;
}

static void only_found_as_clone(pid_t pid, const char *which)
{
	siginfo_t info;
	expect(waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0, "%s is found by a plain wait", which);
	expect(!waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT | __WCLONE), "%s is not found", which);
}

static void end(pid_t pid, const char *which)
{
	int status;
	kill(pid, SIGKILL);
	expect(waitpid(pid, &status, __WCLONE) == pid && WTERMSIG(status) == SIGKILL, "%s is gone", which);
}

int main(void)
{
	begin();
	signal(SIGUSR1, hear);
	pid_t silent = child(0, 0), other = child(1, SIGUSR1), ended = child(2, SIGWINCH), stopped = child(3, 0);
	siginfo_t info;
	kill(ended, SIGKILL);
	kill(stopped, SIGSTOP);
	if (waitid(P_PID, ended, &info, WEXITED | WNOWAIT | __WALL) || waitid(P_PID, stopped, &info, WSTOPPED | __WALL))
		give_up("waitid");
	ready_and_wait();

	expect(!heard, "signal %d came", heard);
	only_found_as_clone(silent, "the silent one");
	only_found_as_clone(ended, "the one that had ended");
	info.si_pid = 0;
	expect(!waitid(P_PID, stopped, &info, WSTOPPED | WNOHANG | __WALL) && !info.si_pid, "the stop is told again");
	end(other, "the other one");
	expect(heard == SIGUSR1, "signal %d came for SIGUSR1", heard);
	end(silent, "the silent one");
	end(ended, "the one that had ended");
	end(stopped, "the stopped one");
	return verdict();
}
