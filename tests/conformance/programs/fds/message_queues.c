/* POSIX message queues without messages: with a name and without, of a size of its own, shared with a child, waited at
 * by a reader and by epoll. */
#include "ready.h"

#include <mqueue.h>
#include <sys/stat.h>
#include <sys/epoll.h>

static mqd_t make(const char *name, int flags, mode_t mode, struct mq_attr *size)
{
	mqd_t queue = mq_open(name, flags | O_CREAT | O_EXCL, mode, size);
	if (queue < 0)
		unavailable("mq_open");
	return queue;
}

int main(void)
{
	begin();
	char name[64], message[8192];
	sprintf(name, "/torpor-conformance-%d (deleted)", getpid()); /* as the kernel writes of one that is gone */
	umask(0);
	struct mq_attr size = {.mq_maxmsg = 3, .mq_msgsize = 100};
	mqd_t nameless = make(name, O_RDWR, 0600, NULL), nameless_too;
	nameless_too = mq_open(name, O_WRONLY);
	mq_unlink(name);
	mqd_t named = make(name, O_RDWR | O_NONBLOCK, 0640, &size); /* has the name by now */
	mqd_t reading = mq_open(name, O_RDONLY);
	if (nameless_too < 0 || reading < 0)
		give_up("mq_open");
	int through_exec = dup(named); /* mq_open() itself sets FD_CLOEXEC, always */
	if (read(reading, message, 7) != 7) /* what the kernel tells of it (mq_overview(7)) */
		give_up("read");
	/* Its file has any size that it is given: the queue does not care. */
	if (ftruncate(nameless_too, 3) || ftruncate(named, 1 << 20))
		give_up("ftruncate");
	int epoll = epoll_create1(0);
	struct epoll_event event = {EPOLLIN, {.u64 = 77}};
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, named, &event))
		give_up("epoll_ctl");
	pid_t child = fork();
	if (!child)
		_exit(mq_receive(nameless, message, sizeof message, NULL) == 6 && !strcmp(message, "hello") ? 0 : 1);
	sleeps_in(child, SYS_mq_timedreceive);
	ready_and_wait();

	expect(fcntl(named, F_GETFD) == FD_CLOEXEC && !fcntl(through_exec, F_GETFD), "FD_CLOEXEC");
	expect(lseek(reading, 0, SEEK_CUR) == 7 && !lseek(named, 0, SEEK_CUR), "where what it tells was read");
	struct stat file;
	expect(!fstat(nameless, &file) && file.st_size == 3 && !file.st_nlink, "the file of the nameless queue");
	expect(!fstat(reading, &file) && file.st_size == 1 << 20 && file.st_nlink == 1, "the file of the named queue");
	struct mq_attr now;
	expect(!mq_getattr(named, &now) && now.mq_maxmsg == 3 && now.mq_msgsize == 100 && !now.mq_curmsgs,
	       "a queue of %ld messages of %ld bytes", now.mq_maxmsg, now.mq_msgsize);
	expect(now.mq_flags & O_NONBLOCK, "O_NONBLOCK was lost");
	expect(!mq_getattr(reading, &now) && !(now.mq_flags & O_NONBLOCK), "O_NONBLOCK came");
	expect(!mq_send(nameless_too, "hello", 6, 1), "the nameless queue: %s", strerror(errno));
	int ended;
	expect(waitpid(child, &ended, 0) == child && !ended, "who waited for a message: %x", ended);
	expect(mq_send(reading, "x", 1, 0) && errno == EBADF, "what was opened for reading can be written");
	expect(!mq_send(named, "low", 4, 1) && !mq_send(named, "high", 5, 9), "sending: %s", strerror(errno));
	expect(epoll_wait(epoll, &event, 1, 60000) == 1 && event.data.u64 == 77, "epoll does not tell of it");
	unsigned int priority;
	expect(mq_receive(reading, message, sizeof message, &priority) == 5 && priority == 9, "priorities");
	mqd_t again = mq_open(name, O_RDONLY);
	expect(mq_receive(again, message, sizeof message, &priority) == 4 && priority == 1, "the name leads elsewhere");
	expect(!mq_unlink(name) && mq_open(name, O_RDONLY) < 0 && errno == ENOENT, "removing it: %s", strerror(errno));
	return verdict();
}
