/* Signals that wait: standard ones, queued real-time ones with their values and in their order, to the process
 * and to one thread, the processor's own, those that came when the queue was full; each with who sent it and how. */
#include "ready.h"

#include <sys/resource.h>

enum { QUEUED = 40, MAPERR = 1, BRKPT = 1 };
static const int own[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS};

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

/* As the processor does it: to the thread itself, in the kernel's name. */
static void fault(int number, int code)
{
	siginfo_t info = {.si_signo = number, .si_code = code, .si_addr = &rt};
	if (syscall(SYS_rt_tgsigqueueinfo, getpid(), own_tid(), number, &info))
		give_up("rt_tgsigqueueinfo");
}

static void check_fault(int number, int code)
{
	siginfo_t info = take(number);
	expect(info.si_signo == number && info.si_code == code && info.si_addr == &rt,
	       "a fault: signal %d, code %d, at %p; not %d, %d", info.si_signo, info.si_code, info.si_addr, number,
	       code);
}

static void *thread(void *unused)
{
	thread_tid = own_tid();
	for (unsigned k = 0; k < sizeof own / sizeof *own; k++)
		fault(own[k], MAPERR);
	fault(SIGTRAP, BRKPT);
	pthread_barrier_wait(&done);
	pthread_barrier_wait(&done);
	check(SIGTERM, SI_TKILL, getpid(), 0, "SIGTERM to the thread");
	for (int k = 0; k < 5; k++)
		check(rt + 1, SI_QUEUE, getpid(), 500 + k, "real-time to the thread");
	expect(!take(rt + 1).si_signo, "one real-time signal to the thread too many");
	expect(!take(SIGTERM).si_signo, "one SIGTERM too many");
	for (unsigned k = 0; k < sizeof own / sizeof *own; k++)
		check_fault(own[k], MAPERR);
	check_fault(SIGTRAP, BRKPT);
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
	kill(self, SIGTRAP);
	syscall(SYS_tgkill, self, self, SIGTRAP);
	syscall(SYS_tgkill, self, self, SIGSEGV);
	kill(self, SIGBUS);
	syscall(SYS_tgkill, self, thread_tid, SIGTERM);
	for (int k = 0; k < 5; k++)
		pthread_sigqueue(other, rt + 1, (union sigval){.sival_int = 500 + k});
	struct rlimit before, full = {0, 0};
	getrlimit(RLIMIT_SIGPENDING, &before);
	full.rlim_max = before.rlim_max;
	setrlimit(RLIMIT_SIGPENDING, &full);
	sigqueue(self, SIGXCPU, (union sigval){.sival_int = 9});
	setrlimit(RLIMIT_SIGPENDING, &before);
	ready_and_wait();

	check(SIGTRAP, SI_TKILL, self, 0, "SIGTRAP to the first thread");
	check(SIGTRAP, SI_USER, self, 0, "SIGTRAP to the process");
	check(SIGSEGV, SI_TKILL, self, 0, "SIGSEGV to the first thread");
	check(SIGBUS, SI_USER, self, 0, "SIGBUS to the process");
	siginfo_t nobodys = take(SIGXCPU);
	expect(nobodys.si_signo == SIGXCPU && !nobodys.si_pid, "with a full queue: signal %d, from %d",
	       nobodys.si_signo, nobodys.si_pid);
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
