/* A sealed mapping (mseal, Linux 6.10). */
#include "ready.h"

#ifndef SYS_mseal
#define SYS_mseal 462
#endif

int main(void)
{
	begin();
	void *at = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (syscall(SYS_mseal, at, PAGE, 0))
		unavailable("mseal");
	ready_and_wait();
	expect(munmap(at, PAGE) == -1 && errno == EPERM, "the seal is gone");
	return verdict();
}
