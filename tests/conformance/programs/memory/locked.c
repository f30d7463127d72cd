/* Memory that is locked: at once, when it is touched, what may not be touched, and what will be mapped later. */
#include "ready.h"

#ifndef MCL_ONFAULT
#define MCL_ONFAULT 4
#endif

/* kB locked in all. */
static long locked(void)
{
	FILE *status = fopen("/proc/self/status", "re");
	char line[256];
	long size = -1;
	while (fgets(line, sizeof line, status))
		if (!strncmp(line, "VmLck:", 6))
			size = atol(line + 6);
	fclose(status);
	return size;
}

static char *map(void)
{
	char *at = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		give_up("mmap");
	return at;
}

static bool resident(char *at)
{
	unsigned char there;
	return !mincore(at, PAGE, &there) && there & 1;
}

int main(void)
{
	begin();
	char *now = map(), *touched = map();
	if (mlock(now, 4 * PAGE) || mlock2(touched, 4 * PAGE, MLOCK_ONFAULT))
		unavailable("mlock");
	strcpy(now, "now");
	strcpy(touched, "touched");
	char *barred = map(), *behind = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd_create("short", 0), 0);
	if (mlock(barred, 4 * PAGE) || mprotect(barred, 4 * PAGE, PROT_NONE) || !mlock(behind, 4 * PAGE))
		give_up("what may not be touched, and what is not there");
	if (mlockall(MCL_FUTURE | MCL_ONFAULT))
		give_up("mlockall");
	map();
	long before = locked();
	ready_and_wait();

	expect(locked() == before, "%ld kB are locked, were %ld", locked(), before);
	expect(!strcmp(now, "now") && !strcmp(touched, "touched"), "locked memory changed");
	expect(resident(now + PAGE) && resident(touched) && !resident(touched + PAGE),
	       "memory is not locked as it was");
	char *later = map();
	expect(locked() == before + 16 && !resident(later), "what is mapped now is not locked when it is touched");
	if (munlockall())
		give_up("munlockall");
	map();
	expect(locked() == 0, "%ld kB are still locked", locked());
	return verdict();
}
