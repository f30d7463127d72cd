/* Mappings of /dev/zero, as old allocators make them: anonymous memory that has a name. */
#include "ready.h"

#include <setjmp.h>

static sigjmp_buf back;

static void jump(int number)
{
	siglongjmp(back, number);
}

static bool is_behind_the_end(const volatile char *at)
{
	if (sigsetjmp(back, 1))
		return true;
	(void)*at;
	return false;
}

int main(void)
{
	begin();
	int fd = open("/dev/zero", O_RDWR | O_CLOEXEC);
	char *written = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	char *huge = mmap(NULL, 64UL << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
	char *shared = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	/* At an offset: it is as long as the mapping, which so reaches beyond its end. */
	char *later = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, PAGE);
	if (later == MAP_FAILED || written == MAP_FAILED || huge == MAP_FAILED || shared == MAP_FAILED)
		give_up("/dev/zero");
	close(fd);
	for (int k = 0; k < 64; k += 2)
		written[k * PAGE] = (char)(k + 1);
	huge[40UL << 30] = 'h';
	shared[PAGE] = 's';
	later[2 * PAGE] = 'l';
	signal(SIGBUS, jump);
	expect(is_behind_the_end(later + 3 * PAGE), "one at an offset has no end, before");
	ready_and_wait();

	for (int k = 0; k < 64; k++)
		expect(written[k * PAGE] == (k % 2 ? 0 : k + 1), "page %d became %d", k, written[k * PAGE]);
	expect(huge[40UL << 30] == 'h', "the large one became %d", huge[40UL << 30]);
	expect(huge[41UL << 30] == 0, "what was not touched became %d", huge[41UL << 30]);
	expect(is_behind_the_end(later + 3 * PAGE), "one at an offset has no end");
	expect(later[0] == 0 && later[2 * PAGE] == 'l', "one at an offset became %d, %d", later[0], later[2 * PAGE]);
	expect(shared[PAGE] == 's', "the shared one became %d", shared[PAGE]);
	return verdict();
}
