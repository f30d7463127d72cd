/* Programs that have changed their vDSO: moved its code away from its data, written into its code (as tracers and
 * recorders do), or made its data unreadable. */
#include "children.h"

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

static void (*const changes[])(void) = {move, write_into, protect};

static void make(int number)
{
	find();
	changes[number]();
}

static bool holds(void)
{
	return true; /* nothing was done to it */
}

int main(void)
{
	return judged_in_children(sizeof changes / sizeof *changes, make, holds);
}
