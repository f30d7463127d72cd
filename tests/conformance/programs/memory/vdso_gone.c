/* Programs that have unmapped their vDSO, as valgrind and some sandboxes do: all of it, all but a page of its data, its
 * data alone. And one that has moved it. */
#include "ready.h"

enum { PARTS = 3 };

static const char *const names[PARTS] = {"[vvar]", "[vvar_vclock]", "[vdso]"};

struct part {
	char *start, *end;
};

static void find(struct part *parts)
{
	memset(parts, 0, PARTS * sizeof *parts);
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[512];
	while (maps && fgets(line, sizeof line, maps))
		for (int k = 0; k < PARTS; k++)
			if (strstr(line, names[k]) && sscanf(line, "%p-%p", (void **)&parts[k].start, (void **)&parts[k].end) != 2)
				give_up("maps");
	if (maps)
		fclose(maps);
}

static void take_away(const struct part *part)
{
	if (part->start && munmap(part->start, part->end - part->start))
		give_up("munmap");
}

static void unmap_all(const struct part *parts)
{
	for (int k = 0; k < PARTS; k++)
		take_away(&parts[k]);
}

static void unmap_most(const struct part *parts)
{
	take_away(&parts[0]);
	take_away(&parts[2]);
}

static void unmap_data(const struct part *parts)
{
	take_away(&parts[0]);
	take_away(&parts[1]);
}

static void move(const struct part *parts)
{
	char *base = parts[0].start, *to = (char *)0x600000000000;
	for (int k = 0; k < PARTS; k++) {
		size_t size = parts[k].end - parts[k].start;
		if (size && mremap(parts[k].start, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to + (parts[k].start - base)) ==
				    MAP_FAILED)
			give_up("mremap");
	}
}

static pid_t child(void (*change)(const struct part *))
{
	sigset_t end;
	sigemptyset(&end);
	sigaddset(&end, SIGTERM);
	sigprocmask(SIG_BLOCK, &end, NULL);
	pid_t pid = fork();
	if (pid)
		return pid;
	struct part before[PARTS], parts[PARTS];
	find(parts);
	change(parts);
	find(before);
	kill(getppid(), SIGUSR1);
	int got;
	sigwait(&end, &got);
	find(parts);
	_exit(memcmp(before, parts, sizeof parts) != 0);
}

int main(void)
{
	begin();
	void (*const changes[])(const struct part *) = {unmap_all, unmap_most, unmap_data, move};
	enum { CHILDREN = sizeof changes / sizeof *changes };
	pid_t pids[CHILDREN];
	sigset_t prepared;
	sigemptyset(&prepared);
	sigaddset(&prepared, SIGUSR1);
	sigprocmask(SIG_BLOCK, &prepared, NULL);
	for (int k = 0; k < CHILDREN; k++) {
		pids[k] = child(changes[k]);
		int got;
		sigwait(&prepared, &got);
		sleeps_in(pids[k], SYS_rt_sigtimedwait);
	}
	ready_and_wait();
	for (int k = 0; k < CHILDREN; k++) {
		int status = -1;
		kill(pids[k], SIGTERM);
		waitpid(pids[k], &status, 0);
		expect(!status, "child %d ended with %#x: its vDSO is not what it was", k, status);
	}
	return verdict();
}
