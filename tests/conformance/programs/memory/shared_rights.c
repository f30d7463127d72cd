/* Shared memory that the process itself may not read at the moment, a shared mapping longer than its memfd, and what is
 * mapped by a descriptor for reading, too: that mapping cannot be made one for writing. */
#include "ready.h"

/* Maps a page for writing, and by another descriptor for reading, which is what is given. */
static char *both_ways(int fd, const char *text)
{
	char name[64];
	snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
	int reading = open(name, O_RDONLY | O_CLOEXEC);
	if (reading < 0 || ftruncate(fd, PAGE))
		give_up("opening it again");
	char *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *look = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, reading, 0);
	if (at == MAP_FAILED || look == MAP_FAILED)
		give_up("mmap");
	strcpy(at, text);
	close(fd);
	close(reading);
	return look;
}

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
	char *look[] = {
		both_ways(memfd_create("both ways", MFD_CLOEXEC), "memory"),
		both_ways(open("both-ways", O_RDWR | O_CREAT | O_CLOEXEC, 0600), "a file"),
	};
	ready_and_wait();
	expect(!mprotect(closed, 4 * PAGE, PROT_READ | PROT_WRITE) && !strcmp(closed + PAGE, "closed"),
	       "memory that could not be read changed");
	expect(!strcmp(beyond + PAGE, "beyond"), "the last page changed");
	strcpy(closed, "written");
	for (int k = 0; k < 2; k++) {
		expect(!strcmp(look[k], k ? "a file" : "memory"), "what is mapped both ways changed");
		expect(mprotect(look[k], PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES,
		       "what was mapped for reading may be written, kind %d", k);
	}
	return verdict();
}
