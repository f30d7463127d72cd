/* A guard region (MADV_GUARD_INSTALL, Linux 6.13): without it an overflow would be silent. */
#include "../c/ready.h"

#include <setjmp.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static sigjmp_buf back;
static void fault(int number)
{
	siglongjmp(back, number);
}

int main(void)
{
	begin();
	volatile char *at = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	at[0] = at[3 * PAGE] = 1;
	if (madvise((void *)(at + PAGE), PAGE, MADV_GUARD_INSTALL))
		unavailable("MADV_GUARD_INSTALL");
	ready_and_wait();
	signal(SIGSEGV, fault);
	if (!sigsetjmp(back, 1)) {
		at[PAGE] = 1;
		expect(false, "the guard is gone");
	}
	return verdict();
}
