/* A thread with a current directory of its own. */
#include "ready.h"

static pthread_barrier_t apart, leave;

static void *thread(void *unused)
{
	if (unshare(CLONE_FS) || chdir("/"))
		give_up("unshare");
	pthread_barrier_wait(&apart);
	pthread_barrier_wait(&leave);
	char path[PATH_MAX];
	expect(getcwd(path, sizeof path) && !strcmp(path, "/"), "the thread's directory changed");
	return unused;
}

int main(void)
{
	begin();
	pthread_t made;
	pthread_barrier_init(&apart, NULL, 2);
	pthread_barrier_init(&leave, NULL, 2);
	pthread_create(&made, NULL, thread, NULL);
	pthread_barrier_wait(&apart);
	ready_and_wait();
	pthread_barrier_wait(&leave);
	pthread_join(made, NULL);
	return verdict();
}
