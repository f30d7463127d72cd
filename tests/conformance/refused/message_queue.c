/* POSIX message queues: one with a message, and one that notifies. */
#include "ready.h"

#include <mqueue.h>

static mqd_t make(const char *name)
{
	mqd_t queue = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, NULL);
	if (queue < 0)
		unavailable("mq_open");
	mq_unlink(name);
	return queue;
}

int main(void)
{
	begin();
	char name[64], text[32], message[8192];
	sprintf(name, "/torpor-conformance-%d", getpid());
	mqd_t full = make(name), empty = make(name);
	struct sigevent event = {.sigev_notify = SIGEV_NONE};
	if (mq_send(full, "kept", 5, 3) || mq_notify(empty, &event))
		give_up("mq_send, mq_notify");
	sprintf(text, "%d %d\n", full, empty);
	write_file("numbers", text);
	ready_and_wait();
	expect(mq_receive(full, message, sizeof message, NULL) == 5 && !strcmp(message, "kept"), "the message is gone");
	expect(!mq_send(empty, "", 0, 0), "a queue is gone");
	return verdict();
}
