/* Private huge pages (MAP_HUGETLB): one written, one never touched. */
#include "ready.h"

enum { HUGE = 2 << 20 };

int main(void)
{
	begin();
	char *at = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | 21 << MAP_HUGE_SHIFT, -1, 0);
	if (at == MAP_FAILED)
		unavailable("huge pages (/proc/sys/vm/nr_hugepages)");
	for (int k = 0; k < HUGE; k += 8)
		*(uint64_t *)(at + k) = (uint64_t)k * 2654435761;
	ready_and_wait();
	for (int k = 0; k < HUGE; k += 8)
		if (*(uint64_t *)(at + k) != (uint64_t)k * 2654435761) {
			expect(false, "byte %d of a huge page changed", k);
			break;
		}
	for (int k = HUGE; k < 2 * HUGE; k += PAGE)
		expect(!at[k], "a huge page that was never touched is not zero");
	expect(munmap(at, PAGE) && errno == EINVAL, "it is no huge page any more");
	return verdict();
}
