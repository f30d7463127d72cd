/* Guard regions (MADV_GUARD_INSTALL, Linux 6.13): in fresh and in written memory, in a locked mapping, in a private
 * mapping of a file. Without them an overflow would be silent. */
#include "ready.h"

#include <setjmp.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

static sigjmp_buf back;

static void fault(int number)
{
	siglongjmp(back, number);
}

static bool faults_at(volatile char *at)
{
	if (sigsetjmp(back, 1))
		return true;
	*at = 1;
	return false;
}

static char *map(int pages, int flags, int fd)
{
	char *at = mmap(NULL, (size_t)pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | flags, fd, 0);
	if (at == MAP_FAILED)
		give_up("mmap");
	return at;
}

int main(void)
{
	begin();
	char *plain = map(64, MAP_ANONYMOUS, -1), *locked = map(4, MAP_ANONYMOUS, -1);
	for (int k = 0; k < 64; k++)
		plain[k * PAGE] = (char)k;
	if (madvise(plain + PAGE, PAGE, MADV_GUARD_INSTALL))
		unavailable("MADV_GUARD_INSTALL");
	if (madvise(plain + 10 * PAGE, 20 * PAGE, MADV_GUARD_INSTALL) || mprotect(plain + 12 * PAGE, PAGE, PROT_NONE))
		give_up("guards");
	locked[0] = 7;
	if (madvise(locked + 2 * PAGE, PAGE, MADV_GUARD_INSTALL))
		give_up("a guard");
	mlock(locked, 4 * PAGE); /* an error: it cannot touch the guard; but locked it is */
	int fd = open(in_dir("file"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (ftruncate(fd, 4 * PAGE))
		give_up("ftruncate");
	char *file = map(4, 0, fd);
	close(fd);
	file[0] = 5;
	bool in_files = !madvise(file + PAGE, PAGE, MADV_GUARD_INSTALL); /* Linux 6.15 */
	ready_and_wait();

	signal(SIGSEGV, fault);
	for (int k = 0; k < 64; k++) {
		bool guarded = k == 1 || (k >= 10 && k < 30);
		if (k != 12)
			expect(faults_at(plain + k * PAGE + 1) == guarded, "page %d: wrong guard", k);
		expect(guarded || plain[k * PAGE] == (char)k, "page %d changed", k);
	}
	expect(locked[0] == 7 && faults_at(locked + 2 * PAGE) && !faults_at(locked + PAGE),
	       "the locked mapping changed");
	expect(file[0] == 5 && faults_at(file + PAGE) == in_files, "the file's mapping changed");
	expect(!madvise(plain + 10 * PAGE, PAGE, MADV_GUARD_REMOVE) && !faults_at(plain + 10 * PAGE),
	       "a guard cannot be removed");
	return verdict();
}
