/* Locks of open file descriptions and flock on what is no file: queues, pidfds, files of /proc, pipes, sockets, epoll. */
#include "ready.h"

#include <mqueue.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>

enum { KINDS = 6 };

static int locks_of(int fd, char *text, size_t size)
{
	char path[64], line[256];
	int count = 0;

	sprintf(path, "/proc/self/fdinfo/%d", fd);
	FILE *info = fopen(path, "r");
	while (info && fgets(line, sizeof(line), info))
		if (!strncmp(line, "lock:", 5)) {
			count++;
			snprintf(text, size, "%s", line);
		}
	fclose(info);
	return count;
}

int main(void)
{
	begin();
	char name[64], text[256];
	int pipes[2], sockets[2];
	sprintf(name, "/torpor-locked-%d", getpid());
	mqd_t queue = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, NULL);
	if (queue < 0)
		unavailable("mq_open");
	mq_unlink(name);
	pid_t child = fork();
	if (!child) {
		pause();
		_exit(0);
	}
	sleeps_in(child, SYS_pause);
	if (pipe(pipes) || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets))
		give_up("pipe");
	int fds[KINDS] = {queue, (int)syscall(SYS_pidfd_open, child, 0), open("/proc/self/stat", O_RDONLY),
			  pipes[0], sockets[0], epoll_create1(0)};
	/* Shared locks: what has no inode of its own shares one with all other programs. */
	struct flock range = {.l_type = F_RDLCK, .l_start = 3, .l_len = 5};
	for (int i = 0; i < KINDS; i++)
		if (fds[i] < 0 || fcntl(fds[i], F_OFD_SETLK, &range) || flock(fds[i], LOCK_SH))
			give_up("locking");
	ready_and_wait();

	for (int i = 0; i < KINDS; i++) {
		int count = locks_of(fds[i], text, sizeof(text));
		expect(count == 2, "descriptor %d of %d has %d locks: %s", i, KINDS, count, text);
	}
	kill(child, SIGKILL);
	expect(waitpid(child, NULL, 0) == child, "the child");
	return verdict();
}
