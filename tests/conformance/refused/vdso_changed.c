/* Programs that have changed their vDSO: moved its code away from its data, written into its code (as tracers and
 * recorders do), or made its data unreadable. */
#include "ready.h"

static char *code, *code_end, *data, *data_end;

static void find(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[512];
	while (maps && fgets(line, sizeof line, maps)) {
		if (strstr(line, "[vdso]"))
			sscanf(line, "%p-%p", (void **)&code, (void **)&code_end);
		if (strstr(line, "[vvar]"))
			sscanf(line, "%p-%p", (void **)&data, (void **)&data_end);
	}
	if (maps)
		fclose(maps);
	if (!code || !data)
		unavailable("no vDSO");
}

static void move(void)
{
	size_t size = code_end - code;
	if (mremap(code, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, (char *)0x600000000000) == MAP_FAILED)
		give_up("mremap");
}

static void write_into(void)
{
	if (mprotect(code, code_end - code, PROT_READ | PROT_WRITE | PROT_EXEC))
		give_up("mprotect");
	code_end[-1] ^= 1;
	mprotect(code, code_end - code, PROT_READ | PROT_EXEC);
}

static void protect(void)
{
	if (mprotect(data, data_end - data, PROT_NONE))
		give_up("mprotect");
}

int main(void)
{
	begin();
	void (*const changes[])(void) = {move, write_into, protect};
	enum { CHILDREN = sizeof changes / sizeof *changes };
	pid_t pids[CHILDREN];
	sigset_t signals;
	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	sigaddset(&signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	find();
	for (int k = 0; k < CHILDREN; k++) {
		int got;
		pids[k] = fork();
		if (!pids[k]) {
			changes[k]();
			kill(getppid(), SIGUSR1);
			sigdelset(&signals, SIGUSR1);
			sigwait(&signals, &got);
			_exit(0);
		}
		sigwait(&signals, &got);
		sleeps_in(pids[k], SYS_rt_sigtimedwait);
	}
	ready_and_wait();
	for (int k = 0; k < CHILDREN; k++) {
		int status = -1;
		kill(pids[k], SIGTERM);
		waitpid(pids[k], &status, 0);
		expect(!status, "child %d ended with %#x", k, status);
	}
	return verdict();
}
