/* Memory that nobody but the process may read (memfd_secret). */
#include "ready.h"

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif

int main(void)
{
	begin();
	int fd = (int)syscall(SYS_memfd_secret, O_CLOEXEC);
	if (fd < 0 || ftruncate(fd, PAGE))
		unavailable("memfd_secret");
	char *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		unavailable("mapping secret memory");
	close(fd);
	strcpy(at, "secret");
	ready_and_wait();
	expect(!strcmp(at, "secret"), "the secret changed");
	return verdict();
}
