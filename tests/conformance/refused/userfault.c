/* A userfaultfd and the range it watches. */
#include "ready.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

int main(void)
{
	begin();
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	struct uffdio_api api = {.api = UFFD_API};
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		unavailable("userfaultfd");
	char *range = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register watch = {.range = {(uintptr_t)range, 4 * PAGE},
					.mode = UFFDIO_REGISTER_MODE_MISSING};
	if (ioctl(fd, UFFDIO_REGISTER, &watch))
		give_up("UFFDIO_REGISTER");
	ready_and_wait();
	struct uffdio_zeropage zero = {.range = {(uintptr_t)range, PAGE}};
	expect(!ioctl(fd, UFFDIO_ZEROPAGE, &zero) && !range[0], "the range is not watched: %s",
	       strerror(errno));
	return verdict();
}
