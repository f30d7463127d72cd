/* So much memory that several threads fill it at a restore, with a userfaultfd where there is one: of every protection,
 * adjacent, with holes, and with huge pages. */
#include "ready.h"

#define MIB ((size_t)1 << 20)
enum { PARTS = 6, EVERY = 37 };
static const struct {
	size_t size;
	int protection, advice, every; /* of how many pages one is written */
} parts[PARTS] = {
	{48 * MIB, PROT_READ | PROT_WRITE, 0, 1},
	{5 * MIB, PROT_READ, 0, 1},
	{3 * MIB, PROT_NONE, 0, 2},
	{12 * MIB, PROT_READ | PROT_WRITE, MADV_HUGEPAGE, 1},
	{24 * MIB, PROT_READ | PROT_WRITE, MADV_HUGEPAGE, EVERY},
	{16 * MIB, PROT_READ | PROT_WRITE, MADV_NOHUGEPAGE, 1},
};

static uint64_t mark(int part, size_t page)
{
	return (page * PARTS + part + 1) * 0x9e3779b97f4a7c15;
}

int main(void)
{
	begin();
	size_t total = 0;
	for (int k = 0; k < PARTS; k++)
		total += parts[k].size;
	char *start = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *at = start;
	if (start == MAP_FAILED)
		give_up("mmap");
	madvise(start, total, MADV_NOHUGEPAGE);
	for (int k = 0; k < PARTS; at += parts[k++].size) {
		for (size_t page = 0; page < parts[k].size / PAGE; page += parts[k].every) {
			uint64_t *words = (uint64_t *)(at + page * PAGE);
			words[0] = words[PAGE / 8 - 1] = mark(k, page);
		}
		if (mprotect(at, parts[k].size, parts[k].protection))
			give_up("mprotect");
		if (parts[k].advice && madvise(at, parts[k].size, parts[k].advice) && errno != EINVAL)
			give_up("madvise");
	}
	ready_and_wait();

	at = start;
	for (int k = 0; k < PARTS; at += parts[k++].size) {
		if (mprotect(at, parts[k].size, PROT_READ | PROT_WRITE))
			give_up("mprotect");
		for (size_t page = 0; page < parts[k].size / PAGE; page++) {
			const uint64_t *words = (const uint64_t *)(at + page * PAGE);
			uint64_t wanted = page % parts[k].every ? 0 : mark(k, page);
			expect(words[0] == wanted && words[PAGE / 8 - 1] == wanted && !words[PAGE / 16],
			       "part %d, page %zu: %lx", k, page, words[0]);
		}
		memset(at, 1, parts[k].size);
	}
	return verdict();
}
