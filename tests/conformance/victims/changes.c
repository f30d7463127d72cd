/* Does to its memory what a program can do to it, a number of times for each line that it reads ("COUNT\n"), and says
 * "done" after each: test_changes.py compares what a series of checkpoints keeps with what is there. Between two lines it
 * does nothing. Arguments: a seed, and what kind of process it is to be. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* 6.1 */
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102 /* 6.13 */
#define MADV_GUARD_REMOVE 103
#endif

enum { PAGE = 4096, HUGE = 2 << 20, AREAS = 12, SMALL = 48, LARGE = 1100, FILES = 3, FILE_PAGES = 256 };
enum kind { ANONYMOUS, FILE_PRIVATE, SHARED, MEMFD, HUGETLB, KINDS };

static struct area {
	unsigned char *at;
	size_t pages, offset; /* the offset in pages */
	enum kind kind;
	int file;
} areas[AREAS];
static int files[FILES];
static uint64_t state;
static sigjmp_buf out_of_reach;
static int forks;

static uint64_t chance(uint64_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % below;
}

static void reached(int signal)
{
	(void)signal; /* behind the end of a file, a guard, or not to be touched at the moment */
	siglongjmp(out_of_reach, 1);
}

static size_t length(const struct area *area)
{
	return area->pages * PAGE;
}

static void map(struct area *area, void *where)
{
	static uintptr_t place = 0x200000000000; /* somebody else writes there and in the next 16 TiB */
	int flags = where ? MAP_FIXED : 0, fd = -1;
	area->kind = (enum kind)chance(KINDS - (chance(4) ? 1 : 0));
	area->pages = where && area->pages ? area->pages : 1 + chance(chance(6) ? SMALL : LARGE);
	area->offset = 0;
	switch (area->kind) {
	case FILE_PRIVATE:
		area->file = (int)chance(FILES);
		area->offset = chance(FILE_PAGES / 2);
		fd = files[area->file];
		flags |= MAP_PRIVATE;
		break;
	case SHARED:
		flags |= MAP_SHARED | MAP_ANONYMOUS;
		break;
	case MEMFD:
		fd = memfd_create("changes", MFD_CLOEXEC);
		if (ftruncate(fd, (off_t)(LARGE * PAGE)))
			abort();
		area->offset = chance(8);
		flags |= MAP_SHARED;
		break;
	case HUGETLB:
		if (!where) {
			area->at = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB,
					-1, 0);
			if (area->at != MAP_FAILED) {
				area->pages = HUGE / PAGE;
				return;
			}
		}
		area->kind = ANONYMOUS; /* the host has none to spare */
					/* fall through */
	default:
		flags |= MAP_PRIVATE | MAP_ANONYMOUS | (chance(3) ? 0 : MAP_NORESERVE);
	}
	place += 1 << 26;
	area->at = mmap(where ? where : (void *)place, length(area), PROT_READ | PROT_WRITE, flags, fd,
			(off_t)(area->offset * PAGE));
	if (area->at == MAP_FAILED)
		abort();
	if (area->kind == MEMFD)
		close(fd);
}

static void unmap(struct area *area)
{
	if (munmap(area->at, length(area)))
		abort();
	area->pages = 0;
}

static void write_here_and_there(struct area *area)
{
	for (int n = 0; n < 6; n++)
		area->at[chance(length(area))] ^= (unsigned char)(1 + chance(255));
}

static void advise(struct area *area, size_t first, size_t count)
{
	static const int advices[] = {
		MADV_DONTNEED, MADV_DONTNEED,	MADV_DONTNEED,	   MADV_FREE,		MADV_FREE,
		MADV_REMOVE,   MADV_REMOVE,	MADV_PAGEOUT,	   MADV_COLD,		MADV_HUGEPAGE,
		MADV_COLLAPSE, MADV_NOHUGEPAGE, MADV_MERGEABLE,	   MADV_UNMERGEABLE,	MADV_POPULATE_READ,
		MADV_WILLNEED, MADV_DONTFORK,	MADV_DOFORK,	   MADV_WIPEONFORK,	MADV_KEEPONFORK,
		MADV_DOFORK,   MADV_KEEPONFORK, MADV_GUARD_REMOVE, MADV_POPULATE_WRITE, MADV_GUARD_INSTALL,
	};
	int advice = advices[chance(sizeof advices / sizeof *advices)];
	if (advice == MADV_GUARD_INSTALL && area->kind != ANONYMOUS && area->kind != FILE_PRIVATE)
		return; /* not kept */
	if (advice == MADV_HUGEPAGE || advice == MADV_COLLAPSE)
		madvise(area->at, length(area), advice);
	else
		madvise(area->at + first * PAGE, count * PAGE, advice);
}

static void move(struct area *area)
{
	size_t wanted = chance(2) ? area->pages + 1 + chance(16) : 1 + chance(area->pages);
	int flags = MREMAP_MAYMOVE;
	if (area->kind == HUGETLB || wanted + area->offset > LARGE)
		return;
	if (!chance(3)) {
		flags |= MREMAP_DONTUNMAP; /* what was there stays mapped, empty */
		wanted = area->pages;
	}
	unsigned char *old = area->at, *moved = mremap(old, length(area), wanted * PAGE, flags);
	if (moved == MAP_FAILED)
		return;
	if (flags & MREMAP_DONTUNMAP && munmap(old, length(area)))
		abort();
	area->at = moved;
	area->pages = wanted;
}

static void move_over(struct area *area)
{
	struct area *other = &areas[chance(AREAS)];
	if (other == area || area->kind == HUGETLB || other->kind == HUGETLB || other->pages > area->pages)
		return;
	void *place = area->at;
	unmap(area);
	void *moved = mremap(other->at, length(other), length(other), MREMAP_MAYMOVE | MREMAP_FIXED, place);
	if (moved == MAP_FAILED) { /* it is of several kinds by now */
		unmap(other);
	} else {
		*area = *other;
		area->at = moved;
		other->pages = 0;
	}
	map(other, NULL);
	if (!area->pages)
		map(area, NULL);
}

static void change_file(void)
{
	int fd = files[chance(FILES)];
	off_t at = (off_t)chance(FILE_PAGES) * PAGE;
	uint64_t word = chance(1 << 30);
	switch (chance(4)) {
	case 0: /* shorter, for good or for a moment */
		if (ftruncate(fd, at) || (chance(2) && ftruncate(fd, FILE_PAGES * PAGE)))
			abort();
		break;
	case 1:
		if (ftruncate(fd, FILE_PAGES * PAGE))
			abort();
		break;
	case 2:
		fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, (off_t)(1 + chance(16)) * PAGE);
		break;
	default:
		if (pwrite(fd, &word, sizeof word, at) != sizeof word)
			abort();
	}
}

static void change(void);

static void fork_and_write(void)
{
	pid_t child = fork();
	if (!child) {
		forks = 0;
		change();
		_exit(0);
	}
	change();
	waitpid(child, NULL, 0);
}

static void use_stack(size_t depth)
{
	volatile unsigned char here[PAGE];
	memset((void *)here, (int)chance(256), sizeof here);
	if (depth)
		use_stack(depth - 1);
	here[0] = 1;
}

static void change_heap(void)
{
	static long have;
	long more = (long)chance(40) - 20;
	unsigned char *end = sbrk(0);
	if (have + more < 0 || sbrk(more * PAGE) == (void *)-1)
		return;
	have += more;
	if (more > 0)
		memset(end, (int)chance(256), (size_t)more * PAGE);
}

static void change(void)
{
	struct area *area = &areas[chance(AREAS)];
	size_t first = chance(area->pages), count = 1 + chance(area->pages - first);
	unsigned char *at = area->at + first * PAGE;
	if (sigsetjmp(out_of_reach, 1))
		return;
	switch (chance(24)) {
	case 0:
		memset(at, (int)chance(256), count * PAGE);
		break;
	case 1: /* by the kernel */
		if (pread(files[0], at, count * PAGE, 0) < 0 && errno != EFAULT)
			abort();
		break;
	case 2:
	case 3:
	case 4:
	case 5:
	case 6:
		advise(area, first, count);
		break;
	case 7: /* another in its place */
		if (area->kind != HUGETLB)
			map(area, area->at);
		break;
	case 8:
		unmap(area);
		map(area, NULL);
		break;
	case 9:
		move(area);
		break;
	case 10:
		move_over(area);
		break;
	case 11:
		if (area->kind != HUGETLB)
			mprotect(at, count * PAGE, chance(2) ? PROT_NONE : PROT_READ);
		break;
	case 12:
	case 13:
		mprotect(area->at, length(area), PROT_READ | PROT_WRITE);
		break;
	case 14:
	case 15:
		change_file();
		break;
	case 16:
		if (forks)
			fork_and_write();
		break;
	case 17:
		use_stack(chance(24));
		break;
	case 18:
		change_heap();
		break;
	case 19: /* read only: no page becomes its own */
		for (size_t page = 0; page < count; page++)
			state += at[page * PAGE] & 0;
		break;
	case 20: /* zeros, written */
		memset(at, 0, count * PAGE);
		break;
	case 21:
		if (chance(2))
			mlock(at, count * PAGE);
		else
			munlock(area->at, length(area));
		break;
	default:
		write_here_and_there(area);
	}
}

int main(int argc, char **argv)
{
	char line[32], name[16];
	if (argc != 3)
		return 2;
	state = 88172645463325252ULL ^ strtoull(argv[1], NULL, 10) * 2654435761ULL;
	struct sigaction action = {.sa_handler = reached, .sa_flags = SA_NODEFER};
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	for (int k = 0; k < FILES; k++) {
		snprintf(name, sizeof name, "file-%d", k);
		files[k] = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
		for (uint64_t page = 0; page < FILE_PAGES; page++)
			if (pwrite(files[k], &(uint64_t){page + 1}, 8, (off_t)page * PAGE) != 8)
				return 3;
		if (ftruncate(files[k], FILE_PAGES * PAGE))
			return 3;
	}
	if (!strcmp(argv[2], "subreaper")) {
		prctl(PR_SET_CHILD_SUBREAPER, 1);
		if (!fork()) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			pause();
		}
	} else if (!strcmp(argv[2], "locked")) {
		mlock(malloc(PAGE), PAGE);
	}
	forks = 1;
	for (int k = 0; k < AREAS; k++)
		map(&areas[k], NULL);
	while (fgets(line, sizeof line, stdin)) {
		for (int n = atoi(line); n > 0; n--)
			change();
		puts("done");
		fflush(stdout);
	}
	return 0;
}
