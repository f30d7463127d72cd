/* A child in namespaces of its own. */
#include "ready.h"

int main(void)
{
	begin();
	int ends[2];
	if (pipe(ends))
		give_up("pipe");
	pid_t child = fork();
	if (!child) {
		char said = unshare(CLONE_NEWUSER | CLONE_NEWUTS) ? 'n' : 'y';
		if (write(ends[1], &said, 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	char said;
	if (read(ends[0], &said, 1) != 1 || said != 'y') {
		kill(child, SIGKILL);
		unavailable("unshare");
	}
	ready_and_wait();
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	return verdict();
}
