/* POSIX message queues, one with a name and one without. */
#include "../c/ready.h"

#include <mqueue.h>

static mqd_t make(const char *name)
{
	mqd_t queue = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, NULL);
	if (queue < 0)
		unavailable("mq_open");
	return queue;
}

int main(void)
{
	begin();
	char name[64], text[32];
	sprintf(name, "/torpor-conformance-%d", getpid());
	mqd_t nameless = make(name);
	mq_unlink(name);
	mqd_t named = make(name);
	sprintf(text, "%d %d\n", nameless, named);
	write_file("numbers", text);
	ready_and_wait();
	expect(!mq_unlink(name), "the queue's name is gone");
	expect(!mq_send(named, "", 0, 0) && !mq_send(nameless, "", 0, 0), "a queue is gone");
	return verdict();
}
