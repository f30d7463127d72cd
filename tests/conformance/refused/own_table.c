/* A thread with a descriptor table of its own. */
#include "ready.h"

static volatile int ready_now, leave;

static void *apart(void *unused)
{
	if (unshare(CLONE_FILES))
		give_up("unshare");
	int fd = open("/dev/null", O_RDONLY);
	dup2(fd, 99);
	ready_now = 1;
	while (!leave)
		usleep(1000);
	expect(fcntl(99, F_GETFD) >= 0, "the thread's own descriptor is gone");
	return unused;
}

int main(void)
{
	begin();
	pthread_t thread;
	pthread_create(&thread, NULL, apart, NULL);
	while (!ready_now)
		sched_yield();
	ready_and_wait();
	leave = 1;
	pthread_join(thread, NULL);
	expect(fcntl(99, F_GETFD) == -1, "the thread's descriptor is in the process's table");
	return verdict();
}
