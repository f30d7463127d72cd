/* Namespaces that the next children are to live in: one that nobody is in yet, and one with another clock. */
#include "ready.h"

int main(void)
{
	begin();
	if (unshare(CLONE_NEWUSER | CLONE_NEWPID) || unshare(CLONE_NEWTIME))
		unavailable("unshare");
	ready_and_wait();
	return verdict();
}
