/* SPDX-License-Identifier: BSD-3-Clause
 *
 * torpor-init: pid 1 of a capsule (a job's own namespaces), parent of a job outside one, and stand-in for a process
 * whose PID a job uses although the process is not a part of it.
 *
 *	torpor-init CHILD STATUS_FD HOLD [PROGRAM ARG0 ARGS...]
 *
 * It acts for its child CHILD: it forwards every signal to CHILD, reaps every orphan that becomes its child, and ends
 * in the same way as CHILD. If CHILD is 0, it has no child and waits until it is killed. If a PROGRAM is given, it
 * starts the program first, with the blocked and ignored signals that init itself was started with, and acts for it.
 * If init leads its session, the program leads a new one.
 *
 * If STATUS_FD is not 0, the child's wait status (an int) is written to it. Pid 1 cannot kill itself: if a signal
 * killed the child, the exit code of pid 1 is 128 + signal.
 *
 * A PID namespace ends with its pid 1. So pid 1 first reports the status, with LIVES_ON if CHILD has left processes
 * behind. Then it lives on as long as any of them does, and forwards signals from outside to all of them.
 *
 * With HOLD 1 it forwards nothing, and its signals stay pending: a launcher forwards signals itself, and asks init which
 * of them were sent to the whole process group. The launcher asks by a signal ASK that it queues with the value HOLD_VALUE
 * + n. Init forgets its pending signal n and answers through STATUS_FD with HOLD_VALUE + n, plus HEARD if it had that
 * signal. The first question, if need be with n = 0, has the effect of HOLD 1. From then on init also writes CHILD's wait
 * status to STATUS_FD whenever CHILD is stopped or continued.
 *
 * A stand-in forwards only what the init above it forwards to it: signals of others are for a process that is not there.
 * It hands that init its child's stops and continuations, by a signal ASK with the value CHANGED_VALUE + wait status.
 *
 * A blank process (engine/torpor/remote/blank.py) is a traced clone of torpor-init that runs none of this, except for
 * torpor_clone: its tracer may call that to create a child or a thread with a certain PID, where PIDs may not be chosen.
 *
 * This program is freestanding, has no data but what is on its stack, and may be entered again at _start with a new
 * stack: in this way a clone of it becomes a stand-in.
 */
#include "bare.h"

#include <asm/errno.h>
#include <asm/signal.h>
#include <asm/siginfo.h>
#include <asm/unistd.h>
#include <linux/sched.h>
#include <linux/sched/types.h>
#include <linux/wait.h>

#define MASK_SIZE 8	    /* bytes of the kernel's sigset_t */
#define HOLD_VALUE 0x746f00 /* as in engine/torpor/restorer/job.py */
#define HEARD 0x80	    /* as there */
#define CHANGED_VALUE 0x74700000
#define LIVES_ON 0x10000 /* as there; a wait status has 16 bits */
#define ASK 64		 /* as there; a real-time signal, which is queued even if another one is pending */
#define BIT(sig) (1ul << ((sig) - 1))

struct action { /* the kernel's own struct sigaction */
	void *handler;
	unsigned long flags;
	void *restorer;
	unsigned long mask;
};

static unsigned long set_mask(unsigned long mask)
{
	unsigned long before = 0;

	call(__NR_rt_sigprocmask, SIG_SETMASK, (long)&mask, (long)&before, MASK_SIZE);
	return before;
}

static long number(const char *text)
{
	long value = 0;

	while (*text)
		value = value * 10 + *text++ - '0';
	return value;
}

static _Noreturn void end_as(int status, long status_fd)
{
	int sig = status & 0x7f;

	if (status_fd)
		call(__NR_write, status_fd, (long)&status, sizeof(status), 0);
	if (sig) {
		unsigned long no_core[2] = {0, 0};

		call(__NR_setrlimit, 4 /* RLIMIT_CORE */, (long)no_core, 0, 0);
		call(__NR_kill, call(__NR_getpid, 0, 0, 0, 0), sig, 0, 0);
		set_mask(0);
	}
	for (;;)
		call(__NR_exit_group, sig ? 128 + sig : status >> 8 & 0xff, 0, 0, 0);
}

/* Signals that are meant for init itself, and not forwarded: a question of the launcher, or the word of a stand-in. */
static int is_question(const siginfo_t *info)
{
	return info->si_signo == ASK && info->si_code == SI_QUEUE && (info->si_int & ~0xff) == HOLD_VALUE;
}

static int is_change(const siginfo_t *info)
{
	return info->si_signo == ASK && info->si_code == SI_QUEUE && (info->si_int & ~0xffff) == CHANGED_VALUE;
}

static void discard(unsigned long signals)
{
	long at_once[2] = {0, 0};

	while (call(__NR_rt_sigtimedwait, (long)&signals, 0, (long)at_once, MASK_SIZE) > 0)
		;
}

/* Answer whether signal n was sent to the whole process group, and forget it; heard are signals that init has taken. */
static unsigned long answer(int n, unsigned long heard, long status_fd)
{
	unsigned long signals = n ? BIT(n) : 0;
	long at_once[2] = {0, 0};
	int reply = HOLD_VALUE + n;

	if (heard & signals)
		reply |= HEARD;
	else if (signals & ~(BIT(SIGCHLD) | BIT(ASK)) && /* one: real-time signals may be pending several times */
		 call(__NR_rt_sigtimedwait, (long)&signals, 0, (long)at_once, MASK_SIZE) > 0)
		reply |= HEARD;
	call(__NR_write, status_fd, (long)&reply, sizeof(reply), 0);
	return heard & ~signals;
}

/* Live on as long as processes do that the child has left behind. */
static _Noreturn void outlive(int status, long status_fd)
{
	unsigned long all = ~0ul;
	int report = status | LIVES_ON;

	/* Leave the child's process group, terminal and directory, as a daemon does. */
	call(__NR_setsid, 0, 0, 0, 0);
	call(__NR_chdir, (long)"/", 0, 0, 0);
	discard(all & ~BIT(SIGCHLD));
	call(__NR_write, status_fd, (long)&report, sizeof(report), 0);
	call(__NR_close, status_fd, 0, 0, 0);
	for (;;) {
		siginfo_t info;
		long pid;

		do
			pid = call(__NR_wait4, -1, 0, WNOHANG | __WALL, 0);
		while (pid > 0);
		if (pid == -ECHILD)
			end_as(status, 0);
		if (call(__NR_rt_sigtimedwait, (long)&all, (long)&info, 0, MASK_SIZE) <= 0 || is_question(&info) ||
		    is_change(&info))
			continue;
		/* One of them signals its old parent, which is gone: the host's pid 1 would ignore that too. */
		if (info.si_code <= 0 && !info.si_pid)
			call(__NR_kill, -1, info.si_signo, 0, 0);
	}
}

/* Report that the child was stopped or continued: to the launcher, if it listens, or to the init above a stand-in. */
static void tell_change(int status, long status_fd, long above)
{
	siginfo_t word = {.si_signo = ASK, .si_code = SI_QUEUE};

	word.si_int = CHANGED_VALUE | status;
	if (status_fd)
		call(__NR_write, status_fd, (long)&status, sizeof(status), 0);
	else if (above && call(__NR_getppid, 0, 0, 0, 0) == above)
		call(__NR_rt_sigqueueinfo, above, ASK, (long)&word, 0);
}

static void reap(long child, long status_fd, int launcher_listens, long above)
{
	int status, its_own = 0, ended = 0;
	long pid;

	while ((pid = call(__NR_wait4, -1, (long)&status, WNOHANG | WUNTRACED | WCONTINUED | __WALL, 0)) > 0) {
		if (pid != child)
			continue;
		if ((status & 0x7f) == 0x7f) {
			tell_change(status, launcher_listens ? status_fd : 0, above);
			continue;
		}
		ended = 1;
		its_own = status;
	}
	if (ended && pid != -ECHILD && call(__NR_getpid, 0, 0, 0, 0) == 1)
		outlive(its_own, status_fd);
	if (ended)
		end_as(its_own, status_fd);
}

static void forward(long child, const siginfo_t *info, long above)
{
	/* A terminal signals a whole process group: a child in init's group has got the signal already. */
	if (info->si_code == SI_KERNEL && call(__NR_getpgid, child, 0, 0, 0) == call(__NR_getpgid, 0, 0, 0, 0))
		return;
	if (above && info->si_pid != above)
		return;
	call(__NR_kill, child, info->si_signo, 0, 0);
}

/*
 * The program takes the place of the launcher. So it gets the launcher's scheduling, which fork() has reset if the launcher
 * has SCHED_RESET_ON_FORK. The kernel may refuse a priority that only root or RLIMIT_RTPRIO and RLIMIT_NICE allow.
 */
static void schedule_as(long launcher)
{
	struct sched_attr given = {0};

	if (call(__NR_sched_getattr, launcher, (long)&given, sizeof(given), 0) == 0 &&
	    given.sched_flags & SCHED_FLAG_RESET_ON_FORK)
		call(__NR_sched_setattr, 0, (long)&given, 0, 0);
}

static int begins_with(const char *text, const char *beginning)
{
	while (*beginning)
		if (*text++ != *beginning++)
			return 0;
	return 1;
}

/* And a variable that has the launcher's PID gets the program's: sd_listen_fds(3), sd_watchdog_enabled(3). */
static void correct_pid(char **environment, const char *name, long launcher, char *text)
{
	long pid = call(__NR_getpid, 0, 0, 0, 0), scale = 1, size = 0;

	for (; name[size]; size++)
		text[size] = name[size];
	for (; *environment; environment++)
		if (begins_with(*environment, name) && number(*environment + size) == launcher)
			*environment = text;
	while (scale <= pid / 10)
		scale *= 10;
	for (; scale; scale /= 10)
		text[size++] = '0' + pid / scale % 10;
	text[size] = '\0';
}

static long start(char **argv, char **environment, unsigned long mask, long status_fd, int launcher_forwards)
{
	struct action wait_for_it = {0}, given = {0};
	long leads = call(__NR_getsid, 0, 0, 0, 0) == call(__NR_getpid, 0, 0, 0, 0);
	long last = status_fd > 2 ? status_fd : 2;
	long launcher = call(__NR_getppid, 0, 0, 0, 0);
	char listen_pid[32], watchdog_pid[32];
	unsigned long given_limit[2] = {0, 0}, wide[2]; /* struct rlimit */
	int gate[2] = {-1, -1};
	long child, failure;

	/* Background processes of the program stay below init, no matter which program has started init. */
	call(__NR_prctl, 36 /* PR_SET_CHILD_SUBREAPER */, 1, 0, 0);
	/* While SIGCHLD is ignored, no child's end is reported. The program gets the action that it had before. */
	call(__NR_rt_sigaction, SIGCHLD, (long)&wait_for_it, (long)&given, MASK_SIZE);
	/* The soft limit of processes may be just enough for the program. */
	call(__NR_getrlimit, 6 /* RLIMIT_NPROC */, (long)given_limit, 0, 0);
	wide[0] = wide[1] = given_limit[1];
	call(__NR_setrlimit, 6, (long)wide, 0, 0);
	call(__NR_pipe2, (long)gate, 02000000 /* O_CLOEXEC */, 0, 0);
	child = call(__NR_fork, 0, 0, 0, 0);
	if (child) {
		/* Where init forwards, the program must not hear twice what is sent to its group. */
		if (!launcher_forwards)
			call(__NR_setsid, 0, 0, 0, 0);
		call(__NR_close, gate[0], 0, 0, 0);
		call(__NR_close, gate[1], 0, 0, 0);
		/* A checkpoint finds here what the job's 0, 1 and 2 were. Only the job may hold the others. */
		call(__NR_close_range, 3, last - 1, 0, 0);
		call(__NR_close_range, last + 1, ~0u, 0, 0);
		return child;
	}
	/* Wait until init has left the group. */
	call(__NR_close, gate[1], 0, 0, 0);
	call(__NR_read, gate[0], (long)&gate[1], 1, 0);
	call(__NR_setrlimit, 6, (long)given_limit, 0, 0);
	call(__NR_rt_sigaction, SIGCHLD, (long)&given, 0, MASK_SIZE);
	set_mask(mask);
	if (leads)
		call(__NR_setsid, 0, 0, 0, 0);
	if (status_fd) { /* else torpor-init itself was started in the program's place */
		schedule_as(launcher);
		correct_pid(environment, "LISTEN_PID=", launcher, listen_pid);
		correct_pid(environment, "WATCHDOG_PID=", launcher, watchdog_pid);
	}
	failure = call(__NR_execve, (long)argv[0], (long)(argv + 1), (long)environment, 0);
	if (failure == -ENOEXEC) { /* a script without #!: as execvp(3) does */
		argv[1] = argv[0];
		argv[0] = "/bin/sh";
		call(__NR_execve, (long)argv[0], (long)argv, (long)environment, 0);
	}
	for (;;)
		call(__NR_exit_group, failure == -ENOENT ? 127 : 126, 0, 0, 0);
}

/* stack: argc, argv[], NULL, environment[], NULL, as execve leaves it */
_Noreturn __attribute__((used)) void torpor_init(long *stack)
{
	long argc = stack[0];
	char **argv = (char **)(stack + 1);
	long child = number(argv[1]), status_fd = number(argv[2]);
	unsigned long all = ~0ul, own = BIT(SIGCHLD) | BIT(ASK), mask = set_mask(all), heard = 0;
	unsigned long awaited = number(argv[3]) ? own : all;
	long above = 0; /* the PID of the init above a stand-in */

	if (status_fd)
		call(__NR_fcntl, status_fd, 2 /* F_SETFD */, 1 /* FD_CLOEXEC */, 0);
	if (argc > 4) {
		/* What was sent to the group so far, the program does not get: the launcher is to forward it. */
		if (awaited == own)
			discard(~own);
		child = start(argv + 4, argv + argc + 1, mask, status_fd, awaited == own);
		if (child < 0)
			end_as(SIGKILL, status_fd); /* fork failed: no memory, or too many processes */
	} else if (!status_fd) {
		above = call(__NR_getppid, 0, 0, 0, 0);
	}
	for (;;) {
		siginfo_t info;

		reap(child, status_fd, awaited == own, above);
		if (call(__NR_rt_sigtimedwait, (long)&awaited, (long)&info, 0, MASK_SIZE) <= 0)
			continue;
		if (is_question(&info)) {
			awaited = own;
			heard = answer(info.si_int & 0xff, heard, status_fd);
		} else if (is_change(&info)) {
			tell_change(info.si_int & 0xffff, awaited == own ? status_fd : 0, above);
		} else if (awaited == own) {
			if (info.si_code <= 0)
				heard |= BIT(info.si_signo);
		} else if (info.si_signo != SIGCHLD && child > 0) {
			forward(child, &info, above);
		}
	}
}

/* The arguments of torpor_clone, and its result. */
struct clone_request {
	long loadavg;	 /* a descriptor of /proc/loadavg */
	long target;	 /* the PID */
	long near;	 /* how many PIDs may still come before it */
	long first, end; /* the kernel assigns PIDs from first to end - 1, again and again */
	long flags;	 /* for clone(2) */
	long result;	 /* the PID, or another that was assigned instead, or -errno: -ERANGE if it is not near */
};

/* The last word of /proc/loadavg: the PID that was assigned last. */
static long last_pid(long loadavg)
{
	char text[128];
	long size = call(__NR_pread64, loadavg, (long)text, sizeof(text) - 1, 0), at = size - 1;

	if (size <= 0)
		return -EIO;
	text[at] = '\0'; /* it ends a line */
	while (at > 0 && text[at - 1] != ' ')
		at--;
	return number(text + at);
}

static int is_taken(long pid)
{
	return call(__NR_kill, pid, 0, 0, 0) != -ESRCH || call(__NR_kill, -pid, 0, 0, 0) != -ESRCH;
}

/* Whether the kernel would assign the target next: it skips PIDs that are in use. */
static int is_next(const struct clone_request *r, long last)
{
	for (long pid = r->target - 1; pid != last; pid--) {
		if (pid < r->first) {
			if (last < r->first || last >= r->end - 1)
				return 1;
			pid = r->end - 1;
		}
		if (!is_taken(pid))
			return 0;
	}
	return 1;
}

_Noreturn __attribute__((used)) void torpor_clone(struct clone_request *r)
{
	/* Use up a PID as native/walk.c does. Here the clone fails with EFAULT, since the pidfd's address is 1. */
	long pass = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_PIDFD;
	long result, last, left, tries = r->near; /* each try uses up one PID; without a limit the loop might not end */

	do {
		result = -ERANGE;
		last = last_pid(r->loadavg);
		left = r->target - 1 - last;
		if (left < 0)
			left += r->end - r->first;
		if (last < 0 || left > r->near)
			break;
		if (is_next(r, last))
			result = call(__NR_clone, r->flags, 0, 0, 0);
		else
			result = call(__NR_clone, pass, 0, 1, 0);
	} while ((result == -EFAULT || result == -EMFILE) && tries-- > 0);
	r->result = result;
	for (;;)
		__asm__ volatile("int3");
}

__asm__(".balign 8\n"
	".quad torpor_clone\n" /* the tracer reads the address here, before the entry point */
	".globl _start\n"
	"_start:\n"
	"	xorl %ebp, %ebp\n"
	"	movq %rsp, %rdi\n"
	"	andq $-16, %rsp\n"
	"	call torpor_init\n");
