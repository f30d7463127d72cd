/* Interval timers and POSIX timers: their ids, what they do on expiry, their periods, and the time they have left. */
#include "ready.h"

#include <sys/resource.h>
#include <sys/time.h>

enum { TIMERS = 6, NONE = -1 };
static const long long FAR = 100000000000LL;

static volatile sig_atomic_t real, virtual, prof, fast, aimed;
static volatile pid_t aimed_at;
static volatile int aimed_value;

static void count_real(int number)
{
	(void)number;
	real++;
}
static void count_virtual(int number)
{
	(void)number;
	virtual++;
}
static void count_prof(int number)
{
	(void)number;
	prof++;
}
static void count_fast(int number)
{
	(void)number;
	fast++;
}
static void count_aimed(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	aimed_at = own_tid();
	aimed_value = info->si_int;
	aimed++;
}

/* The kernel's own timers: glibc's have another id. */
struct kernel_event {
	union sigval value;
	int signal, notify, tid;
	char rest[44];
};

static int create(clockid_t clock, int notify, int number, int value, pid_t tid)
{
	struct kernel_event event = {
		.value.sival_int = value, .signal = number, .notify = notify, .tid = tid};
	int id = NONE;
	if (syscall(SYS_timer_create, clock, &event, &id))
		give_up("timer_create");
	return id;
}

static void set(int id, long long value, long long interval)
{
	struct itimerspec when = {{interval / 1000000000, interval % 1000000000},
				  {value / 1000000000, value % 1000000000}};
	if (syscall(SYS_timer_settime, id, 0, &when, NULL))
		give_up("timer_settime");
}

static long long left(int id, long long *interval)
{
	struct itimerspec when = {{-1, 0}, {-1, 0}};
	expect(!syscall(SYS_timer_gettime, id, &when), "timer %d is gone: %s", id, strerror(errno));
	*interval = when.it_interval.tv_sec * 1000000000LL + when.it_interval.tv_nsec;
	return when.it_value.tv_sec * 1000000000LL + when.it_value.tv_nsec;
}

static volatile bool leave;
static volatile pid_t thread_tid;
static void *thread(void *unused)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, GO);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	thread_tid = own_tid();
	while (!leave)
		usleep(1000);
	return unused;
}

int main(void)
{
	begin();
	/* In a handler the mask is as it always is: at any moment one may run. */
	struct sigaction action = {.sa_flags = SA_RESTART | SA_NODEFER};
	const struct {
		int number;
		void (*handler)(int);
	} handlers[] = {{SIGALRM, count_real},
			{SIGVTALRM, count_virtual},
			{SIGPROF, count_prof},
			{SIGRTMIN, count_fast}};
	for (int k = 0; k < 4; k++) {
		action.sa_handler = handlers[k].handler;
		sigaction(handlers[k].number, &action, NULL);
	}
	action.sa_sigaction = count_aimed;
	action.sa_flags |= SA_SIGINFO;
	sigaction(SIGRTMIN + 1, &action, NULL);
	sigset_t aimed_only;
	sigemptyset(&aimed_only);
	sigaddset(&aimed_only, SIGRTMIN + 1);
	pthread_sigmask(SIG_BLOCK, &aimed_only, NULL);
	pthread_t other;
	pthread_create(&other, NULL, thread, NULL);
	while (!thread_tid)
		sched_yield();

	struct itimerval period = {{0, 10000}, {0, 10000}};
	setitimer(ITIMER_REAL, &period, NULL);
	setitimer(ITIMER_VIRTUAL, &period, NULL);
	setitimer(ITIMER_PROF, &period, NULL);

	int ids[TIMERS], gaps[3];
	ids[0] = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN, 0, 0);
	for (int k = 0; k < 3; k++)
		gaps[k] = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0);
	ids[1] = create(CLOCK_REALTIME, SIGEV_NONE, 0, 0, 0);
	ids[2] = create(CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGRTMIN + 1, 4242, thread_tid);
	ids[3] = create(CLOCK_BOOTTIME, SIGEV_SIGNAL, SIGRTMIN + 2, 0, 0);
	ids[4] = create(CLOCK_PROCESS_CPUTIME_ID, SIGEV_NONE, 0, 0, 0);
	ids[5] = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 3, 0, 0);
	for (int k = 0; k < 3; k++)
		syscall(SYS_timer_delete, gaps[k]);
	long long begun = now_ns(CLOCK_MONOTONIC);
	set(ids[0], 5000000, 5000000);
	set(ids[1], FAR, FAR * 2);
	set(ids[2], 7000000, 7000000);
	set(ids[3], FAR, 0);
	set(ids[4], FAR, 12345678);
	/* ids[5] stays disarmed */
	ready_and_wait();

	for (int k = 0; k < 3; k++)
		expect(syscall(SYS_timer_gettime, gaps[k], &(struct itimerspec){0}) && errno == EINVAL,
		       "timer %d was deleted and is there again", gaps[k]);
	long long interval, rest = left(ids[1], &interval), passed = now_ns(CLOCK_MONOTONIC) - begun;
	expect(rest <= FAR && rest >= FAR - passed - 50000000 && interval == 2 * FAR,
	       "a far timer has %lld ns left after %lld, period %lld", rest, passed, interval);
	rest = left(ids[3], &interval);
	passed = now_ns(CLOCK_MONOTONIC) - begun;
	expect(rest <= FAR && rest >= FAR - passed - 50000000 && !interval,
	       "a far one-shot timer has %lld ns left after %lld, period %lld", rest, passed, interval);
	rest = left(ids[4], &interval);
	expect(rest <= FAR && rest > FAR - 20000000000LL && interval == 12345678,
	       "a processor-time timer has %lld ns left, period %lld", rest, interval);
	rest = left(ids[5], &interval);
	expect(!rest && !interval, "a disarmed timer has %lld ns left", rest);
	rest = left(ids[0], &interval);
	expect(rest > 0 && rest <= 5000000 && interval == 5000000,
	       "a fast timer has %lld ns left, period %lld", rest, interval);

	struct itimerval now;
	const int which[] = {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF};
	for (int k = 0; k < 3; k++) {
		getitimer(which[k], &now);
		expect(now.it_interval.tv_usec == 10000 || now.it_interval.tv_usec == 12000,
		       "interval timer %d has the period %ld us", which[k], (long)now.it_interval.tv_usec);
	}
	int before[5] = {real, virtual, prof, fast, aimed};
	for (long long until = now_ns(CLOCK_MONOTONIC) + 60000000000LL;
	     now_ns(CLOCK_MONOTONIC) < until &&
	     (real < before[0] + 3 || virtual < before[1] + 3 || prof < before[2] + 3 ||
	      fast < before[3] + 3 || aimed < before[4] + 3);)
		continue; /* in user mode: ITIMER_VIRTUAL counts only that */
	expect(real >= before[0] + 3, "ITIMER_REAL is silent");
	expect(virtual >= before[1] + 3, "ITIMER_VIRTUAL is silent");
	expect(prof >= before[2] + 3, "ITIMER_PROF is silent");
	expect(fast >= before[3] + 3, "a periodic POSIX timer is silent");
	expect(aimed >= before[4] + 3 && aimed_at == thread_tid && aimed_value == 4242,
	       "a timer aimed at thread %d fired %d times, at %d, with %d", thread_tid, aimed - before[4],
	       aimed_at, aimed_value);
	int next = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0);
	for (int k = 0; k < TIMERS; k++)
		expect(next != ids[k], "a new timer got the id of an old one, %d", next);
	leave = true;
	pthread_join(other, NULL);
	return verdict();
}
