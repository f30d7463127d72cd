/* System-call filters: several of one thread, others of another, of a process that may not set them up any more. */
#include "ready.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>

/* Answer a call with an error if its first argument is not below `from`; all others pass. */
static void forbid(long call, int error, unsigned int from, unsigned int flags)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned int)call, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, from, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned int)error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
	if (flags ? syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program)
		  : prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		give_up("seccomp");
}

/* The error that a call gives. */
static int error_of(long call, long argument)
{
	errno = 0;
	return syscall(call, argument, 0, 0) < 0 ? errno : 0;
}

static pthread_barrier_t set, judged;

/* Has one filter more than the others, which answers a call that a checkpoint makes in it. */
static void *confined(void *nothing)
{
	forbid(SYS_ioprio_get, EXFULL, 0, 0);
	pthread_barrier_wait(&set);
	pthread_barrier_wait(&judged);
	expect(error_of(SYS_ioprio_get, 1) == EXFULL, "the thread's own filter is gone");
	expect(error_of(SYS_getpriority, 0) == EMLINK, "the thread lost the process's filter");
	/* Gives the other thread its own, too, if the filters of both are the same objects. */
	forbid(SYS_getppid, EL2HLT, 0, SECCOMP_FILTER_FLAG_TSYNC);
	return nothing;
}

int main(void)
{
	begin();
	pthread_barrier_init(&set, NULL, 2);
	pthread_barrier_init(&judged, NULL, 2);
	forbid(SYS_getpriority, ENOTTY, 0, 0);
	forbid(SYS_getpriority, EMLINK, 0, 0); /* of several errors the latest filter's counts */
	forbid(SYS_uname, EXDEV, 0, SECCOMP_FILTER_FLAG_LOG);
	forbid(SYS_socket, EPROTO, 17, 0);
	forbid(SYS_setgroups, EBADE, 0, 0); /* which a restore calls */
	pthread_t thread;
	if (pthread_create(&thread, NULL, confined, NULL))
		give_up("pthread_create");
	pthread_barrier_wait(&set);
	pid_t child = fork();
	if (!child) { /* who could not set up a filter: neither no_new_privs nor the capability */
		if (setresgid(1001, 1001, 1001) || setresuid(1001, 1001, 1001))
			give_up("setresuid");
		sigset_t go;
		sigemptyset(&go);
		sigaddset(&go, GO);
		int got;
		sigwait(&go, &got);
		bool holds = error_of(SYS_getpriority, 0) == EMLINK && error_of(SYS_uname, 0) == EXDEV &&
			     prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0;
		_exit(holds ? 0 : 1);
	}
	ready_and_wait();
	expect(error_of(SYS_getpriority, 0) == EMLINK, "the filters come in another order");
	expect(error_of(SYS_ioprio_get, 1) == 0, "the other thread's filter came to this one");
	expect(error_of(SYS_uname, 0) == EXDEV, "a filter is gone");
	expect(error_of(SYS_socket, 17) == EPROTO && error_of(SYS_socket, 16) != EPROTO, "a filter is another");
	expect(error_of(SYS_setgroups, 0) == EBADE, "the last filter is gone");
	expect(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0, "no_new_privs was set");
	expect(getpriority(PRIO_PROCESS, 0) == -1, "getpriority is allowed");
	pthread_barrier_wait(&judged);
	pthread_join(thread, NULL);
	expect(error_of(SYS_getppid, 0) == EL2HLT, "the thread's filter was not given to all");
	int status;
	kill(child, GO);
	expect(waitpid(child, &status, 0) == child && status == 0, "the child's filters are gone: %#x", status);
	return verdict();
}
