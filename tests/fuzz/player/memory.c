/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Memory: eight places of 64 pages each at fixed addresses, mapped, written, dropped, moved in every way.
 */
#include "player.h"

#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/uio.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102 /* Linux 6.13 */
#define MADV_GUARD_REMOVE 103
#endif

enum { PLACES = 8, PAGES = 64, PAGE = 4096 };

static char *place(long index)
{
	return (char *)0x300000000000 + (index % PLACES) * 0x10000000L;
}

static const int protections[] = {PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE, PROT_READ | PROT_WRITE,
				  PROT_READ | PROT_EXEC};

/* place, kind, descriptor, protection, offset in pages */
static long map(const long *a)
{
	static const int kinds[] = {MAP_PRIVATE | MAP_ANONYMOUS,
				    MAP_SHARED | MAP_ANONYMOUS,
				    MAP_PRIVATE,
				    MAP_SHARED,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN};
	int flags = kinds[a[1] % 6];
	void *got = mmap(place(a[0]), PAGES * PAGE, protections[a[3] % 5], flags | MAP_FIXED,
			 flags & MAP_ANONYMOUS ? -1 : fd_of(a[2]), flags & MAP_ANONYMOUS ? 0 : (a[4] % 4) * PAGE);

	return got == MAP_FAILED ? -1 : 0;
}

/* place, name, shared: a file that is open no longer */
static long map_name(const long *a)
{
	int fd = open(name(a[1]), (a[2] % 2 ? O_RDWR : O_RDONLY) | O_NONBLOCK);
	struct stat it;

	if (fd < 0)
		return -1;
	bool regular = !fstat(fd, &it) && S_ISREG(it.st_mode);
	void *got = regular ? mmap(place(a[0]), PAGES * PAGE, PROT_READ | PROT_WRITE,
				   (a[2] % 2 ? MAP_SHARED : MAP_PRIVATE) | MAP_FIXED, fd, 0)
			    : MAP_FAILED;
	close(fd);
	return got == MAP_FAILED ? -1 : 0;
}

/* place, first page, pages */
static long unmap(const long *a)
{
	return munmap(place(a[0]) + a[1] % PAGES * PAGE, (a[2] % 16 + 1) * PAGE);
}

/* place, first page, pages, protection */
static long protect(const long *a)
{
	return mprotect(place(a[0]) + a[1] % PAGES * PAGE, (a[2] % 16 + 1) * PAGE, protections[a[3] % 5]);
}

/* place, page, pages, value */
static long store(const long *a)
{
	for (long i = 0; i < a[2] % 20 + 1; i++)
		memset(place(a[0]) + (a[1] + i) % PAGES * PAGE + a[3] % 7 * 100, (int)a[3] + (int)i, 50);
	return 0;
}

/* place, first page, pages: the content as a number */
static long look(const long *a)
{
	unsigned long sum = 1469598103934665603UL;

	for (long i = 0; i < a[2] % PAGES + 1; i++) {
		const char *page = place(a[0]) + (a[1] + i) % PAGES * PAGE;

		for (int at = 0; at < PAGE; at += 10)
			sum = (sum ^ (unsigned char)page[at]) * 1099511628211UL;
	}
	return (long)(sum >> 2);
}

/* place, first page, pages, advice */
static long advise(const long *a)
{
	static const int advices[] = {
		MADV_DONTNEED, MADV_DONTFORK,	   MADV_DOFORK,		MADV_WIPEONFORK,    MADV_KEEPONFORK,
		MADV_DONTDUMP, MADV_DODUMP,	   MADV_REMOVE,		MADV_PAGEOUT,	    MADV_COLD,
		MADV_RANDOM,   MADV_HUGEPAGE,	   MADV_COLLAPSE,	MADV_SEQUENTIAL,    MADV_NORMAL,
		MADV_FREE,     MADV_NOHUGEPAGE,	   MADV_MERGEABLE,	MADV_DONTNEED,	    MADV_UNMERGEABLE,
		MADV_WILLNEED, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE};
	int advice = advices[(size_t)a[3] % (sizeof(advices) / sizeof(*advices))];
	long result = madvise(place(a[0]) + a[1] % PAGES * PAGE, (a[2] % 16 + 1) * PAGE, advice);

	/* Whether pages can be put together or out is the kernel's own affair at that moment. */
	return advice == MADV_COLLAPSE || advice == MADV_PAGEOUT ? 0 : result;
}

/* from place, to place, pages, keep the old one */
static long move(const long *a)
{
	if (a[0] % PLACES == a[1] % PLACES)
		return 0;
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED | (a[3] % 4 ? 0 : MREMAP_DONTUNMAP);
	size_t size = (size_t)((a[2] % PAGES + 1) * PAGE);

	if (mremap(place(a[0]), size, size, flags, place(a[1])) != MAP_FAILED)
		return 0;
	if (errno != EFAULT)
		return -1;
	/* There are several mappings: since Linux 6.17 they are moved all the same, but not while a series watches them. */
	for (size_t at = 0; at < size; at += PAGE)
		mremap(place(a[0]) + at, PAGE, PAGE, flags, place(a[1]) + at);
	return 0;
}

/* pages to grow by, or to shrink by, as long as nobody else has moved the end: malloc does, too */
static long heap(const long *a)
{
	static char *start, *end;
	char *now = sbrk(0);
	long by = (a[0] % 30 - 10) * PAGE;

	if (now != end)
		start = end = now;
	if (end + by < start)
		by = start - end;
	if (sbrk(by) == (void *)-1)
		return -1;
	if (by > 0)
		memset(end, (int)a[1], by);
	end += by;
	for (char *at = start; at < end; at += PAGE)
		say(" %d", *at);
	return 0;
}

/* place, page, value, actor: into its memory from here */
static long poke(const long *a)
{
	char text[3 * PAGE];
	struct iovec here = {text, sizeof(text)}, there = {place(a[0]) + a[1] % (PAGES - 3) * PAGE, sizeof(text)};

	memset(text, (int)a[2], sizeof(text));
	return process_vm_writev(shared->actors[a[3] % ACTORS].pid, &here, 1, &there, 1, 0);
}

/* place, page, value, actor: into its memory as a debugger does, also where it may not write itself */
static long force(const long *a)
{
	char path[64], text[PAGE + 100];

	snprintf(path, sizeof(path), "/proc/%d/mem", shared->actors[a[3] % ACTORS].pid);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -1;
	memset(text, (int)a[2], sizeof(text));
	long size = pwrite(fd, text, sizeof(text), (off_t)(place(a[0]) + a[1] % (PAGES - 3) * PAGE + 50));
	close(fd);
	return size;
}

/* place, page, descriptor, offset, size: the kernel writes there */
static long read_into(const long *a)
{
	char *at = place(a[0]) + a[1] % (PAGES - 4) * PAGE + 7;
	struct iovec parts[] = {{at, 100}, {at + PAGE, (size_t)(a[4] % (2 * PAGE))}};

	return preadv(fd_of(a[2]), parts, 2, a[3] % 9000);
}

/* place, pages that it is to have: more or fewer than it has, where it is. Of mappings that lie side by side and are
 * alike the kernel may have made one, so that the reason why they do not grow is no promise. */
static long resize(const long *a)
{
	long before = a[1] % PAGES + 1, after = a[2] % (2 * PAGES) + 1;

	if (mremap(place(a[0]), (size_t)(before * PAGE), (size_t)(after * PAGE), 0) != MAP_FAILED)
		return 0;
	errno = ENOMEM;
	return -1;
}

/* from place, to place: the same shared memory once more */
static long twice(const long *a)
{
	if (a[0] % PLACES == a[1] % PLACES)
		return 0;
	void *got =
		mremap(place(a[0]), 0, (size_t)((a[2] % PAGES + 1) * PAGE), MREMAP_MAYMOVE | MREMAP_FIXED, place(a[1]));

	return got == MAP_FAILED ? -1 : 0;
}

/* place, pages: a segment of System V that is gone with those who have it */
static long segment(const long *a)
{
	int id = shmget(IPC_PRIVATE, (size_t)((a[1] % PAGES + 1) * PAGE), 0600);
	void *got;

	if (id < 0)
		return -1;
	got = shmat(id, place(a[0]), SHM_REMAP | (a[2] % 4 ? 0 : SHM_RDONLY));
	shmctl(id, IPC_RMID, NULL);
	return got == (void *)-1 ? -1 : 0;
}

/* place, first page, pages: written back, or not */
static long sync_(const long *a)
{
	return msync(place(a[0]) + a[1] % PAGES * PAGE, (size_t)((a[2] % 16 + 1) * PAGE),
		     a[3] % 2 ? MS_ASYNC : MS_SYNC);
}

/* off, or on: what is mapped from now on is locked when it is touched */
static long lock_all(const long *a)
{
	return a[0] % 2 ? munlockall() : mlockall(MCL_FUTURE | MCL_ONFAULT);
}

/* place, first page, pages, off */
static long lock(const long *a)
{
	char *start = place(a[0]) + a[1] % PAGES * PAGE;
	size_t size = (a[2] % 4 + 1) * PAGE;

	return a[3] % 2 ? munlock(start, size) : mlock(start, size);
}

/* place: which pages are there, as the kernel has it, is no promise; that they are mapped is */
static long mapped(const long *a)
{
	unsigned char there[PAGES];
	long count = 0;

	for (int i = 0; i < PAGES; i++)
		count += !mincore(place(a[0]) + i * PAGE, PAGE, there);
	return count;
}

const struct verb memory_verbs[] = {
	{"map", map},	  {"map_name", map_name}, {"unmap", unmap}, {"protect", protect},     {"store", store},
	{"look", look},	  {"advise", advise},	  {"move", move},   {"heap", heap},	      {"poke", poke},
	{"mlock", lock},  {"mapped", mapped},	  {"force", force}, {"read_into", read_into}, {"resize_map", resize},
	{"twice", twice}, {"segment", segment},	  {"msync", sync_}, {"lock_all", lock_all},   {0}};
