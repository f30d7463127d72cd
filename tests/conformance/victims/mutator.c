/* Changes its memory in every way there is, for ever, round by round: test_series.py compares what a series of
 * checkpoints keeps of it with what a single one keeps. Rounds are counted in a mapped file, named by its argument;
 * the second number there is the one at which to pause: memory must not grow while the tester has no processor. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, AREAS = 24, LARGEST = 2048, FILE_PAGES = 4096 };
static struct {
	unsigned char *at;
	size_t pages;
} areas[AREAS];
static uint64_t state = 88172645463325252ULL;
static int source;

static uint64_t chance(uint64_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % below;
}

static void map(int k)
{
	areas[k].pages = 1 + chance(chance(4) ? 64 : LARGEST);
	size_t size = areas[k].pages * PAGE;
	int fd = chance(4) ? -1 : source;
	int flags = MAP_PRIVATE | (fd < 0 ? MAP_ANONYMOUS : 0) | (chance(3) ? 0 : MAP_NORESERVE);
	areas[k].at = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (areas[k].at == MAP_FAILED)
		abort();
	if (!chance(4))
		madvise(areas[k].at, size, MADV_HUGEPAGE);
}

static void change(int k)
{
	unsigned char *at = areas[k].at;
	size_t pages = areas[k].pages, first = chance(pages), count = 1 + chance(pages - first);
	switch (chance(12)) {
	case 0: /* all of it */
		memset(at, (int)chance(256), pages * PAGE);
		break;
	case 1: /* by the kernel */
		if (pread(source, at + first * PAGE, count * PAGE, 0) < 0)
			abort();
		break;
	case 2:
		madvise(at + first * PAGE, count * PAGE, MADV_DONTNEED);
		break;
	case 3: /* somewhere else, and another in its place */
		munmap(at, pages * PAGE);
		map(k);
		break;
	case 4: { /* larger, perhaps elsewhere */
		size_t more = pages + 1 + chance(32);
		if (more > FILE_PAGES)
			break;
		unsigned char *moved = mremap(at, pages * PAGE, more * PAGE, MREMAP_MAYMOVE);
		if (moved != MAP_FAILED) {
			areas[k].at = moved;
			areas[k].pages = more;
		}
		break;
	}
	case 5: { /* what another one had, moved to the place of this one */
		int other = (int)chance(AREAS);
		if (other == k || areas[other].pages > pages)
			break;
		munmap(at, pages * PAGE);
		void *moved = mremap(areas[other].at, areas[other].pages * PAGE, areas[other].pages * PAGE,
				     MREMAP_MAYMOVE | MREMAP_FIXED, at);
		if (moved != MAP_FAILED) {
			areas[k] = areas[other];
			areas[k].at = moved;
		} else {
			map(k);
			munmap(areas[other].at, areas[other].pages * PAGE);
		}
		map(other);
		break;
	}
	case 6: /* a part that cannot be touched, for a while */
		mprotect(at + first * PAGE, count * PAGE, PROT_NONE);
		mprotect(at + first * PAGE, count * PAGE, PROT_READ | PROT_WRITE);
		break;
	case 7: /* zeros, written */
		memset(at + first * PAGE, 0, count * PAGE);
		break;
	case 8: /* read only: no page becomes its own */
		for (size_t p = first; p < first + count; p++)
			state += at[p * PAGE] & 0;
		break;
	default: /* here and there a byte */
		for (int n = 0; n < 8; n++)
			at[chance(pages * PAGE)] ^= (unsigned char)(1 + chance(255));
	}
}

static void *thread(void *argument)
{
	unsigned char local[PAGE];
	memset(local, (int)chance(256), sizeof local);
	free(malloc(1 + chance(1 << 18)));
	return local[chance(PAGE)] == 7 ? argument : NULL;
}

int main(int argc, char **argv)
{
	if (argc != 2)
		return 2;
	source = open("source", O_RDWR | O_CREAT, 0600);
	for (off_t page = 0; page < FILE_PAGES; page += 3)
		if (pwrite(source, &page, sizeof page, page * PAGE) != sizeof page)
			return 3;
	int file = open(argv[1], O_RDWR | O_CREAT, 0600);
	if (ftruncate(source, FILE_PAGES * PAGE) || ftruncate(file, PAGE))
		return 3;
	volatile uint64_t *rounds = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	for (int k = 0; k < AREAS; k++)
		map(k);
	for (;;) {
		for (int n = 0; n < 4; n++)
			change((int)chance(AREAS));
		char *heap = malloc(1 + chance(1 << 16)); /* some are lost: the heap grows */
		heap[0] = (char)chance(256);
		if (chance(64))
			free(heap);
		pthread_t made;
		if (!chance(16) && !pthread_create(&made, NULL, thread, NULL))
			pthread_join(made, NULL);
		if (!chance(64)) { /* copy on write: both sides write */
			pid_t child = fork();
			if (!child) {
				change((int)chance(AREAS));
				_exit(0);
			}
			change((int)chance(AREAS));
			waitpid(child, NULL, 0);
		}
		if (!chance(4096)) { /* the heap is given back now and then */
			for (int k = 0; k < AREAS; k++) {
				munmap(areas[k].at, areas[k].pages * PAGE);
				map(k);
			}
		}
		++rounds[0];
		while (rounds[0] >= rounds[1])
			usleep(500);
	}
}
