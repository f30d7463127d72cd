/* Memfds that were sealed: F_SEAL_FUTURE_WRITE lets mappings that may be written live on, and forbids new ones. */
#include "ready.h"

enum { SIZE = 2 * PAGE };

static char *map(int fd, int protection)
{
	char *memory = mmap(NULL, SIZE, protection, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
		give_up("mmap");
	return memory;
}

static int opened_again(int fd)
{
	char path[64];
	sprintf(path, "/proc/self/fd/%d", fd);
	int reader = open(path, O_RDONLY);
	if (reader < 0)
		give_up("open");
	return reader;
}

static int seals_of(int fd)
{
	int seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0)
		give_up("F_GET_SEALS");
	return seals;
}

int main(void)
{
	begin();
	int future = memfd_create("future", MFD_ALLOW_SEALING), whole = memfd_create("whole", MFD_ALLOW_SEALING);
	if (ftruncate(future, SIZE) || ftruncate(whole, SIZE))
		give_up("ftruncate");
	char *writable = map(future, PROT_READ | PROT_WRITE);
	strcpy(writable, "before");
	if (fcntl(future, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_SEAL) ||
	    fcntl(whole, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW))
		give_up("F_ADD_SEALS");
	char *later = map(opened_again(future), PROT_READ), *read_only = map(opened_again(whole), PROT_READ);
	int of_future = seals_of(future), of_whole = seals_of(whole);
	ready_and_wait();

	expect(seals_of(future) == of_future, "the seals %x became %x", of_future, seals_of(future));
	expect(seals_of(whole) == of_whole, "the seals %x became %x", of_whole, seals_of(whole));
	expect(!strcmp(writable, "before"), "the content is gone");
	strcpy(writable, "after");
	expect(!strcmp(later, "after"), "they are apart");
	expect(mprotect(later, SIZE, PROT_READ | PROT_WRITE), "what was mapped later became writable");
	expect(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, future, 0) == MAP_FAILED, "the seal is broken");
	expect(write(whole, "x", 1) < 0 && !*read_only, "the other seal is broken");
	return verdict();
}
