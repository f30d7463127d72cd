/* Memory that is not as it was mapped: moved, doubled, with pieces protected or taken out, lazily freed; a heap with a hole;
 * mappings at both ends of the address space; ends of files in the midst of a mapping, where a touch gives SIGBUS. */
#include "ready.h"

#include <setjmp.h>
#include <sys/stat.h>

#define LAST ((char *)0x7fffffffe000UL)

static sigjmp_buf back;

static void on_fault(int number)
{
	siglongjmp(back, number);
}

/* The signal that a touch gives; 0: none. */
static int touch(const volatile char *at)
{
	int number = sigsetjmp(back, 1);
	if (!number)
		(void)*at;
	return number;
}

static char *anonymous(size_t size)
{
	char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		give_up("mmap");
	for (size_t k = 0; k < size; k += PAGE)
		at[k] = (char)('a' + k / PAGE);
	return at;
}

static void look(const char *what, const char *at, int page)
{
	int number = touch(at);
	expect(!number, "%s: page %d gives signal %d", what, page, number);
	if (!number)
		expect(*at == 'a' + page, "%s: page %d became %d", what, page, *at);
}

static char *file_of(const char *name, int flags, bool keep)
{
	char path[PATH_MAX];
	snprintf(path, sizeof path, "%s", in_dir(name));
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, 6 * PAGE))
		give_up("%s", path);
	char *at = mmap(NULL, 6 * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (at == MAP_FAILED)
		give_up("%s", path);
	for (int k = 0; k < 2; k++)
		pwrite(fd, &(char){(char)('a' + k)}, 1, k * PAGE);
	if (ftruncate(fd, PAGE + 100))
		give_up("%s", path);
	if (!keep)
		unlink(path);
	close(fd);
	return at;
}

int main(void)
{
	begin();
	char *moved = anonymous(6 * PAGE), *left = anonymous(6 * PAGE);
	moved = mremap(moved, 6 * PAGE, 9 * PAGE, MREMAP_MAYMOVE);
	char *there = mremap(left, 6 * PAGE, 6 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
	char *pieces = anonymous(7 * PAGE);
	mprotect(pieces + PAGE, PAGE, PROT_NONE);
	mprotect(pieces + 3 * PAGE, PAGE, PROT_READ);
	munmap(pieces + 5 * PAGE, PAGE);
	char *freed = anonymous(4 * PAGE);
	madvise(freed, 4 * PAGE, MADV_FREE);
	freed[PAGE] = 'b';
	char *shared = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int k = 0; k < 4; k++)
		shared[k * PAGE] = (char)('a' + k);
	char *doubled = mremap(shared, 0, 4 * PAGE, MREMAP_MAYMOVE);
	char *heap = sbrk(0);
	heap += -(uintptr_t)heap % PAGE;
	if (brk(heap + 8 * PAGE))
		give_up("brk");
	for (int k = 0; k < 8; k++)
		heap[k * PAGE] = (char)('a' + k);
	munmap(heap + 3 * PAGE, 2 * PAGE);
	if (brk(heap + 7 * PAGE))
		give_up("brk");
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
	char *low = mmap((void *)(64UL << 10), PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
	char *high = mmap(LAST, PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (moved == MAP_FAILED || there == MAP_FAILED || doubled == MAP_FAILED || low == MAP_FAILED || high == MAP_FAILED)
		give_up("mremap");
	*low = *high = 'a';
	char *ends[] = {file_of("shared", MAP_SHARED, true), file_of("private", MAP_PRIVATE, true),
			file_of("lost", MAP_SHARED, false)};
	char *growing = mmap(NULL, 300 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(growing, 300 * PAGE);
	growing = mmap(growing + 290 * PAGE, PAGE, PROT_READ | PROT_WRITE, flags | MAP_GROWSDOWN, -1, 0);
	*growing = 'a';

	struct sigaction action = {.sa_handler = on_fault};
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	ready_and_wait();

	for (int k = 0; k < 6; k++) {
		look("moved", moved + k * PAGE, k);
		look("moved and left", there + k * PAGE, k);
		expect(!touch(left + k * PAGE) && !left[k * PAGE], "what it was moved from became %d", left[k * PAGE]);
	}
	for (int k = 0; k < 7; k++)
		if (k == 1 || k == 5)
			expect(touch(pieces + k * PAGE) == SIGSEGV, "pieces: page %d can be touched", k);
		else
			look("pieces", pieces + k * PAGE, k);
	look("lazily freed and written", freed + PAGE, 1);
	for (int k = 0; k < 4; k++) {
		look("doubled", doubled + k * PAGE, k);
		expect(!freed[k * PAGE] || freed[k * PAGE] == 'a' + k, "lazily freed: page %d became %d", k, freed[k * PAGE]);
	}
	shared[2 * PAGE] = 'z';
	expect(doubled[2 * PAGE] == 'z', "what was doubled is apart");
	for (int k = 0; k < 7; k++)
		if (k == 3 || k == 4)
			expect(touch(heap + k * PAGE) == SIGSEGV, "heap: page %d can be touched", k);
		else
			look("heap", heap + k * PAGE, k);
	expect((char *)sbrk(0) >= heap + 7 * PAGE, "the heap ends at %p", sbrk(0));
	look("the first page", low, 0);
	look("the last page", high, 0);
	look("a stack that grows", growing, 0);
	expect(!touch(growing - PAGE), "a stack does not grow");
	for (int n = 0; n < 3; n++) {
		for (int k = 0; k < 2; k++)
			look("a file that was cut", ends[n] + k * PAGE, k);
		expect(touch(ends[n] + 2 * PAGE) == SIGBUS, "file %d does not end where it did", n);
	}
	unlink(in_dir("shared"));
	unlink(in_dir("private"));
	return verdict();
}
