/* Shared memory that the process itself may not read at the moment, and a shared mapping longer than its memfd. */
#include "ready.h"

int main(void)
{
	begin();
	char *closed = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int fd = memfd_create("short", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, PAGE + 10))
		give_up("memfd_create");
	char *beyond = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	strcpy(closed + PAGE, "closed");
	strcpy(beyond + PAGE, "beyond");
	mprotect(closed, 4 * PAGE, PROT_NONE);
	ready_and_wait();
	expect(!mprotect(closed, 4 * PAGE, PROT_READ | PROT_WRITE) && !strcmp(closed + PAGE, "closed"),
	       "memory that could not be read changed");
	expect(!strcmp(beyond + PAGE, "beyond"), "the last page changed");
	strcpy(closed, "written");
	return verdict();
}
