/* Mappings that reach behind the end of their file, which has no descriptor any more: a touch there is a SIGBUS. */
#include "ready.h"

enum { PAGES = 16 };

static int gauge[2];

static char *map(long size, int flags)
{
	int fd = memfd_create("short", 0);
	if (fd < 0 || ftruncate(fd, size))
		give_up("memfd");
	char *memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (memory == MAP_FAILED)
		give_up("mmap");
	close(fd);
	return memory;
}

static bool there(const char *at)
{
	char byte;
	return write(gauge[1], at, 1) == 1 && read(gauge[0], &byte, 1) == 1;
}

static void expect_pages(const char *what, const char *memory, int pages, int without)
{
	for (int page = 0; page < PAGES; page++)
		if (page != without)
			expect(there(memory + page * PAGE) == (page < pages), "%s: page %d is %s", what, page,
			       page < pages ? "gone" : "there");
}

int main(void)
{
	begin();
	if (pipe(gauge))
		give_up("pipe");
	char *shared = map(3 * PAGE, MAP_SHARED), *empty = map(0, MAP_SHARED), *locked = map(2 * PAGE, MAP_PRIVATE);
	char *nothing = map(0, MAP_PRIVATE), *guarded = map(5 * PAGE, MAP_PRIVATE);
	if (munmap(shared + 8 * PAGE, PAGE) || munmap(empty + 8 * PAGE, PAGE))
		give_up("munmap");
	/* The kernel locks them and says that it cannot have touched all of them. */
	if (!mlock(locked, PAGES * PAGE) || !mlock(nothing, PAGES * PAGE) || errno != ENOMEM)
		give_up("mlock");
	bool guards = !madvise(guarded + 2 * PAGE, PAGE, 102 /* MADV_GUARD_INSTALL */);
	*shared = *locked = *guarded = 1;
	ready_and_wait();

	expect_pages("shared", shared, 3, 8);
	expect_pages("empty", empty, 0, 8);
	expect_pages("locked", locked, 2, -1);
	expect_pages("nothing", nothing, 0, -1);
	expect_pages("guarded", guarded, 5, guards ? 2 : -1);
	expect(!guards || !there(guarded + 2 * PAGE), "the guard is gone");
	expect(*shared == 1 && *locked == 1 && *guarded == 1, "the content is gone");
	return verdict();
}
