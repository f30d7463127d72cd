/* A file of /dev/shm that is mapped in part, closed, and ends within a page: it comes back whole, and as long as it was.
 * PostgreSQL has such. */
#include "ready.h"

#include <sys/stat.h>

enum { LENGTH = 3 * PAGE + 1234 };

int main(void)
{
	begin();
	char name[64], last = 'z';
	snprintf(name, sizeof name, "/torpor-conformance-%d-tail", getpid());
	int fd = shm_open(name, O_RDWR | O_CREAT, 0640);
	if (fd < 0 || ftruncate(fd, LENGTH) || pwrite(fd, &last, 1, LENGTH - 1) != 1)
		give_up("shm_open");
	char *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		give_up("mmap");
	at[7] = 'a';
	close(fd);
	ready_and_wait();

	struct stat status;
	fd = shm_open(name, O_RDWR, 0640);
	expect(fd >= 0 && !fstat(fd, &status), "it is gone");
	expect(status.st_size == LENGTH, "its length became %ld", (long)status.st_size);
	expect((status.st_mode & 0777) == 0640, "its mode became %o", status.st_mode & 0777);
	expect(at[7] == 'a', "what is mapped became %d", at[7]);
	expect(pread(fd, &last, 1, LENGTH - 1) == 1 && last == 'z', "what is not mapped became %d", last);
	at[8] = 'b';
	expect(pread(fd, &last, 1, 8) == 1 && last == 'b', "the mapping is not of that file");
	shm_unlink(name);
	return verdict();
}
