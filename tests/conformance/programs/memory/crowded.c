/* Programs that have reserved most of their address space, as sanitizers' shadow memory and the heaps of large Java
 * virtual machines do: one the part where no system puts anything by itself, one nearly all. */
#include "ready.h"

#define LIMIT 0x7ffffffff000UL

static void reserve(unsigned long start, unsigned long end)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
	if (start < end && mmap((void *)start, end - start, PROT_NONE, flags, -1, 0) == MAP_FAILED)
		give_up("mmap %lx-%lx", start, end);
}

/* Reserves all that is free but for a gap of 64 MiB and some room for the stack, the heap and libraries. */
static void reserve_nearly_all(void)
{
	static unsigned long borders[1024];
	const unsigned long room = 64UL << 20;
	int count = 0;
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[512];
	borders[count++] = room;
	while (maps && fgets(line, sizeof line, maps)) {
		if (sscanf(line, "%lx-%lx", &borders[count], &borders[count + 1]) != 2 || borders[count] >= LIMIT)
			continue;
		count += 2;
	}
	if (maps)
		fclose(maps);
	borders[count++] = LIMIT;
	for (int k = 0; k + 1 < count; k += 2)
		if (borders[k + 1] > borders[k] + room)
			reserve(borders[k] + (k ? room / 4 : 0), borders[k + 1] - room / 4);
}

int main(void)
{
	begin();
	sigset_t prepared;
	sigemptyset(&prepared);
	sigaddset(&prepared, SIGUSR1);
	sigprocmask(SIG_BLOCK, &prepared, NULL);
	pid_t child = fork();
	if (!child) {
		reserve_nearly_all();
		sigset_t end;
		sigemptyset(&end);
		sigaddset(&end, SIGTERM);
		sigprocmask(SIG_BLOCK, &end, NULL);
		kill(getppid(), SIGUSR1);
		int got;
		sigwait(&end, &got);
		_exit(0);
	}
	reserve(0x100000000000UL, 0x500000000000UL);
	int got, status = -1;
	sigwait(&prepared, &got);
	sleeps_in(child, SYS_rt_sigtimedwait);
	ready_and_wait();
	kill(child, SIGTERM);
	waitpid(child, &status, 0);
	expect(!status, "the child ended with %#x", status);
	return verdict();
}
