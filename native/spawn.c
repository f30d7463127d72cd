/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Start torpor-init, with or without new namespaces: the part between fork and execve, where a process with threads
 * must not run Python.
 */
#define _GNU_SOURCE
#include "torpor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

#define NS_PER_S 1000000000LL

/* Report to the caller what failed, and exit. If the report cannot be written, nobody reads it any more. */
static _Noreturn void fail(const struct tp_spawn *s, enum tp_stage stage)
{
	struct tp_report report = {.stage = stage, .value = errno};
	ssize_t written = write(s->report, &report, sizeof(report));

	_exit(written == sizeof(report) ? 1 : 2);
}

static bool put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool done;

	if (fd < 0)
		return false;
	done = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return done;
}

static void set_clocks(const struct tp_spawn *s)
{
	const int64_t offsets[] = {s->monotonic_ns, s->boottime_ns};
	const char *const names[] = {"monotonic", "boottime"};

	for (int i = 0; i < 2; i++) {
		char text[64];
		int64_t ns = offsets[i] % NS_PER_S, seconds = offsets[i] / NS_PER_S;

		if (ns < 0) {
			ns += NS_PER_S;
			seconds--;
		}
		snprintf(text, sizeof(text), "%s %lld %lld", names[i], (long long)seconds, (long long)ns);
		if (!put("/proc/self/timens_offsets", text))
			fail(s, TP_STAGE_CLOCKS);
	}
}

/*
 * Let a new PID namespace assign PIDs from the host's last PID on. If it began at 1, the children of every job would
 * have the same few PIDs, and use the same /tmp/x.$$. The file exists only with CONFIG_CHECKPOINT_RESTORE, without
 * which no job can be woken anyway. In a container it may be read-only: then only this convenience is lost.
 */
static void count_from(int32_t last_pid)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", last_pid);
	put("/proc/sys/kernel/ns_last_pid", text);
}

/*
 * A new PID namespace has the highest pid_max that there is (since Linux 6.14): with a PID above the host's, the job could
 * not be woken natively later. Before, the file is the host's own, and must stay as it is: so nothing is ever raised.
 */
static void lower_pid_max(int32_t pid_max)
{
	char text[16];
	int fd = open("/proc/sys/kernel/pid_max", O_RDONLY | O_CLOEXEC);
	ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	close(fd);
	if (size <= 0)
		return;
	text[size] = '\0';
	if (atoi(text) <= pid_max)
		return;
	snprintf(text, sizeof(text), "%d", pid_max);
	put("/proc/sys/kernel/pid_max", text);
}

/* Make capabilities ambient: execve by a uid other than 0 keeps only ambient ones (capabilities(7)). */
static void keep_capabilities(const struct tp_spawn *s)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data))
		fail(s, TP_STAGE_CAPABILITIES);
	for (int i = 0; i < 2; i++)
		data[i].inheritable = data[i].permitted;
	if (syscall(SYS_capset, &header, data))
		fail(s, TP_STAGE_CAPABILITIES);
	for (int cap = 0; cap < 64; cap++)
		if (data[cap / 32].permitted >> cap % 32 & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0))
			fail(s, TP_STAGE_CAPABILITIES);
}

/* Block signals: a tracer would see each one as a stop, and this process waits for its caller, not for a terminal. */
static void hold_signals(void)
{
	sigset_t all;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
}

/* Not by libc, which reserves two signals and does not change them: posix_spawn() leaves them ignored in its child. */
static void set_action(int sig, void (*handler)(int))
{
	struct { /* the kernel's own struct sigaction */
		void (*handler)(int);
		unsigned long flags, restorer, mask;
	} action = {.handler = handler};

	syscall(SYS_rt_sigaction, sig, &action, NULL, sizeof(action.mask)); /* fails for SIGKILL and SIGSTOP */
}

/* After execve, signals that were caught have their default action; ignored and blocked ones stay so. */
static void set_signals(const struct tp_spawn *s)
{
	sigset_t blocked;

	sigemptyset(&blocked);
	for (int sig = 1; sig < NSIG; sig++) {
		set_action(sig, SIG_IGN); /* discards pending signals */
		set_action(sig, s->ignored >> (sig - 1) & 1 ? SIG_IGN : SIG_DFL);
		if (s->blocked >> (sig - 1) & 1)
			sigaddset(&blocked, sig);
	}
	sigprocmask(SIG_SETMASK, &blocked, NULL);
}

static void set_limits(const struct tp_spawn *s)
{
	for (size_t i = 0; i < s->limit_count; i++) {
		struct rlimit limit;

		if (getrlimit(s->limits[i].resource, &limit))
			fail(s, TP_STAGE_LIMITS);
		limit.rlim_cur = s->limits[i].soft;
		if (setrlimit(s->limits[i].resource, &limit))
			fail(s, TP_STAGE_LIMITS);
	}
}

static void tell(const struct tp_spawn *s, enum tp_stage stage)
{
	struct tp_report report = {.stage = stage};

	if (write(s->report, &report, sizeof(report)) != sizeof(report))
		_exit(2);
}

/* The pipe alone would not show that the caller has ended: this process shares the descriptor of the other end. */
static struct tp_go wait_for_go(const struct tp_spawn *s)
{
	struct pollfd waited[] = {{.fd = s->gate, .events = POLLIN}, {.fd = s->caller, .events = POLLIN}};
	struct tp_go go;

	while (poll(waited, 2, -1) < 0)
		if (errno != EINTR)
			_exit(1);
	if (waited[1].revents || read(s->gate, &go, sizeof(go)) != sizeof(go))
		_exit(1);
	return go;
}

/* A map can be written only once: one that exists already stays. */
static void map_own(const struct tp_spawn *s, const char *path, uint32_t id)
{
	char text[64];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof(text));

	close(fd);
	snprintf(text, sizeof(text), "%u %u 1", id, id);
	if (size < 0 || (!size && !put(path, text)))
		fail(s, TP_STAGE_ID_MAPS);
}

/*
 * Map the caller's own uid and gid only, which needs no privilege (user_namespaces(7)), unless newuidmap has mapped
 * more. setgroups() is always denied: a job that left a group would gain access to files that deny it to that group.
 */
static void map_ids(const struct tp_spawn *s)
{
	if (!put("/proc/self/setgroups", "deny"))
		fail(s, TP_STAGE_ID_MAPS);
	if (s->others_map) {
		tell(s, TP_STAGE_UNMAPPED);
		wait_for_go(s);
	}
	map_own(s, "/proc/self/uid_map", s->uid);
	map_own(s, "/proc/self/gid_map", s->gid);
}

static _Noreturn void become_init(const struct tp_spawn *s)
{
	struct tp_go go;

	hold_signals();
	if (s->namespaces & CLONE_NEWNS) {
		/* Mounts and unmounts of the host have effect here too; those of the job stay in its namespace. */
		if (mount("none", "/", NULL, MS_REC | MS_SLAVE, NULL))
			fail(s, TP_STAGE_SLAVE_MOUNTS);
		/* Mount it over the host's /proc, in which the job's PIDs would belong to other processes. */
		if (s->namespaces & CLONE_NEWPID &&
		    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
			fail(s, TP_STAGE_MOUNT_PROC);
		if (s->namespaces & CLONE_NEWPID) {
			lower_pid_max(s->pid_max);
			count_from(s->last_pid);
		}
	}
	if (!(s->namespaces & CLONE_NEWPID) && prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
		fail(s, TP_STAGE_SUBREAPER);
	if (s->new_session && setsid() < 0)
		fail(s, TP_STAGE_SESSION);
	set_limits(s);
	if (s->keep_capabilities)
		keep_capabilities(s);
	/* Now the caller attaches, and opens the job's files, on the mounts of the job. */
	tell(s, TP_STAGE_READY);
	go = wait_for_go(s);
	/* Default profiles of containers deny unshare(2). This closes no descriptor, and has the same effect (since 5.9). */
	if (syscall(SYS_close_range, ~0u, ~0u, CLOSE_RANGE_UNSHARE) && unshare(CLONE_FILES))
		fail(s, TP_STAGE_DESCRIPTORS);
	tell(s, TP_STAGE_APART);
	for (int fd = go.first_fd; fd < go.end_fd; fd++)
		if (fd != s->report && fcntl(fd, F_SETFD, 0) && errno != EBADF)
			fail(s, TP_STAGE_DESCRIPTORS);
	set_signals(s);
	execve(s->path, s->argv, s->environment);
	fail(s, TP_STAGE_EXECVE);
}

long tp_spawn(const struct tp_spawn *s)
{
	struct tp_report report = {.stage = TP_STAGE_STARTED};
	long helper, pid;
	ssize_t written;

	/* Not by libc's fork(): this child only makes system calls, and does not need libc's fork handlers. */
	helper = syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
	if (helper < 0)
		return -errno;
	if (helper)
		return helper;

	/* This process is needed: only the children of the process that creates a PID or time namespace enter it. */
	if (s->namespaces && unshare((int)s->namespaces))
		fail(s, TP_STAGE_UNSHARE);
	if (s->namespaces & CLONE_NEWUSER)
		map_ids(s);
	if (s->namespaces & CLONE_NEWTIME)
		set_clocks(s);
	pid = syscall(SYS_clone, CLONE_PARENT | CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
	if (pid < 0)
		fail(s, TP_STAGE_FORK);
	if (!pid)
		become_init(s);
	report.value = (int32_t)pid;
	written = write(s->report, &report, sizeof(report));
	_exit(written == sizeof(report) ? 0 : 2);
}
