/* Processes that share their parent's memory, descriptors or current directory without being threads of it (clone with
 * CLONE_VM, CLONE_FILES or CLONE_FS). */
#include "../c/ready.h"

static char stack[64 << 10] __attribute__((aligned(16)));
static volatile int leave;

static int child(void *unused)
{
	(void)unused;
	while (!leave)
		usleep(1000);
	return 0;
}

static int sleeper(void *unused)
{
	(void)unused;
	pause();
	return 0;
}

static pid_t sharing(int what)
{
	pid_t pid = clone(sleeper, stack + sizeof stack, what | SIGCHLD, NULL);
	if (pid < 0)
		give_up("clone");
	return pid;
}

int main(void)
{
	begin();
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
