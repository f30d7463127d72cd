/* Private mappings of files that are gone: written and unwritten pages, beyond the file's end, without any right, and
 * of a file that was replaced by another of its name. */
#include "ready.h"

enum { PAGES = 40 };

static void make(const char *name, char letter)
{
	int fd = open(in_dir(name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	char page[PAGE];
	for (int k = 0; k < PAGES; k++) {
		memset(page, letter + k, PAGE);
		if (write(fd, page, k == PAGES - 1 ? 100 : PAGE) < 0)
			give_up("write");
	}
	close(fd);
}

static char *map(const char *name, int pages, int protection)
{
	int fd = open(in_dir(name), O_RDONLY | O_CLOEXEC);
	char *at = mmap(NULL, (size_t)pages * PAGE, protection, MAP_PRIVATE, fd, 0);
	if (at == MAP_FAILED)
		give_up("mmap");
	close(fd);
	return at;
}

static void check(const char *at, char letter, const char *what)
{
	for (int k = 0; k < PAGES; k++) {
		int size = k == PAGES - 1 ? 100 : PAGE;
		for (int byte = 0; byte < size; byte++)
			if (at[k * PAGE + byte] != (char)(letter + k)) {
				expect(k == 3, "%s: page %d changed", what, k);
				break;
			}
	}
}

int main(void)
{
	begin();
	make("gone", 'a');
	make("replaced", '0');
	const int rw = PROT_READ | PROT_WRITE;
	char *gone = map("gone", PAGES, rw), *beyond = map("gone", 1000, rw);
	char *closed = map("gone", PAGES, PROT_NONE), *replaced = map("replaced", PAGES, PROT_READ);
	strcpy(gone + 3 * PAGE, "written");
	unlink(in_dir("gone"));
	char other[PATH_MAX];
	strcpy(other, in_dir("replaced"));
	make("new", 'x');
	if (rename(in_dir("new"), other))
		give_up("rename");
	ready_and_wait();

	check(gone, 'a', "a file that is gone");
	expect(!strcmp(gone + 3 * PAGE, "written"), "a written page of a file that is gone changed");
	check(beyond, 'a', "a mapping longer than its file");
	check(replaced, '0', "a file that was replaced");
	mprotect(closed, PAGES * PAGE, PROT_READ);
	check(closed, 'a', "a mapping without any right");
	return verdict();
}
