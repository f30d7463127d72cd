/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Signals, timers, and what a process has of its own: limits, names, masks.
 */
#include "player.h"

#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>

static const int numbers[] = {SIGUSR1, SIGUSR2, SIGHUP, SIGTERM, SIGCHLD, SIGURG, SIGWINCH, SIGALRM};

static int number(long index)
{
	return index % 12 < 8 ? numbers[index % 12] : SIGRTMIN + (int)(index % 12) - 8;
}

static void on_signal(int caught)
{
	atomic_fetch_add(&shared->caught[caught], 1);
}

static void on_info(int caught, siginfo_t *info, void *context)
{
	(void)info;
	(void)context;
	atomic_fetch_add(&shared->caught[caught], 100);
}

/* signal, what: default, ignored, caught, caught with words, flags */
static long action(const long *a)
{
	static const int flags[] = {0, SA_RESTART, SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_NOCLDSTOP};
	struct sigaction what = {.sa_handler = on_signal, .sa_flags = flags[a[2] % 6]};

	if (a[1] % 4 == 0)
		what.sa_handler = number(a[0]) == SIGCHLD || number(a[0]) == SIGURG ? SIG_DFL : SIG_IGN;
	if (a[1] % 4 == 1)
		what.sa_handler = SIG_IGN;
	if (number(a[0]) == SIGCHLD && what.sa_handler == SIG_IGN)
		what.sa_handler = SIG_DFL; /* who is waited for must stay */
	if (a[1] % 4 == 2) {
		what.sa_sigaction = on_info;
		what.sa_flags |= SA_SIGINFO;
	}
	sigaddset(&what.sa_mask, number(a[3]));
	return sigaction(number(a[0]), &what, NULL);
}

/* Only what somebody catches, ignores or holds back: the default action would end the play. */
static bool harmless(int signal)
{
	struct sigaction what;

	sigaction(signal, NULL, &what);
	return what.sa_handler != SIG_DFL || signal == SIGURG || signal == SIGWINCH || signal == SIGCHLD;
}

/* Whether it waits, and to let it come would end the play: also when several wait and the first takes its handler away. */
static bool lurks(int signal)
{
	struct sigaction what;
	sigset_t set;

	sigpending(&set);
	sigaction(signal, NULL, &what);
	return sigismember(&set, signal) && (!harmless(signal) || what.sa_flags & (int)SA_RESETHAND);
}

static long mask(const long *a)
{
	static const int how[] = {SIG_BLOCK, SIG_UNBLOCK};
	sigset_t set;

	if (a[2] % 2 && (lurks(number(a[0])) || lurks(number(a[1]))))
		return -2;
	sigemptyset(&set);
	sigaddset(&set, number(a[0]));
	sigaddset(&set, number(a[1]));
	return pthread_sigmask(how[a[2] % 2], &set, NULL);
}

/* signal, to the thread or the process, value: to oneself */
static long send_(const long *a)
{
	int signal = number(a[0]);
	sigset_t before;

	pthread_sigmask(SIG_SETMASK, NULL, &before);
	if (!harmless(signal) && !sigismember(&before, signal))
		return -2;
	if (a[1] % 3 == 0)
		return syscall(SYS_tgkill, getpid(), gettid(), signal);
	if (has_threads())
		return -2; /* which one takes it, and when, would be chance */
	if (a[1] % 3 == 1)
		return sigqueue(getpid(), signal, (union sigval){.sival_int = (int)a[2] % 100});
	return kill(getpid(), signal);
}

static long pending(const long *a)
{
	sigset_t set;
	long bits = 0;

	(void)a;
	sigpending(&set);
	for (long i = 0; i < 12; i++)
		bits |= (long)sigismember(&set, number(i)) << i;
	return bits;
}

static long fetch(const long *a)
{
	struct timespec now = {0};
	siginfo_t info;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, number(a[0]));
	if (sigtimedwait(&set, &info, &now) < 0)
		return -1;
	say(" code %d value %d from %s", info.si_code, info.si_code == SI_QUEUE ? info.si_int : 0,
	    info.si_code <= 0 ? whose(info.si_pid) : "");
	return info.si_signo;
}

/* What is caught, blocked and done about each */
static long state(const long *a)
{
	struct sigaction what;
	sigset_t set;

	(void)a;
	pthread_sigmask(SIG_SETMASK, NULL, &set);
	for (long i = 0; i < 12; i++) {
		sigaction(number(i), NULL, &what);
		say(" %d%c%x/%u", sigismember(&set, number(i)),
		    what.sa_handler == SIG_DFL	 ? 'd'
		    : what.sa_handler == SIG_IGN ? 'i'
						 : 'c',
		    what.sa_flags & ~0x04000000, atomic_load(&shared->caught[number(i)]));
	}
	return 0;
}

static long stack(const long *a)
{
	/* Not at the places of memory.c: a handler may be called when nothing is mapped there. */
	static char some[8][65536];
	stack_t what = {.ss_sp = some[a[0] % 8], .ss_size = sizeof(*some), .ss_flags = a[1] % 3 ? 0 : SS_DISABLE}, now;

	if (sigaltstack(&what, NULL))
		return -1;
	return sigaltstack(NULL, &now) ? -1 : now.ss_flags;
}

/* which, far away or off */
static long interval(const long *a)
{
	static const int which[] = {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF};
	struct itimerval what = {.it_value.tv_sec = a[1] % 2 ? 4000 : 0, .it_interval.tv_sec = a[1] % 2 ? 9 : 0},
			 before;

	if (setitimer(which[a[0] % 3], &what, &before))
		return -1;
	return before.it_interval.tv_sec * 10 + (before.it_value.tv_sec > 3000);
}

static int timers[6] = {-1, -1, -1, -1, -1, -1}; /* ids are the kernel's, which counts on where an image does not */

/* which, clock, state */
static long posix_timer(const long *a)
{
	static const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_PROCESS_CPUTIME_ID};
	struct sigevent event = {.sigev_notify = a[2] % 2 ? SIGEV_NONE : SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3};
	struct itimerspec spec = {.it_value.tv_sec = 3500, .it_interval.tv_sec = a[0] % 50};
	int *timer = &timers[a[0] % 6];

	if (*timer >= 0 && a[2] % 5 == 0) {
		long result = syscall(SYS_timer_delete, *timer);

		*timer = -1;
		return result;
	}
	if (syscall(SYS_timer_create, clocks[a[1] % 3], &event, timer))
		return -1;
	return syscall(SYS_timer_settime, *timer, 0, &spec, NULL);
}

static long posix_timer_state(const long *a)
{
	struct itimerspec spec;

	if (syscall(SYS_timer_gettime, timers[a[0] % 6], &spec))
		return -1;
	return spec.it_interval.tv_sec * 10 + (spec.it_value.tv_sec > 2000);
}

/* which timer runs out, while its signal is blocked; it waits then */
static long expire(const long *a)
{
	struct itimerval soon = {.it_value.tv_usec = 1};
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM, .sigev_value.sival_int = 7};
	struct itimerspec once = {.it_value.tv_nsec = 1};
	struct timespec moment = {.tv_nsec = 200000};
	sigset_t set;
	int timer;

	pthread_sigmask(SIG_SETMASK, NULL, &set);
	if (!sigismember(&set, SIGALRM) || !harmless(SIGALRM))
		return -2;
	if (a[0] % 2 ? setitimer(ITIMER_REAL, &soon, NULL)
		     : (syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &timer) ||
			syscall(SYS_timer_settime, timer, 0, &once, NULL)))
		return -1;
	nanosleep(&moment, NULL);
	sigpending(&set);
	return sigismember(&set, SIGALRM) >= 0 ? 0 : -1;
}

/* limit, value */
static long limit(const long *a)
{
	static const int which[] = {RLIMIT_CORE,    RLIMIT_FSIZE,      RLIMIT_STACK,
				    RLIMIT_MEMLOCK, RLIMIT_SIGPENDING, RLIMIT_MSGQUEUE};
	struct rlimit what;

	if (getrlimit(which[a[0] % 6], &what))
		return -1;
	what.rlim_cur = a[1] % 3 ? what.rlim_max : (rlim_t)(1 << 23) + (rlim_t)(a[1] % 100) * 4096;
	if (what.rlim_cur > what.rlim_max)
		what.rlim_cur = what.rlim_max;
	return setrlimit(which[a[0] % 6], &what);
}

static long limits(const long *a)
{
	struct rlimit what;

	(void)a;
	for (int i = 0; i < RLIM_NLIMITS; i++)
		if (!getrlimit(i, &what))
			say(" %ld", (long)what.rlim_cur);
	return 0;
}

static long control(const long *a)
{
	char name[16];

	switch (a[0] % 8) {
	case 0:
		snprintf(name, sizeof(name), "name %ld)\n(", a[1] % 100);
		return prctl(PR_SET_NAME, name, 0, 0, 0);
	case 1:
		return prctl(PR_SET_PDEATHSIG, a[1] % 2 ? SIGURG : 0, 0, 0, 0);
	case 2:
		return prctl(PR_SET_CHILD_SUBREAPER, a[1] % 2 || getpid() == shared->actors[0].pid, 0, 0, 0);
	case 3:
		return prctl(PR_SET_TIMERSLACK, a[1] % 2 ? 70000 : 50000, 0, 0, 0);
	case 4:
		return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	case 5:
		return prctl(PR_SET_THP_DISABLE, a[1] % 2, 0, 0, 0);
	case 6:
		return (long)umask((mode_t)(a[1] % 64));
	default:
		return nice((int)(a[1] % 3));
	}
}

static long controls(const long *a)
{
	char name[17] = {0};
	int death = 0, reaper = 0;
	mode_t mask = umask(0);

	(void)a;
	umask(mask);
	prctl(PR_GET_NAME, name, 0, 0, 0);
	prctl(PR_GET_PDEATHSIG, &death, 0, 0, 0);
	prctl(PR_GET_CHILD_SUBREAPER, &reaper, 0, 0, 0);
	say(" %.6s %d %d %d %d %d %o %d", name, death, reaper, prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0),
	    prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), mask,
	    getpriority(PRIO_PROCESS, 0));
	return 0;
}

static long affinity(const long *a)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(a[0] % 2, &set);
	if (a[1] % 2)
		CPU_SET(1 - a[0] % 2, &set);
	if (sched_setaffinity(0, sizeof(set), &set) || sched_getaffinity(0, sizeof(set), &set))
		return -1;
	return CPU_COUNT(&set);
}

static long policy(const long *a)
{
	/* Not SCHED_IDLE: on a busy machine nobody would get his turn. */
	static const int policies[] = {SCHED_OTHER, SCHED_BATCH};
	struct sched_param none = {0};

	if (a[1] % 2 && sched_setscheduler(0, policies[a[0] % 2], &none))
		return -1;
	return sched_getscheduler(0);
}

const struct verb signal_verbs[] = {{"action", action},
				    {"mask", mask},
				    {"raise", send_},
				    {"pending", pending},
				    {"fetch", fetch},
				    {"signal_state", state},
				    {"stack", stack},
				    {"interval", interval},
				    {"posix_timer", posix_timer},
				    {"posix_timer_state", posix_timer_state},
				    {"expire", expire},
				    {"limit", limit},
				    {"limits", limits},
				    {"control", control},
				    {"controls", controls},
				    {"affinity", affinity},
				    {"policy", policy},
				    {0}};
