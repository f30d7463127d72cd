/* Private mappings of memory that others may write, and of a file without a name: pages that were not written there show
 * what is written to the object, before and after; pages that were written do not. */
#include "ready.h"

#include <sys/stat.h>

enum { PAGES = 5, KINDS = 4 };

struct object {
	const char *what;
	int fd;
	char *shared, *own;
};

static void map(struct object *object, const char *what, int fd, bool shared, bool keep_open)
{
	*object = (struct object){what, fd, NULL, NULL};
	if (fd < 0 || ftruncate(fd, PAGES * PAGE))
		give_up("%s", what);
	for (int k = 0; k < PAGES; k++)
		if (pwrite(fd, &(char){(char)('a' + k)}, 1, k * PAGE) != 1)
			give_up("%s", what);
	object->own = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	if (shared)
		object->shared = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (object->own == MAP_FAILED || object->shared == MAP_FAILED)
		give_up("%s", what);
	object->own[PAGE] = 'X';
	object->own[3 * PAGE] = 'Y';
	if (!keep_open) {
		close(fd);
		object->fd = -1;
	}
}

static void write_to(const struct object *object, int page, char value)
{
	if (object->shared)
		object->shared[page * PAGE] = value;
	else if (pwrite(object->fd, &value, 1, page * PAGE) != 1)
		expect(false, "%s: %m", object->what);
}

int main(void)
{
	begin();
	char name[64], path[PATH_MAX];
	struct object objects[KINDS];
	snprintf(name, sizeof name, "/torpor-conformance-%d-private", getpid());
	snprintf(path, sizeof path, "%s", in_dir("file"));
	map(&objects[0], "a memfd", memfd_create("it", MFD_CLOEXEC), true, false);
	map(&objects[1], "an open memfd", memfd_create("it", MFD_CLOEXEC), false, true);
	map(&objects[2], "a file of /dev/shm", shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600), false, false);
	map(&objects[3], "a file without a name", open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600), false, true);
	unlink(path);
	ready_and_wait();

	objects[2].fd = shm_open(name, O_RDWR, 0600);
	for (int k = 0; k < KINDS; k++) {
		const struct object *object = &objects[k];
		expect(object->own[0] == 'a', "%s: what it did not write became %d", object->what, object->own[0]);
		expect(object->own[PAGE] == 'X', "%s: what it wrote became %d", object->what, object->own[PAGE]);
		write_to(object, 1, '1');
		write_to(object, 2, '2');
		expect(object->own[PAGE] == 'X', "%s: what it wrote was written over", object->what);
		expect(object->own[2 * PAGE] == '2', "%s: it does not follow", object->what);
		expect(object->own[3 * PAGE] == 'Y', "%s: what it wrote became %d", object->what, object->own[3 * PAGE]);
		object->own[4 * PAGE] = 'Z';
		char there = 0;
		if (object->fd >= 0 && (pread(object->fd, &there, 1, 4 * PAGE) != 1 || there != 'e'))
			expect(false, "%s: what was written privately came to it", object->what);
	}
	shm_unlink(name);
	return verdict();
}
