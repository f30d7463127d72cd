/* A context of the old asynchronous I/O: its ring is in memory, its state is not. */
#include "ready.h"

#include <linux/aio_abi.h>

int main(void)
{
	begin();
	aio_context_t context = 0;
	if (syscall(SYS_io_setup, 8, &context))
		unavailable("io_setup");
	ready_and_wait();
	struct io_event event;
	struct timespec none = {0, 0};
	expect(syscall(SYS_io_getevents, context, 0, 1, &event, &none) == 0, "the context is gone: %s",
	       strerror(errno));
	return verdict();
}
