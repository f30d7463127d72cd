/* A process that shares its parent's memory without being a thread of it (CLONE_VM), and processes that share
 * descriptors or the current directory with their grandparent, but not with their parent any more (CLONE_FILES,
 * CLONE_FS; unshare(2)). */
#include "ready.h"

#include <sys/prctl.h>

static char stack[64 << 10] __attribute__((aligned(16)));
static volatile int leave;

static int child(void *unused)
{
	(void)unused;
	while (!leave)
		usleep(1000);
	return 0;
}

static int done[2];

static int sleeper(void *unused)
{
	(void)unused;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	pause();
	return 0;
}

static int between(void *what)
{
	int flags = (int)(intptr_t)what;
	if (clone(sleeper, stack + sizeof stack, flags | SIGCHLD, NULL) < 0 || unshare(flags))
		give_up("clone, unshare");
	if (write(done[1], "", 1) != 1)
		give_up("write");
	pause();
	return 0;
}

static pid_t sharing(int what)
{
	char byte;
	pid_t pid = clone(between, stack + sizeof stack, what | SIGCHLD, (void *)(intptr_t)what);
	if (pid < 0 || read(done[0], &byte, 1) != 1)
		give_up("clone");
	return pid;
}

int main(void)
{
	begin();
	if (pipe(done))
		give_up("pipe");
	pid_t files = sharing(CLONE_FILES), fs = sharing(CLONE_FS);
	pid_t pid = clone(child, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
	if (pid < 0)
		give_up("clone");
	ready_and_wait();
	leave = 1;
	int status;
	expect(waitpid(pid, &status, 0) == pid && !status, "the child failed");
	kill(files, SIGKILL);
	kill(fs, SIGKILL);
	expect(waitpid(files, &status, 0) == files && waitpid(fs, &status, 0) == fs, "a sleeper is gone");
	return verdict();
}
