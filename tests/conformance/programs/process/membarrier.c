/* A process that has registered for memory barriers: without the registration its barriers would fail (EPERM). */
#include "ready.h"

enum { PRIVATE_EXPEDITED = 8, REGISTER_PRIVATE_EXPEDITED = 16, SYNC_CORE = 32, REGISTER_SYNC_CORE = 64 };

int main(void)
{
	begin();
	if (syscall(SYS_membarrier, REGISTER_PRIVATE_EXPEDITED, 0, 0) ||
	    syscall(SYS_membarrier, REGISTER_SYNC_CORE, 0, 0))
		unavailable("membarrier");
	ready_and_wait();
	bool barrier = !syscall(SYS_membarrier, PRIVATE_EXPEDITED, 0, 0);
	expect(barrier, "a barrier failed: %s", strerror(errno));
	barrier = !syscall(SYS_membarrier, SYNC_CORE, 0, 0);
	expect(barrier, "a core barrier failed: %s", strerror(errno));
	return verdict();
}
