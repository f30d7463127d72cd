/* A process that denies itself memory that is writable and executable (PR_SET_MDWE, Linux 6.3): so it does us. */
#include "../c/ready.h"

#include <sys/prctl.h>

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#endif

int main(void)
{
	begin();
	if (prctl(PR_SET_MDWE, 1, 0, 0, 0))
		unavailable("PR_SET_MDWE");
	ready_and_wait();
	return verdict();
}
