/* Private memory of every kind: anonymous, from a file with written pages (also when it is read-only again),
 * protections, reservations far larger than the machine, pages never touched, brk, a deep stack, madvise. */
#include "ready.h"

#include <sys/prctl.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

enum { MIB = 1 << 20, ANONYMOUS = 16 * MIB, FILE_PAGES = 64 };
static const size_t VAST = 1UL << 40;

static uint64_t noise(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdUL;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53UL;
	return x ^ x >> 33;
}

static void fill(void *at, size_t size, uint64_t seed)
{
	for (size_t k = 0; k < size / 8; k++)
		((uint64_t *)at)[k] = noise(seed + k);
}

static void check(const void *at, size_t size, uint64_t seed, const char *what)
{
	for (size_t k = 0; k < size / 8; k++)
		if (((const uint64_t *)at)[k] != noise(seed + k)) {
			expect(false, "%s: byte %zu of %zu differs", what, k * 8, size);
			return;
		}
}

static void check_zero(const void *at, size_t size, const char *what)
{
	for (size_t k = 0; k < size / 8; k++)
		if (((const uint64_t *)at)[k]) {
			expect(false, "%s: byte %zu is not zero", what, k * 8);
			return;
		}
}

static void *map(size_t size, int protection, int flags, int fd, off_t offset)
{
	void *at = mmap(NULL, size, protection, flags, fd, offset);
	if (at == MAP_FAILED)
		give_up("mmap of %zu bytes", size);
	return at;
}

/* Whether an access faults, asked of the kernel so that nothing dies. */
static bool readable(const void *at)
{
	int ends[2];
	if (pipe2(ends, O_CLOEXEC))
		give_up("pipe");
	bool yes = write(ends[1], at, 1) == 1;
	close(ends[0]);
	close(ends[1]);
	return yes;
}

static bool writable(void *at)
{
	int ends[2];
	if (pipe2(ends, O_CLOEXEC))
		give_up("pipe");
	bool yes = write(ends[1], "", 1) == 1 && read(ends[0], at, 1) == 1;
	close(ends[0]);
	close(ends[1]);
	return yes;
}

static int file_of_noise(const char *name)
{
	int fd = open(in_dir(name), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	char *page = malloc(PAGE);
	for (int k = 0; k < FILE_PAGES; k++) {
		fill(page, PAGE, (uint64_t)k << 20);
		if (write(fd, page, PAGE) != PAGE)
			give_up("write");
	}
	free(page);
	return fd;
}

static void deep(int levels)
{
	volatile uint64_t here[128];
	for (int k = 0; k < 128; k++)
		here[k] = noise((uint64_t)levels * 128 + (uint64_t)k);
	if (levels)
		deep(levels - 1);
	else
		ready_and_wait();
	for (int k = 0; k < 128; k++)
		if (here[k] != noise((uint64_t)levels * 128 + (uint64_t)k)) {
			expect(false, "the stack at level %d changed", levels);
			break;
		}
}

int main(void)
{
	begin();
	const int rw = PROT_READ | PROT_WRITE, anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
	char *plain = map(ANONYMOUS, rw, anonymous, -1, 0);
	fill(plain, ANONYMOUS, 1);

	char *checkered =
		map(MIB, rw, anonymous, -1, 0); /* every third page is written, every third only read */
	uint64_t sum = 0;
	for (int k = 0; k < MIB / PAGE; k++) {
		if (k % 3 == 0)
			fill(checkered + k * PAGE, PAGE, (uint64_t)k << 30);
		if (k % 3 == 1)
			sum += *(volatile uint64_t *)(checkered + k * PAGE);
	}
	expect(!sum, "fresh memory is not zero");
	char *zeroed = map(MIB, rw, anonymous, -1, 0); /* written with zeros */
	memset(zeroed, 0, MIB);

	char *vast = map(VAST, rw, anonymous | MAP_NORESERVE, -1, 0);
	for (int k = 0; k < 16; k++)
		fill(vast + VAST / 16 * (size_t)k, PAGE, 77 + (uint64_t)k);
	char *reserved = map(VAST, PROT_NONE, anonymous | MAP_NORESERVE, -1, 0);
	if (mprotect(reserved + VAST / 2, PAGE, rw))
		give_up("mprotect");
	fill(reserved + VAST / 2, PAGE, 99);

	char *protected = map(8 * PAGE, rw, anonymous, -1, 0);
	fill(protected, 8 * PAGE, 5);
	mprotect(protected + PAGE, PAGE, PROT_NONE);
	mprotect(protected + 2 * PAGE, PAGE, PROT_READ);
	mprotect(protected + 3 * PAGE, PAGE, PROT_READ | PROT_EXEC);
	mprotect(protected + 4 * PAGE, PAGE, PROT_WRITE);
	madvise(protected + 6 * PAGE, PAGE, MADV_DONTNEED);

	unsigned char *code = map(PAGE, rw | PROT_EXEC, anonymous, -1, 0);
	memcpy(code, "\xb8\x2a\x00\x00\x00\xc3", 6); /* mov $42, %eax; ret */
	mprotect(code, PAGE, PROT_READ | PROT_EXEC);

	int file = file_of_noise("mapped");
	char *private = map(FILE_PAGES * PAGE, rw, MAP_PRIVATE, file, 0);
	fill(private + 3 * PAGE, PAGE, 1003);
	fill(private + 9 * PAGE, 2 * PAGE, 1009);
	char *relro = map(4 * PAGE, rw, MAP_PRIVATE, file, 8 * PAGE);
	fill(relro + PAGE, PAGE, 2001);
	mprotect(relro, 4 * PAGE, PROT_READ);
	const char *readonly = map(4 * PAGE, PROT_READ, MAP_PRIVATE, file, 16 * PAGE);
	close(file);
	int tail_file =
		open(in_dir("short"), O_RDWR | O_CREAT | O_CLOEXEC, 0600); /* ends within the first page */
	if (write(tail_file, "short file", 10) != 10)
		give_up("write");
	char *tail = map(PAGE, rw, MAP_PRIVATE, tail_file, 0);
	tail[2000] = 'T';
	close(tail_file);

	char *brk_before = sbrk(0);
	char *heap = sbrk(3 * MIB + 123);
	memset(heap, 0x5a, 3 * MIB + 123);
	char *brk_after = sbrk(0);
	char *blocks[500];
	for (int k = 0; k < 500; k++) {
		blocks[k] = malloc((size_t)(16 + k * 37));
		memset(blocks[k], k, (size_t)(16 + k * 37));
	}

	char *advised = map(8 * PAGE, rw, anonymous, -1, 0);
	fill(advised, 8 * PAGE, 31);
	if (madvise(advised, PAGE, MADV_DONTFORK) || madvise(advised + 2 * PAGE, PAGE, MADV_WIPEONFORK) ||
	    madvise(advised + 4 * PAGE, PAGE, MADV_DONTDUMP))
		give_up("madvise");
	char *huge = map(8 * MIB, rw, anonymous, -1, 0);
	madvise(huge, 8 * MIB, MADV_HUGEPAGE);
	fill(huge + MIB, 4 * MIB, 41);
	char *named = map(2 * PAGE, rw, anonymous, -1, 0);
	prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, named, 2 * PAGE,
	      "conformance"); /* EINVAL where not configured */
	fill(named, 2 * PAGE, 51);
	char *moved = map(4 * PAGE, rw, anonymous, -1, 0);
	fill(moved, 4 * PAGE, 61);
	moved = mremap(moved, 4 * PAGE, 16 * PAGE, MREMAP_MAYMOVE);
	char *grows = map(16 * PAGE, rw, anonymous | MAP_GROWSDOWN, -1, 0);
	fill(grows, 16 * PAGE, 71);

	deep(200);

	check(plain, ANONYMOUS, 1, "anonymous memory");
	for (int k = 0; k < MIB / PAGE; k++) {
		if (k % 3 == 0)
			check(checkered + k * PAGE, PAGE, (uint64_t)k << 30, "every third page");
		if (k % 3)
			check_zero(checkered + k * PAGE, PAGE, "a page that was never written");
	}
	check_zero(zeroed, MIB, "pages written with zeros");
	for (int k = 0; k < 16; k++) {
		check(vast + VAST / 16 * (size_t)k, PAGE, 77 + (uint64_t)k, "a page in a vast reservation");
		check_zero(vast + VAST / 16 * (size_t)k + PAGE, PAGE, "beside a page in a vast reservation");
	}
	check(reserved + VAST / 2, PAGE, 99, "the usable page of a reservation");
	expect(!readable(reserved) && !readable(reserved + VAST / 2 + PAGE),
	       "a PROT_NONE reservation is readable");
	check(protected, PAGE, 5, "before the protected pages");
	expect(!readable(protected + PAGE), "PROT_NONE is readable");
	expect(readable(protected + 2 * PAGE) && !writable(protected + 2 * PAGE),
	       "PROT_READ is not just that");
	expect(readable(protected + 3 * PAGE) && !writable(protected + 3 * PAGE),
	       "PROT_READ|EXEC is not just that");
	mprotect(protected + PAGE, 4 * PAGE, rw);
	check(protected + PAGE, 5 * PAGE, 5 + PAGE / 8, "pages that were protected");
	check_zero(protected + 6 * PAGE, PAGE, "a page given back by madvise");
	check(protected + 7 * PAGE, PAGE, 5 + 7 * PAGE / 8, "after the protected pages");
	expect(((int (*)(void))(uintptr_t)code)() == 42, "generated code returned something else");
	for (int k = 0; k < FILE_PAGES; k++) {
		if (k == 3 || k == 9 || k == 10)
			continue;
		check(private + k * PAGE, PAGE, (uint64_t)k << 20,
		      "an unwritten page of a private file mapping");
	}
	check(private + 3 * PAGE, PAGE, 1003, "a written page of a private file mapping");
	check(private + 9 * PAGE, 2 * PAGE, 1009, "two written pages of a private file mapping");
	check(relro, PAGE, 8UL << 20, "an unwritten page of a mapping that is read-only again");
	check(relro + PAGE, PAGE, 2001, "a written page of a mapping that is read-only again");
	expect(!writable(relro + PAGE), "a mapping that was read-only again is writable");
	check(readonly, PAGE, 16UL << 20, "a read-only file mapping");
	expect(!memcmp(tail, "short file", 10) && tail[2000] == 'T',
	       "a mapping beyond its file's end changed");
	expect(sbrk(0) == brk_after || sbrk(0) > (void *)brk_before, "brk moved");
	for (int k = 0; k < 3 * MIB + 123; k++)
		if (heap[k] != 0x5a) {
			expect(false, "byte %d above the old brk changed", k);
			break;
		}
	expect(sbrk(PAGE) != (void *)-1, "brk does not grow: %s", strerror(errno));
	for (int k = 0; k < 500; k++) {
		for (int byte = 0; byte < 16 + k * 37; byte++)
			if (blocks[k][byte] != (char)k) {
				expect(false, "block %d of malloc changed", k);
				break;
			}
		free(blocks[k]);
	}
	check(advised, 8 * PAGE, 31, "advised memory");
	pid_t child = fork();
	if (!child) {
		bool right = !readable(advised) && readable(advised + PAGE) &&
			     !*(volatile uint64_t *)(advised + 2 * PAGE);
		_exit(right ? 0 : 1);
	}
	int status;
	waitpid(child, &status, 0);
	expect(!status, "MADV_DONTFORK or MADV_WIPEONFORK was lost");
	check(huge + MIB, 4 * MIB, 41, "memory with huge pages");
	check_zero(huge, MIB, "untouched memory with huge pages");
	check(named, 2 * PAGE, 51, "named memory");
	check(moved, 4 * PAGE, 61, "memory moved by mremap");
	check_zero(moved + 4 * PAGE, 12 * PAGE, "memory added by mremap");
	check(grows, 16 * PAGE, 71, "memory that grows down");
	return verdict();
}
