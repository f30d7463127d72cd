/* Shared memory of which next to nothing was written: it stays so, of whichever kind it is, and what was written stays
 * where it is. */
#include "ready.h"

#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/stat.h>

enum { KINDS = 5, WRITTEN = 3 };
#define SIZE ((size_t)1 << 30)
static const size_t places[WRITTEN] = {5 << 20, (5 << 20) + 2 * PAGE, SIZE - PAGE};
static const char *const names[KINDS] = {"anonymous", "memfd", "closed memfd", "/dev/shm", "System V"};
static char *at[KINDS];

static char *map(int fd)
{
	int flags = MAP_SHARED | MAP_NORESERVE | (fd < 0 ? MAP_ANONYMOUS : 0);
	char *mapped = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (mapped == MAP_FAILED)
		give_up("mmap");
	return mapped;
}

static int sized(int fd)
{
	if (fd < 0 || ftruncate(fd, SIZE))
		give_up("a file in memory");
	return fd;
}

/* How many pages there are, without touching any. */
static size_t there(const char *memory)
{
	static unsigned char answer[SIZE / PAGE];
	size_t count = 0;
	if (mincore((void *)memory, SIZE, answer))
		give_up("mincore");
	for (size_t page = 0; page < SIZE / PAGE; page++)
		count += answer[page] & 1;
	return count;
}

int main(void)
{
	begin();
	char name[64];
	snprintf(name, sizeof name, "/torpor-conformance-%d-sparse", getpid());
	int open_one = sized(memfd_create("open", MFD_CLOEXEC)), closed = sized(memfd_create("closed", MFD_CLOEXEC));
	int named = sized(shm_open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
	int segment = shmget(IPC_PRIVATE, SIZE, IPC_CREAT | SHM_NORESERVE | 0600);
	if (segment < 0)
		give_up("shmget");
	at[0] = map(-1), at[1] = map(open_one), at[2] = map(closed), at[3] = map(named),
	at[4] = shmat(segment, NULL, 0);
	if (at[4] == (void *)-1)
		give_up("shmat");
	close(closed);
	close(named);
	for (int kind = 0; kind < KINDS; kind++)
		for (int k = 0; k < WRITTEN; k++)
			memset(at[kind] + places[k], 'a' + kind + k, PAGE);
	for (int kind = 0; kind < KINDS; kind++) /* it is there, and in no page table */
		madvise(at[kind] + places[0], PAGE, MADV_DONTNEED);
	ready_and_wait();

	for (int kind = 0; kind < KINDS; kind++) {
		expect(there(at[kind]) == WRITTEN, "of %s there are %zu pages", names[kind], there(at[kind]));
		for (int k = 0; k < WRITTEN; k++)
			for (int byte = 0; byte < PAGE; byte += 511)
				expect(at[kind][places[k] + byte] == 'a' + kind + k, "%s, page %d changed", names[kind],
				       k);
		expect(at[kind][places[1] + PAGE] == 0, "%s: a page was written", names[kind]);
	}
	struct stat status;
	expect(!fstat(open_one, &status) && status.st_blocks < 100, "the memfd takes %ld blocks",
	       (long)status.st_blocks);
	shm_unlink(name);
	shmctl(segment, IPC_RMID, NULL);
	return verdict();
}
