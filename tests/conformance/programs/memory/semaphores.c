/* Named semaphores: the C library makes one under a temporary name, by which maps knows it, and links it to its own. The
 * mapping and the name stay the same file. So do they of a file on disk that has lost the name by which it was mapped. */
#include "ready.h"

#include <semaphore.h>
#include <sys/stat.h>

static int value_by_name(const char *path)
{
	int value = -1, fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || pread(fd, &value, sizeof value, 0) != sizeof value)
		expect(false, "%s: %m", path);
	if (fd >= 0)
		close(fd);
	return value;
}

int main(void)
{
	begin();
	char name[64], path[128], first[PATH_MAX], second[PATH_MAX];
	snprintf(name, sizeof name, "/torpor-conformance-%d", getpid());
	snprintf(path, sizeof path, "/dev/shm/sem.%s", name + 1);
	snprintf(first, sizeof first, "%s", in_dir("first"));
	snprintf(second, sizeof second, "%s", in_dir("second"));
	sem_t *semaphore = sem_open(name, O_CREAT | O_EXCL, 0600, 7);
	if (semaphore == SEM_FAILED)
		give_up("sem_open");

	int fd = open(first, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, PAGE) || link(first, second) || unlink(first))
		give_up("file");
	int *mapped = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	*mapped = 17;
	ready_and_wait();

	expect(value_by_name(path) == 7, "the semaphore's name has another value");
	expect(!sem_wait(semaphore), "sem_wait: %m");
	expect(value_by_name(path) == 6, "the semaphore's name is of another file");
	expect(value_by_name(second) == 17, "the file has another content");
	*mapped = 18;
	expect(value_by_name(second) == 18, "the file's name is of another file");
	expect(access(first, F_OK) == -1, "the lost name is there again");
	sem_unlink(name);
	unlink(second);
	return verdict();
}
