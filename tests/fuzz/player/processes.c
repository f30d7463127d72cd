/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Processes and threads: birth, sessions, groups, orphans, stops, ends.
 */
#include "player.h"

#include <linux/sched.h>
#include <pthread.h>
#include <sys/wait.h>

static long born(long actor, long pid)
{
	if (!pid)
		play((int)actor);
	if (pid > 0)
		shared->actors[actor].pid = (int)pid; /* before it says so itself: it may come late */
	return pid < 0 ? -1 : 0;
}

/* the new actor */
static long fork_(const long *a)
{
	return born(a[0], fork());
}

static void *thread(void *actor)
{
	play((int)(intptr_t)actor);
	return NULL;
}

static long thread_(const long *a)
{
	pthread_attr_t attributes;
	pthread_t made;

	shared->actors[a[0]].thread = true;
	shared->actors[a[0]].executed = shared->actors[me].executed;
	shared->actors[a[0]].pid = getpid();
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 1 << 18);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	errno = pthread_create(&made, &attributes, thread, (void *)(intptr_t)a[0]);
	return errno ? -1 : 0;
}

/* The process ends; the first actor gives the turn on when it has. */
static long end(const long *a)
{
	say(" ends\n");
	atomic_store(&shared->ending, getpid());
	tell_all();
	if (a[0] % 2)
		_exit((int)a[1] % 100);
	signal(SIGTERM, SIG_DFL);
	sigset_t none;
	sigemptyset(&none);
	pthread_sigmask(SIG_SETMASK, &none, NULL);
	raise(SIGKILL);
	_exit(93);
}

static long exec(const long *a)
{
	char number[16];

	(void)a;
	snprintf(number, sizeof(number), "%d", me);
	say(" goes\n");
	shared->actors[me].executed = true;
	execl("/proc/self/exe", "player", number, (char *)NULL);
	return -1;
}

/* for anyone that has ended, or has stopped: that one was continued is not kept (docs/objects.md) */
static long wait_(const long *a)
{
	int options = WEXITED | WSTOPPED | WNOHANG | (a[1] % 2 ? WNOWAIT : 0);
	siginfo_t info = {0};

	if (waitid(P_PID, (id_t)shared->actors[a[0] % ACTORS].pid, &info, options))
		return -1;
	say(" code %d status %d", info.si_code, info.si_pid ? info.si_status : 0);
	return 0;
}

static long session(const long *a)
{
	(void)a;
	return setsid() < 0 ? -1 : 0;
}

/* whom, to whose group */
static long group(const long *a)
{
	int whom = shared->actors[a[0] % ACTORS].pid;

	/* Whether a woken child has called execve(2) is not kept, after which it may not be moved (docs/objects.md). */
	for (int i = 0; i < ACTORS; i++)
		if (shared->actors[i].executed && shared->actors[i].pid == whom && whom != getpid())
			return -2;
	return setpgid(whom, shared->actors[a[1] % ACTORS].pid);
}

static long family(const long *a)
{
	(void)a;
	say(" parent %s group %s session %s", whose(getppid()), whose(getpgrp()), whose(getsid(0)));
	return getpid() == shared->actors[me].pid;
}

static char state_of(int pid)
{
	char path[64], text[512], *at;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t size = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
	if (fd >= 0)
		close(fd);
	text[size > 0 ? size : 0] = 0;
	at = strrchr(text, ')');
	return at ? at[2] : '-';
}

static bool runs(int pid, int tid)
{
	char path[64], text[16] = "";
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", pid, tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		if (read(fd, text, sizeof(text) - 1) < 0)
			text[0] = 0;
		close(fd);
	}
	return !strncmp(text, "running", 7);
}

/* Wait until a process has stopped, or has gone on, and all of its threads sleep: its parent is told of it on the way. */
static void settle(int pid, bool stopped)
{
	struct timespec moment = {.tv_nsec = 200000};

	for (int i = 0; i < 2000 && (state_of(pid) == 'T') != stopped; i++)
		nanosleep(&moment, NULL);
	for (int i = 0; i < ACTORS; i++)
		for (int k = 0; k < 2000 && shared->actors[i].pid == pid && shared->actors[i].tid; k++) {
			if (!runs(pid, shared->actors[i].tid))
				break;
			nanosleep(&moment, NULL);
		}
}

/* a process, and what it is sent: it stops, or goes on */
static long stop(const long *a)
{
	static const int how[] = {SIGSTOP, SIGTSTP, SIGTTIN};

	atomic_store(&shared->stopped, 1);
	int pid = shared->actors[a[0] % ACTORS].pid;

	if (kill(pid, how[a[1] % 3]))
		return -1;
	settle(pid, true);
	say(" %c", state_of(pid));
	return 0;
}

static long go_on(const long *a)
{
	int pid = shared->actors[a[0] % ACTORS].pid;

	if (kill(pid, SIGCONT))
		return -1;
	settle(pid, false);
	return 0;
}

static long alive(const long *a)
{
	long bits = 0;

	(void)a;
	for (int i = 0; i < ACTORS; i++) {
		char state = shared->actors[i].pid ? state_of(shared->actors[i].pid) : '-';

		bits = bits * 3 + (state == 'Z' ? 2 : state != '-');
	}
	return bits;
}

const struct verb process_verbs[] = {{"fork", fork_}, {"thread", thread_},  {"end", end},     {"exec", exec},
				     {"wait", wait_}, {"session", session}, {"group", group}, {"family", family},
				     {"stop", stop},  {"go_on", go_on},	    {"alive", alive}, {0}};
