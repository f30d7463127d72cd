/* A performance counter. */
#include "ready.h"

#include <linux/perf_event.h>
#include <sys/ioctl.h>

int main(void)
{
	begin();
	struct perf_event_attr attributes = {.type = PERF_TYPE_SOFTWARE,
					     .size = sizeof attributes,
					     .config = PERF_COUNT_SW_TASK_CLOCK,
					     .exclude_kernel = 1};
	int fd = (int)syscall(SYS_perf_event_open, &attributes, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
	if (fd < 0)
		unavailable("perf_event_open");
	ready_and_wait();
	uint64_t count = 0;
	expect(read(fd, &count, 8) == 8 && count, "the counter stands still");
	return verdict();
}
