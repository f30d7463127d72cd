/* Pages of files, on disk and in memory, that the program has overwritten with zeros: they are not what the file has
 * there, nor is a page of zeros in memory of no file anything else than an untouched one. */
#include "ready.h"

enum { PAGES = 40 };

static char initialised[8 * PAGE] __attribute__((aligned(PAGE))) = {[0 ... 8 * PAGE - 1] = 'i'};

static bool is_all(const char *at, char value, size_t size)
{
	for (size_t k = 0; k < size; k++)
		if (at[k] != value)
			return false;
	return true;
}

static char *map(int fd)
{
	char page[PAGE];
	memset(page, 'f', PAGE);
	for (int k = 0; k < PAGES; k++)
		if (write(fd, page, PAGE) != PAGE)
			give_up("write");
	char *mapped = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	if (mapped == MAP_FAILED)
		give_up("mmap");
	close(fd);
	return mapped;
}

int main(void)
{
	begin();
	const int rw = PROT_READ | PROT_WRITE;
	char *mapped = map(open(in_dir("file"), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
	char *memfd = map(memfd_create("file", MFD_CLOEXEC));
	char *memory = mmap(NULL, PAGES * PAGE, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		give_up("mmap");
	memset(mapped + 3 * PAGE, 0, 20 * PAGE);
	memset(mapped + 7 * PAGE, 'w', PAGE);
	memset(memfd + 3 * PAGE, 0, 20 * PAGE);
	memset(memfd + 7 * PAGE, 'w', PAGE);
	mprotect(mapped + 20 * PAGE, 2 * PAGE, PROT_READ);
	memset(initialised + PAGE, 0, 5 * PAGE);
	memset(memory, 'm', PAGES * PAGE);
	memset(memory + 5 * PAGE, 0, 20 * PAGE);
	ready_and_wait();

	for (int k = 0; k < PAGES; k++) {
		char wanted = k == 7 ? 'w' : k >= 3 && k < 23 ? 0 : 'f';
		expect(is_all(mapped + k * PAGE, wanted, PAGE), "page %d of the file begins with %d", k,
		       mapped[k * PAGE]);
		expect(is_all(memfd + k * PAGE, wanted, PAGE), "page %d of the memfd begins with %d", k,
		       memfd[k * PAGE]);
		wanted = k >= 5 && k < 25 ? 0 : 'm';
		expect(is_all(memory + k * PAGE, wanted, PAGE), "page %d of the memory begins with %d", k,
		       memory[k * PAGE]);
	}
	for (int k = 0; k < 8; k++)
		expect(is_all(initialised + k * PAGE, k >= 1 && k < 6 ? 0 : 'i', PAGE), "page %d of data changed", k);
	return verdict();
}
