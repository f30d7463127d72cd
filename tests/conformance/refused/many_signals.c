/* More queued signals than can be read while the program stands still. */
#include "ready.h"

#include <signal.h>

#define MANY 10001

int main(void)
{
	union sigval value = {0};
	siginfo_t info;
	sigset_t mine;

	begin();
	sigemptyset(&mine);
	sigaddset(&mine, SIGRTMIN);
	sigprocmask(SIG_BLOCK, &mine, NULL);
	for (int i = 0; i < MANY; i++) {
		value.sival_int = i;
		if (sigqueue(getpid(), SIGRTMIN, value))
			unavailable("room for so many signals");
	}
	ready_and_wait();
	for (int i = 0; i < MANY; i++) {
		sigwaitinfo(&mine, &info);
		expect(info.si_int == i, "signal %d came where %d was due", info.si_int, i);
	}
	return verdict();
}
