/* An io_uring, and its rings in memory. */
#include "ready.h"

#include <linux/io_uring.h>

int main(void)
{
	begin();
	struct io_uring_params parameters;
	memset(&parameters, 0, sizeof parameters);
	int fd = (int)syscall(SYS_io_uring_setup, 8, &parameters);
	if (fd < 0)
		unavailable("io_uring_setup");
	size_t size = parameters.sq_off.array + parameters.sq_entries * 4;
	void *ring =
		mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, IORING_OFF_SQ_RING);
	if (ring == MAP_FAILED)
		give_up("mmap");
	ready_and_wait();
	expect(syscall(SYS_io_uring_enter, fd, 0, 0, 0, NULL, 0) == 0, "the ring is broken: %s",
	       strerror(errno));
	return verdict();
}
