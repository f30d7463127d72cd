/* A process that shares its parent's memory without being a thread of it (clone with CLONE_VM). */
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

int main(void)
{
	begin();
	pid_t pid = clone(child, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
	if (pid < 0)
		give_up("clone");
	ready_and_wait();
	leave = 1;
	int status;
	expect(waitpid(pid, &status, 0) == pid && !status, "the child failed");
	return verdict();
}
