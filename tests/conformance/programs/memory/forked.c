/* Memory that processes have in common since a fork: each finds its own after the restore, whatever it and its relatives
 * did to it since, and all of them together take no more room than before. */
#include "ready.h"

#include <sys/prctl.h>

enum { AREAS = 6, AREA_PAGES = 512, ROOM = 65, MOST = 16, WAKE = SIGUSR1 };
enum { PLAIN, DROPPED, MOVED, CUT, WIPED, LONGER };

struct page {
	unsigned long stamp[PAGE / sizeof(unsigned long)];
};

static struct page *areas[AREAS];
static unsigned long wanted[AREAS][AREA_PAGES]; /* the stamps of one's own; 0: zeros */
static int sizes[AREAS];
static struct {
	pid_t pids[MOST];
	int count, exits;
	char fault[256];
} *told; /* seen by all */

static void put(int area, int page, unsigned long stamp)
{
	for (unsigned k = 0; k < PAGE / sizeof stamp; k++)
		areas[area][page].stamp[k] = stamp + k * 0x9e3779b97f4a7c15;
	wanted[area][page] = stamp;
}

static bool is_right(int area, int page)
{
	unsigned long want = wanted[area][page], step = want ? 0x9e3779b97f4a7c15 : 0;
	for (unsigned k = 0; k < PAGE / sizeof want; k++)
		if (areas[area][page].stamp[k] != want + k * step)
			return false;
	return true;
}

static bool all_right(const char *who)
{
	for (int area = 0; area < AREAS; area++)
		for (int page = 0; areas[area] && page < sizes[area]; page++)
			if (!is_right(area, page)) {
				snprintf(told->fault, sizeof told->fault, "%s: page %d of area %d is not its own: %lx",
					 who, page, area, areas[area][page].stamp[0]);
				return false;
			}
	return true;
}

static void *map(int pages, int flags)
{
	void *made = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);
	if (made == MAP_FAILED)
		give_up("mmap");
	return made;
}

/* A child that takes a step, then waits for its word, and is content when its memory is right. */
static void spawn(const char *who, void (*step)(void))
{
	int up[2];
	char byte;
	if (pipe(up))
		give_up("pipe");
	pid_t pid = fork();
	if (pid < 0)
		give_up("fork");
	if (pid) {
		close(up[1]);
		if (read(up[0], &byte, 1) != 1)
			give_up("%s", who);
		close(up[0]);
		return;
	}
	told->pids[__sync_fetch_and_add(&told->count, 1)] = getpid();
	step();
	if (write(up[1], "!", 1) != 1)
		_exit(2);
	close(up[0]);
	close(up[1]);
	sigset_t wake;
	int number;
	sigemptyset(&wake);
	sigaddset(&wake, WAKE);
	sigwait(&wake, &number);
	if (all_right(who)) {
		put(PLAIN, 0, 99); /* it can still write, and nobody else sees it */
		__sync_fetch_and_add(&told->exits, 1);
	}
	_exit(0);
}

static void do_nothing(void)
{
}

static void write_here_and_there(void)
{
	for (int page = 3; page < AREA_PAGES; page += 16)
		put(PLAIN, page, (unsigned long)getpid() << 32 | (unsigned)page);
}

static void drop_and_cut(void)
{
	madvise(areas[DROPPED] + 100, 50 * PAGE, MADV_DONTNEED);
	memset(&wanted[DROPPED][100], 0, 50 * sizeof wanted[0][0]);
	memset(areas[DROPPED] + 200, 0, 5 * PAGE); /* zeros that were written */
	memset(&wanted[DROPPED][200], 0, 5 * sizeof wanted[0][0]);
	munmap(areas[CUT] + 300, (AREA_PAGES - 300) * PAGE);
	sizes[CUT] = 300;
	mprotect(areas[PLAIN] + 50, 20 * PAGE, PROT_READ);
	mprotect(areas[PLAIN] + 80, 20 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
	mlock(areas[PLAIN] + 120, 2 * PAGE);
}

static void move(void)
{
	void *there = map(AREA_PAGES, MAP_PRIVATE | MAP_NORESERVE);
	void *was = areas[MOVED];
	areas[MOVED] = mremap(was, AREA_PAGES * PAGE, AREA_PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, there);
	if (areas[MOVED] == MAP_FAILED)
		_exit(3);
	/* Something else is where it was. */
	if (mmap(was, AREA_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE | MAP_FIXED, -1, 0) != was)
		_exit(4);
	memset(was, 7, PAGE);
}

static void bear(void)
{
	for (int page = 0; page < AREA_PAGES / 2; page++)
		put(DROPPED, page, 5000 + (unsigned)page); /* its children have these, its parent has not */
	spawn("a grandchild", write_here_and_there);
	spawn("another grandchild", do_nothing);
	put(DROPPED, 0, 77);
}

static void end_and_leave_an_orphan(void)
{
	spawn("an orphan", do_nothing);
	spawn("another orphan", write_here_and_there);
	_exit(0);
}

static long pss_of(pid_t pid)
{
	char path[64], line[256];
	long found = -1;
	snprintf(path, sizeof path, "/proc/%d/smaps_rollup", pid);
	FILE *file = fopen(path, "re");
	while (file && found < 0 && fgets(line, sizeof line, file))
		sscanf(line, "Pss: %ld", &found);
	if (file)
		fclose(file);
	if (found < 0)
		give_up("%s", path);
	return found;
}

static long pss_of_all(void)
{
	long sum = pss_of(getpid());
	for (int k = 0; k < told->count; k++)
		sum += pss_of(told->pids[k]);
	return sum;
}

int main(void)
{
	begin();
	sigset_t wake;
	sigemptyset(&wake);
	sigaddset(&wake, WAKE);
	sigprocmask(SIG_BLOCK, &wake, NULL);
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	told = map(1, MAP_SHARED);
	for (int area = 0; area < AREAS; area++) {
		areas[area] = map(AREA_PAGES + ROOM, MAP_PRIVATE); /* what holds them apart, too */
		munmap(areas[area] + AREA_PAGES, ROOM * PAGE);
		sizes[area] = AREA_PAGES;
		for (int page = 0; page < AREA_PAGES; page++)
			put(area, page, ((unsigned long)area << 20 | (unsigned)page) + 1);
	}
	madvise(areas[WIPED], AREA_PAGES / 2 * PAGE, MADV_WIPEONFORK);
	madvise(areas[WIPED] + AREA_PAGES / 2, AREA_PAGES / 2 * PAGE, MADV_DONTFORK);

	struct page *kept = areas[WIPED];
	areas[WIPED] = NULL; /* children do not look there */
	spawn("a child", do_nothing);
	spawn("one that writes", write_here_and_there);
	spawn("one that drops", drop_and_cut);
	spawn("one that moves", move);
	spawn("one that bears", bear);
	int status;
	pid_t between = fork();
	if (!between)
		end_and_leave_an_orphan();
	waitpid(between, &status, 0);
	areas[WIPED] = kept;

	/* What the children still have in common and the parent has not. */
	for (int page = 0; page < AREA_PAGES / 4; page++)
		put(PLAIN, page, 9000 + (unsigned)page);
	munmap(areas[CUT], AREA_PAGES / 2 * PAGE);
	struct page *rest = areas[CUT] + AREA_PAGES / 2;
	areas[CUT] = NULL;
	areas[LONGER] = mremap(areas[LONGER], AREA_PAGES * PAGE, (AREA_PAGES + 64) * PAGE, 0);
	if (areas[LONGER] == MAP_FAILED)
		give_up("mremap");
	long before = pss_of_all();
	ready_and_wait();

	long after = pss_of_all();
	expect(after < before + before / 4, "they took %ld KiB and take %ld", before, after);
	expect(all_right("the parent"), "%s", told->fault);
	expect(rest[0].stamp[0] == ((unsigned long)CUT << 20 | AREA_PAGES / 2) + 1, "a part of a mapping is lost");
	for (int page = 0; page < 64; page++)
		expect(areas[LONGER][AREA_PAGES + page].stamp[0] == 0, "what is new in a mapping is not zero");
	/* A mapping is whole: as two it could not be moved. */
	void *moved = mremap(areas[PLAIN], AREA_PAGES * PAGE, 2 * AREA_PAGES * PAGE, MREMAP_MAYMOVE);
	expect(moved != MAP_FAILED, "its mapping is in pieces");
	for (int k = 0; k < told->count; k++)
		kill(told->pids[k], WAKE);
	for (pid_t pid; (pid = waitpid(-1, &status, 0)) > 0;)
		expect(WIFEXITED(status) && !WEXITSTATUS(status), "%d ended with %x", pid, (unsigned)status);
	expect(told->exits == told->count, "%d of %d are content: %s", told->exits, told->count, told->fault);
	return verdict();
}
