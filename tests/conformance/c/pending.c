/* Signals that wait: standard ones, queued real-time ones with their values and in their order, to the process
 * and to one thread; each with who sent it and how. */
#include "ready.h"

enum { QUEUED = 40 };

static int rt;
static volatile pid_t thread_tid;
static pthread_barrier_t done;

static siginfo_t take(int number)
{
	sigset_t set;
	siginfo_t info;
	struct timespec none = {0, 0};
	sigemptyset(&set);
	sigaddset(&set, number);
	memset(&info, 0, sizeof info);
	long got; /* glibc's sigtimedwait would turn SI_TKILL into SI_USER */
	while ((got = syscall(SYS_rt_sigtimedwait, &set, &info, &none, 8)) < 0 && errno == EINTR)
		continue;
	if (got < 0)
		info.si_signo = 0;
	return info;
}

static void check(int number, int code, pid_t from, int value, const char *what)
{
	siginfo_t info = take(number);
	expect(info.si_signo == number, "%s: signal %d is not pending any more", what, number);
	if (info.si_signo != number)
		return;
	expect(info.si_code == code, "%s: si_code is %d, not %d", what, info.si_code, code);
	expect(info.si_pid == from, "%s: si_pid is %d, not %d", what, info.si_pid, from);
	expect(info.si_uid == getuid(), "%s: si_uid is %d", what, (int)info.si_uid);
	if (code == SI_QUEUE)
		expect(info.si_int == value, "%s: value is %d, not %d", what, info.si_int, value);
}

static void *thread(void *unused)
{
	thread_tid = own_tid();
	pthread_barrier_wait(&done);
	pthread_barrier_wait(&done);
	check(SIGTERM, SI_TKILL, getpid(), 0, "SIGTERM to the thread");
	for (int k = 0; k < 5; k++)
		check(rt + 1, SI_QUEUE, getpid(), 500 + k, "real-time to the thread");
	expect(!take(rt + 1).si_signo, "one real-time signal to the thread too many");
	expect(!take(SIGTERM).si_signo, "one SIGTERM too many");
	return unused;
}

int main(void)
{
	begin();
	rt = SIGRTMIN + 3;
	sigset_t all;
	sigfillset(&all);
	sigdelset(&all, SIGCONT); /* the harness may continue us */
	sigprocmask(SIG_BLOCK, &all, NULL);
	pthread_barrier_init(&done, NULL, 2);
	pthread_t other;
	pthread_create(&other, NULL, thread, NULL);
	pthread_barrier_wait(&done);

	pid_t self = getpid();
	kill(self, SIGHUP);
	pid_t child = fork();
	if (!child) {
		kill(self, SIGINT);
		_exit(0);
	}
	waitpid(child, NULL, 0);
	for (int k = 0; k < QUEUED; k++)
		sigqueue(self, rt, (union sigval){.sival_int = 1000 + k});
	sigqueue(self, rt + 2, (union sigval){.sival_int = 7});
	kill(self, rt + 2);
	kill(self, SIGRTMAX);
	syscall(SYS_tgkill, self, thread_tid, SIGTERM);
	for (int k = 0; k < 5; k++)
		pthread_sigqueue(other, rt + 1, (union sigval){.sival_int = 500 + k});
	ready_and_wait();

	check(SIGHUP, SI_USER, self, 0, "SIGHUP to the process");
	check(SIGINT, SI_USER, child, 0, "SIGINT from a child that is gone");
	siginfo_t ended = take(SIGCHLD);
	expect(ended.si_signo == SIGCHLD && ended.si_code == CLD_EXITED && ended.si_pid == child,
	       "SIGCHLD: signal %d, code %d, from %d", ended.si_signo, ended.si_code, ended.si_pid);
	for (int k = 0; k < QUEUED; k++)
		check(rt, SI_QUEUE, self, 1000 + k, "real-time to the process");
	check(rt + 2, SI_QUEUE, self, 7, "a queued real-time signal");
	check(rt + 2, SI_USER, self, 0, "a real-time signal by kill");
	check(SIGRTMAX, SI_USER, self, 0, "signal 64");
	pthread_barrier_wait(&done);
	pthread_join(other, NULL);
	sigset_t left;
	sigpending(&left);
	for (int number = 1; number <= 64; number++)
		expect(!sigismember(&left, number), "signal %d is pending and was not sent", number);
	return verdict();
}
