/* Chains without end: each process or thread makes the next and ends, so that it is gone before one can look at it.
 * Beside them children that are born traced if who makes them is traced (CLONE_PTRACE), and some that are born beside
 * who makes them, not below (CLONE_PARENT).
 *
 * What is left behind falls to one that waits for it; with CHAINS_FALL to whoever waits for the tree's orphans. All of
 * them have an end of a pipe, and the root the other. Each chain counts its links in shared
 * memory. Whatever the moment of a freeze: none is lost, none fails, none stands still afterwards. */
#include "ready.h"

#include <spawn.h>
#include <sys/prctl.h>

enum { UNREAPED = 1000 }; /* zombies of a chain, while who waits for them stands still: the host's PIDs must suffice */
enum { FORKS, SESSIONS, SPAWNS, VFORKS, THREADS, TRACED, BESIDE, KINDS };
static const char *const names[KINDS] = {"forks", "sessions", "spawns", "vforks", "threads", "traced", "beside"};

struct shared {
	volatile long links[KINDS];
	volatile long reaped[KINDS];
	volatile long failures[KINDS];
	volatile long stop;
};
static struct shared *shared;
static char kind_word[12], memory_word[12];
static char *link_argv[] = {"chains", kind_word, memory_word, NULL};
extern char **environ;

static void fail(int kind, long what)
{
	if (!shared->failures[kind])
		shared->failures[kind] = what ? what : -1;
}

/* A link comes to be, when not too many before it are left behind. */
static void link_up(int kind)
{
	while (!getenv("CHAINS_FALL") && !shared->stop && shared->links[kind] - shared->reaped[kind] > UNREAPED)
		usleep(1000);
	shared->links[kind]++;
}

/* Whether there was no PID left for a moment, as others of this host take them, too: then it is to be tried again. */
static int none_left(int error)
{
	if (error == EAGAIN)
		usleep(1000);
	return error == EAGAIN;
}

/* A link that is a program of its own makes the next one. */
static void spawn(int kind)
{
	if (kind == VFORKS) {
		pid_t child;
		while ((child = vfork()) < 0 && none_left(errno))
			;
		if (!child) {
			execv("/proc/self/exe", link_argv);
			_exit(errno);
		}
		if (child < 0)
			fail(kind, errno);
		return;
	}
	pid_t child;
	int error;
	while (none_left(error = posix_spawn(&child, "/proc/self/exe", NULL, NULL, link_argv, environ)))
		;
	if (error)
		fail(kind, error);
}

static void fork_on(int kind)
{
	for (;;) {
		link_up(kind);
		if (kind == SESSIONS && setsid() < 0)
			fail(kind, errno);
		pid_t child;
		while ((child = shared->stop ? -1 : fork()) < 0 && !shared->stop && none_left(errno))
			;
		if (child < 0 && !shared->stop)
			fail(kind, errno);
		if (child)
			_exit(0);
	}
}

static void *thread_on(void *argument)
{
	pthread_t next;
	pthread_attr_t detached;
	int error;

	shared->links[THREADS]++;
	pthread_attr_init(&detached);
	pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&detached, 64 << 10);
	if (shared->stop)
		_exit(0);
	/* The one before may still have its stack. */
	while ((error = pthread_create(&next, &detached, thread_on, argument)) == EAGAIN)
		usleep(100);
	if (error)
		fail(THREADS, error);
	return NULL;
}

static void reap(int kind, pid_t child)
{
	int status = 0;
	if (child < 0 || waitpid(child, &status, __WALL) != child || status)
		fail(kind, child < 0 ? errno : status);
}

static void traced(void)
{
	while (!shared->stop) {
		shared->links[TRACED]++;
		pid_t child;
		while ((child = (pid_t)syscall(SYS_clone, CLONE_PTRACE | SIGCHLD, 0, 0, 0, 0)) < 0 && none_left(errno))
			;
		if (!child)
			_exit(0);
		reap(TRACED, child);
	}
	_exit(0);
}

/* Its parent waits for what it makes. */
static void beside(void)
{
	while (!shared->stop) {
		long before = shared->links[BESIDE];
		pid_t child;
		while ((child = (pid_t)syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0)) < 0 && none_left(errno))
			;
		if (!child) {
			shared->links[BESIDE]++;
			_exit(0);
		}
		if (child < 0)
			fail(BESIDE, errno);
		while (child > 0 && shared->links[BESIDE] == before)
			sched_yield();
	}
	_exit(0);
}

static void begin_chain(int kind)
{
	pthread_t first;

	snprintf(kind_word, sizeof kind_word, "%d", kind);
	if (kind == FORKS || kind == SESSIONS)
		fork_on(kind);
	if (kind == TRACED)
		traced();
	if (kind == BESIDE)
		beside();
	if (kind == THREADS) {
		if (pthread_create(&first, NULL, thread_on, NULL))
			fail(kind, errno);
		for (;;)
			pause();
	}
	spawn(kind);
	_exit(0);
}

/* Waits for the links of one chain, until there are none any more. */
static void reap_all(int kind)
{
	int status;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_CHILD_SUBREAPER, !getenv("CHAINS_FALL"));
	if (!fork())
		begin_chain(kind);
	while (wait(&status) > 0) {
		shared->reaped[kind]++;
		if (status)
			fail(kind, status);
	}
	_exit(0);
}

int main(int argc, char *argv[])
{
	int memory = argc == 3 ? atoi(argv[2]) : memfd_create("links", 0);
	if (argc != 3 && (memory < 0 || ftruncate(memory, PAGE)))
		give_up("memfd_create");
	shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	snprintf(memory_word, sizeof memory_word, "%d", memory);
	if (argc == 3) {
		int kind = atoi(argv[1]);
		snprintf(kind_word, sizeof kind_word, "%d", kind);
		link_up(kind);
		if (!shared->stop)
			spawn(kind);
		_exit(0);
	}
	begin();
	int ends[2];
	if (pipe(ends))
		give_up("pipe");
	for (int kind = 0; kind < KINDS; kind++)
		if (!fork()) {
			close(ends[0]);
			reap_all(kind);
		}
	close(ends[1]);
	if (getenv("CHAINS_FALL")) {
		ready();
		while (access(in_dir("go"), F_OK))
			usleep(10000);
	} else {
		ready_and_wait();
	}

	for (int kind = 0; kind < KINDS; kind++) {
		long before = shared->links[kind];
		for (int k = 0; k < 3000 && !shared->failures[kind] && shared->links[kind] < before + 3; k++)
			usleep(10000);
		expect(shared->links[kind] >= before + 3, "the %s stand still after %ld", names[kind], before);
		expect(!shared->failures[kind], "the %s failed: %#lx", names[kind], shared->failures[kind]);
	}
	shared->stop = 1;
	for (int kind = 0; kind < KINDS; kind++) {
		int status;
		expect(wait(&status) > 0 && !status, "a child ended with %#x", status);
	}
	return verdict();
}
