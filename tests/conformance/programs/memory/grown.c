/* Memory that grew in pieces and is hardly touched, together more than the host has: the kernel grants each piece, and
 * would refuse the whole (vm.overcommit_memory=0). Mappings side by side, a private one of a file, the heap, and one that
 * was writable once and has something in it. */
#include "ready.h"

#include <sys/sysinfo.h>

enum { PIECES = 4 };

static char *grown(size_t size, int prot, int fd)
{
	char *start = mmap(NULL, PIECES * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (start == MAP_FAILED)
		give_up("mmap");
	int flags = MAP_PRIVATE | MAP_FIXED | (fd < 0 ? MAP_ANONYMOUS : 0);
	for (int k = 0; k < PIECES; k++)
		if (mmap(start + k * size, size, prot, flags, fd, (off_t)(k * size)) == MAP_FAILED)
			unavailable("pieces of memory");
	return start;
}

static void touch(char *start, size_t size, char mark)
{
	for (int k = 0; k < PIECES; k++)
		start[k * size] = (char)(mark + k);
}

static void look(const char *what, const char *start, size_t size, char mark)
{
	for (int k = 0; k < PIECES; k++) {
		expect(start[k * size] == mark + k, "%s: piece %d has %d", what, k, start[k * size]);
		expect(start[k * size + size / 2] == 0, "%s: piece %d is not empty", what, k);
	}
}

int main(void)
{
	begin();
	struct sysinfo host;
	sysinfo(&host);
	size_t size = (host.totalram + host.totalswap) * host.mem_unit / 2 / PAGE * PAGE;

	int fd = open(in_dir("sparse"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)(PIECES * size)))
		give_up("sparse file");
	char *memory = grown(size, PROT_READ | PROT_WRITE, -1);
	char *file = grown(size, PROT_READ | PROT_WRITE, fd);
	char *once = grown(size, PROT_READ | PROT_WRITE, -1);
	char *heap = sbrk(0);
	for (int k = 0; k < PIECES; k++)
		if (sbrk((intptr_t)size) == (void *)-1)
			unavailable("a heap in pieces");
	touch(memory, size, 'a');
	touch(file, size, 'f');
	touch(heap, size, 'h');
	touch(once, size, 'o');
	mprotect(once, PIECES * size, PROT_NONE);
	close(fd);
	ready_and_wait();

	look("memory", memory, size, 'a');
	look("a file", file, size, 'f');
	look("the heap", heap, size, 'h');
	expect(!mprotect(once, PIECES * size, PROT_READ | PROT_WRITE), "what was writable cannot be again: %m");
	look("what was writable", once, size, 'o');
	expect(sbrk((intptr_t)size) != (void *)-1, "the heap does not grow: %m");
	unlink(in_dir("sparse"));
	return verdict();
}
