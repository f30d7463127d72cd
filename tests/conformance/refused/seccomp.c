/* A system-call filter of its own, as root can read it and a user cannot: seccomp [ACTION [CALL]].
 *
 * An action in hexadecimal, a call by its number: a filter that answers it so. Without, one that does no harm. "strict":
 * a child in the strict mode. */
#include "ready.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

static void filter(unsigned int call, unsigned int action)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[3])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0xabcdef, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		unavailable("seccomp");
}

int main(int count, char **arguments)
{
	begin();
	bool strict = count > 1 && !strcmp(arguments[1], "strict");
	unsigned int call = count > 2 ? (unsigned int)atoi(arguments[2]) : SYS_getpriority;
	int pipes[2], status = 0;
	pid_t child = 0;
	if (!strict) {
		filter(call, count > 1 ? (unsigned int)strtoul(arguments[1], NULL, 16) : SECCOMP_RET_ERRNO | EMLINK);
	} else {
		if (pipe2(pipes, O_CLOEXEC))
			give_up("pipe2");
		child = fork();
		if (!child) {
			char byte;
			if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT))
				_exit(UNAVAILABLE);
			syscall(SYS_exit, read(pipes[0], &byte, 1) != 1);
		}
		sleeps_in(child, SYS_read);
	}
	ready_and_wait();
	if (strict)
		expect(write(pipes[1], "x", 1) == 1 && waitpid(child, &status, 0) == child && !status,
		       "the child in the strict mode ended with %#x", status);
	else if (count == 1)
		expect(syscall(SYS_getpriority, 0, 0, 0, 0xabcdef) == -1 && errno == EMLINK, "the filter is gone");
	return verdict();
}
