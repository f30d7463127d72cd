/* A guard region in shared memory (Linux 6.15), which can only be read through its mappings. */
#include "ready.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

int main(void)
{
	begin();
	char *at = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	strcpy(at, "before");
	if (madvise(at + PAGE, PAGE, MADV_GUARD_INSTALL))
		unavailable("MADV_GUARD_INSTALL in shared memory");
	ready_and_wait();
	expect(!strcmp(at, "before"), "the memory changed");
	return verdict();
}
