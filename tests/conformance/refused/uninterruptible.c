/* A thread that stands in an uninterruptible call: nobody can stop it. Another one runs on and is not held up. */
#include "ready.h"

#include <linux/sched.h>

static int to_child[2];
static volatile pid_t thread_tid;

/* Waits until its child ends, which shares no memory with it (clone(2), CLONE_VFORK). */
static void *wait_for_child(void *unused)
{
	thread_tid = own_tid();
	struct clone_args args = {.flags = CLONE_VFORK, .exit_signal = SIGCHLD};
	if (!syscall(SYS_clone3, &args, sizeof args)) {
		char byte;
		close(to_child[1]);
		_exit((int)read(to_child[0], &byte, 1));
	}
	return unused;
}

int main(void)
{
	begin();
	if (pipe2(to_child, O_CLOEXEC))
		give_up("pipe2");
	pthread_t thread;
	pthread_create(&thread, NULL, wait_for_child, NULL);
	for (char state = 0; state != 'D';) {
		char path[64], line[512];
		snprintf(path, sizeof path, "/proc/self/task/%d/stat", thread_tid);
		FILE *file = fopen(path, "re");
		if (file && fgets(line, sizeof line, file))
			state = strrchr(line, ')')[2];
		if (file)
			fclose(file);
		sched_yield();
	}
	ready_and_wait();
	close(to_child[1]);
	pthread_join(thread, NULL);
	return verdict();
}
