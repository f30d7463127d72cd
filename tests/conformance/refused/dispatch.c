/* Syscall user dispatch, as emulators use it: calls outside of a range become signals. */
#include "ready.h"

#include <sys/prctl.h>

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define PR_SYS_DISPATCH_ON 1
#endif

static char selector; /* 0: let everything pass */

int main(void)
{
	begin();
	if (prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 0, 0, &selector))
		unavailable("user dispatch");
	ready_and_wait();
	expect(!selector, "the selector changed");
	return verdict();
}
