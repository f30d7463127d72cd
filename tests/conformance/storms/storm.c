/* Processes that fork, vfork, exec, make threads and end all the time, each in a way of its own, each counting its
 * rounds in shared memory. Whatever the moment of a freeze: none is lost, none fails, none stands still afterwards.
 *
 * The tree is never at rest; test_storm.py takes the checkpoints. */
#include "ready.h"

#include <spawn.h>
#include <sys/prctl.h>

enum { FORKS, VFORKS, SPAWNS, THREADS, EXECS, ORPHANS, KINDS };
static const char *const names[KINDS] = {"forks", "vforks", "spawns", "threads", "execs", "orphans"};
static volatile long *rounds; /* of each kind; then of each kind a word of failure; then the word to end */
static volatile long *failures, *stop;
extern char **environ;

static void fail(int kind, int status)
{
	if (!failures[kind])
		failures[kind] = status ? status : -1;
}

static void reap(int kind, pid_t child)
{
	int status = 0;
	if (child < 0 || waitpid(child, &status, 0) != child || status)
		fail(kind, child < 0 ? errno : status);
}

static void *thread(void *argument)
{
	return argument;
}

static void forks(void)
{
	pid_t children[3];
	for (int k = 0; k < 3; k++)
		if (!(children[k] = fork()))
			_exit(0);
	for (int k = 0; k < 3; k++)
		reap(FORKS, children[k]);
}

static void vforks(void)
{
	char *argv[] = {"true", NULL};
	pid_t child = vfork();
	if (!child) {
		execv("/bin/true", argv);
		_exit(errno);
	}
	reap(VFORKS, child);
}

static void spawns(void)
{
	char *argv[] = {"true", NULL};
	pid_t child;
	int error = posix_spawn(&child, "/bin/true", NULL, NULL, argv, environ);
	reap(SPAWNS, error ? -1 : child);
}

static void threads(void)
{
	pthread_t made[4];
	void *result;
	for (intptr_t k = 0; k < 4; k++)
		if (pthread_create(&made[k], NULL, thread, (void *)(k + 1)))
			fail(THREADS, errno);
	for (intptr_t k = 0; k < 4; k++)
		if (pthread_join(made[k], &result) || result != (void *)(k + 1))
			fail(THREADS, 1);
}

/* A child that becomes another program while threads of it run. */
static void execs(void)
{
	pid_t child = fork();
	if (!child) {
		pthread_t made;
		char *argv[] = {"true", NULL};
		pthread_create(&made, NULL, thread, NULL);
		execv("/bin/true", argv);
		_exit(errno);
	}
	reap(EXECS, child);
}

/* A grandchild whose parent is gone, which falls to us. */
static void orphans(void)
{
	pid_t child = fork();
	if (!child) {
		fork();
		_exit(0);
	}
	int status;
	while (waitpid(-1, &status, 0) > 0)
		if (status)
			fail(ORPHANS, status);
}

static void (*const ways[KINDS])(void) = {forks, vforks, spawns, threads, execs, orphans};

int main(void)
{
	begin();
	rounds = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	failures = rounds + KINDS;
	stop = failures + KINDS;
	for (int kind = 0; kind < KINDS; kind++)
		if (!fork()) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			prctl(PR_SET_CHILD_SUBREAPER, kind == ORPHANS);
			while (!*stop) {
				ways[kind]();
				rounds[kind]++;
			}
			_exit(0);
		}
	ready_and_wait();

	for (int kind = 0; kind < KINDS; kind++) {
		long before = rounds[kind];
		for (int k = 0; k < 6000 && rounds[kind] < before + 3; k++)
			usleep(10000);
		expect(rounds[kind] >= before + 3, "the %s stand still", names[kind]);
		expect(!failures[kind], "the %s failed: %#lx", names[kind], failures[kind]);
	}
	*stop = 1;
	for (int kind = 0; kind < KINDS; kind++) {
		int status;
		expect(wait(&status) > 0 && !status, "a child ended with %#x", status);
	}
	return verdict();
}
