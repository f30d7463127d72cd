/* Makes a system call of a process fail, or kills it before or after it: what the kernel may do at any of them.
 *
 * inject PID count FILE           write the number of each call to FILE, a line each
 * inject PID error NR N ERRNO     the Nth call of number NR is not made, and gives ERRNO; a close() is made all the same
 * inject PID before NR N          it is killed when that begins
 * inject PID after NR N           and when that has ended
 *
 * Calls count, in all threads of the process, between two calls of prctl(MARK, 1) and prctl(MARK, 0). Its children are
 * left alone: it traces them itself. "ready" is said when it is traced, "hit" when it is done.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>

enum { MARK = 0x746f7270 };

static pid_t traced, failing;
static bool counting, before, after;
static unsigned long calls, wanted, wanted_nr;
static int error;
static FILE *list;

static bool is_thread(pid_t tid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task/%d", traced, tid);
	FILE *folder = fopen(path, "r");
	if (folder)
		fclose(folder);
	return folder;
}

/* A call that does not come back, or that the C library takes for a fault of its own when it fails. */
static bool is_spared(unsigned long nr)
{
	return nr == SYS_exit || nr == SYS_exit_group || nr == SYS_rt_sigreturn || nr == SYS_futex;
}

static void hit(void)
{
	puts("hit");
	fflush(stdout);
}

static void enter(pid_t tid, unsigned long nr, const uint64_t *args)
{
	if (nr == SYS_prctl && args[0] == MARK) {
		counting = args[1];
		return;
	}
	if (!counting || is_spared(nr))
		return;
	if (list)
		fprintf(list, "%lu\n", nr);
	if (nr != wanted_nr || ++calls != wanted)
		return;
	if (before) {
		hit();
		kill(traced, SIGKILL);
	} else {
		failing = tid;
		if (!after && nr != SYS_close) {
			struct user_regs_struct registers;

			ptrace(PTRACE_GETREGS, tid, 0, &registers);
			registers.orig_rax = -1UL;
			ptrace(PTRACE_SETREGS, tid, 0, &registers);
		}
		hit();
	}
}

static void leave(pid_t tid)
{
	struct user_regs_struct registers;

	if (tid != failing)
		return;
	failing = 0;
	if (after) {
		kill(traced, SIGKILL);
		return;
	}
	ptrace(PTRACE_GETREGS, tid, 0, &registers);
	registers.rax = (unsigned long)-error;
	ptrace(PTRACE_SETREGS, tid, 0, &registers);
}

/* The signal with which a stopped thread is to run on. */
static int stopped(pid_t tid, int status)
{
	struct __ptrace_syscall_info info;

	if (status >> 8 == (SIGTRAP | 0x80)) {
		if (ptrace(PTRACE_GET_SYSCALL_INFO, tid, sizeof(info), &info) < 0)
			return 0;
		if (info.op == PTRACE_SYSCALL_INFO_ENTRY)
			enter(tid, info.entry.nr, info.entry.args);
		else
			leave(tid);
		return 0;
	}
	return status >> 16 ? 0 : WSTOPSIG(status);
}

int main(int argc, char **argv)
{
	const long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE;
	int status;

	if (argc < 4 || argc > 6)
		errx(2, "usage: inject PID count FILE | error NR N ERRNO | before NR N | after NR N");
	traced = atoi(argv[1]);
	before = !strcmp(argv[2], "before");
	after = !strcmp(argv[2], "after");
	if (!strcmp(argv[2], "count")) {
		list = fopen(argv[3], "w");
		if (!list)
			err(1, "%s", argv[3]);
	} else {
		wanted_nr = strtoul(argv[3], NULL, 10);
		wanted = strtoul(argv[4], NULL, 10);
		error = argc == 6 ? atoi(argv[5]) : 0;
	}
	if (ptrace(PTRACE_SEIZE, traced, 0, options) < 0 || ptrace(PTRACE_INTERRUPT, traced, 0, 0) < 0)
		err(1, "process %d", traced);
	for (bool ready = false;;) {
		pid_t tid = waitpid(-1, &status, __WALL);

		if (tid < 0)
			break;
		if (!WIFSTOPPED(status))
			continue;
		if (!ready) {
			puts("ready");
			fflush(stdout);
			ready = true;
		}
		if (tid != traced && !is_thread(tid)) /* a child, born traced: its parent waits until it is let go */
			ptrace(PTRACE_DETACH, tid, 0, 0);
		else if (status >> 16 == PTRACE_EVENT_CLONE) {
			unsigned long child = 0;

			ptrace(PTRACE_GETEVENTMSG, tid, 0, &child);
			if (!is_thread((pid_t)child) && waitpid((pid_t)child, &status, __WALL) == (pid_t)child &&
			    WIFSTOPPED(status))
				ptrace(PTRACE_DETACH, (pid_t)child, 0, 0);
			ptrace(PTRACE_SYSCALL, tid, 0, 0);
		} else
			ptrace(PTRACE_SYSCALL, tid, 0, stopped(tid, status));
	}
	if (list && fclose(list))
		err(1, "%s", argv[3]);
	return 0;
}
