/* Frozen inside a signal handler on an alternate stack, which itself has interrupted another one: both return to where
 * they came from. Real-time signals are queued with their values, to the process and to a thread; timers of every clock
 * have run out and their signals are pending, or, of those that count work, are under way. */
#include "ready.h"

#include <sys/time.h>

enum { OUTER = 34, INNER = 35, QUEUED = 40, TICK = 42, MANY = 20 };

static char alternate[64 << 10];
static volatile int depth, returned, ticks[16], alarms;
static const clockid_t clocks[] = {CLOCK_REALTIME,	     CLOCK_MONOTONIC,	      CLOCK_BOOTTIME,
				   CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID, CLOCK_TAI};
enum { CLOCKS = sizeof clocks / sizeof *clocks };

static void inner(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	volatile double sum = 0.1; /* in an xsave area of the interrupted handler */
	expect((char *)&sum > alternate && (char *)&sum < alternate + sizeof alternate, "not on its stack");
	expect(info->si_value.sival_int == 2, "the inner handler's value changed");
	depth = 2;
	ready_and_wait();
	expect(sum == 0.1, "a local variable changed");
	depth = 1;
}

static void outer(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	volatile double sum = 0.25;
	depth = 1;
	sigqueue(getpid(), INNER, (union sigval){.sival_int = 2});
	expect(depth == 1 && sum == 0.25 && info->si_value.sival_int == 1, "the outer handler changed");
	returned++;
}

static void tick(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	ticks[info->si_value.sival_int]++;
}

static void alarmed(int number)
{
	(void)number;
	alarms++;
}

static void catch(int number, void (*handler)(int, siginfo_t *, void *), int flags)
{
	struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
	if (sigaction(number, &action, NULL))
		give_up("sigaction");
}

static void take(const sigset_t *which, int base, const char *where)
{
	siginfo_t info;
	for (int k = 0; k < MANY; k++) {
		int number = sigtimedwait(which, &info, &(struct timespec){0});
		expect(number == QUEUED && info.si_value.sival_int == base + k && info.si_code == SI_QUEUE &&
			       info.si_pid == getpid() && info.si_uid == getuid(),
		       "signal %d of the %s: %d with %d", k, where, number, info.si_value.sival_int);
	}
}

int main(void)
{
	begin();
	sigset_t queued, ticking;
	sigemptyset(&queued);
	sigaddset(&queued, QUEUED);
	sigprocmask(SIG_BLOCK, &queued, NULL);
	sigemptyset(&ticking);
	sigaddset(&ticking, TICK);
	sigaddset(&ticking, SIGALRM);
	sigprocmask(SIG_BLOCK, &ticking, NULL);
	for (int k = 0; k < MANY; k++) { /* the thread's come first */
		siginfo_t info = {.si_code = SI_QUEUE};
		info.si_pid = getpid(), info.si_uid = getuid(), info.si_value.sival_int = k;
		if (syscall(SYS_rt_tgsigqueueinfo, getpid(), own_tid(), QUEUED, &info) ||
		    sigqueue(getpid(), QUEUED, (union sigval){.sival_int = 100 + k}))
			give_up("sigqueue");
	}
	stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
	if (sigaltstack(&stack, NULL))
		give_up("sigaltstack");
	catch(OUTER, outer, SA_ONSTACK);
	catch(INNER, inner, SA_ONSTACK);
	catch(TICK, tick, 0);
	signal(SIGALRM, alarmed);
	for (int k = 0; k < CLOCKS; k++) {
		struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = TICK};
		struct itimerspec soon = {.it_value = {.tv_nsec = 20000000}};
		timer_t timer;
		event.sigev_value.sival_int = k;
		if (timer_create(clocks[k], &event, &timer) || timer_settime(timer, 0, &soon, NULL))
			give_up("timer_create of clock %d", clocks[k]);
	}
	setitimer(ITIMER_REAL, &(struct itimerval){.it_value = {.tv_usec = 20000}}, NULL);

	usleep(100000);
	sigqueue(getpid(), OUTER, (union sigval){.sival_int = 1});
	expect(returned == 1 && depth == 1, "the handlers did not return");
	take(&queued, 0, "thread");
	take(&queued, 100, "process");
	sigprocmask(SIG_UNBLOCK, &ticking, NULL);
	long long end = now_ns(CLOCK_MONOTONIC) + 60000000000LL;
	for (int all = 0; !all && now_ns(CLOCK_MONOTONIC) < end;) {
		all = alarms;
		for (int k = 0; k < CLOCKS; k++)
			all = all && ticks[k];
	}
	for (int k = 0; k < CLOCKS; k++)
		expect(ticks[k] == 1, "the timer of clock %d ran out %d times", clocks[k], ticks[k]);
	expect(alarms == 1, "the interval timer ran out %d times", alarms);
	return verdict();
}
