/* Memory shared by a parent and its child: anonymous, memfd, a file, /dev/shm, a file without a name. After the
 * restore it is still one memory: what either writes the other sees, and files get what is written. */
#include "ready.h"

#include <semaphore.h>
#include <sys/stat.h>

enum { PAGES = 24, SIZE = PAGES * PAGE, KINDS = 7 };

static struct {
	const char *name;
	uint32_t *at;
	int fd;
} kinds[KINDS];
static int count;
static struct {
	sem_t to_child, to_parent;
	pthread_mutex_t lock;
	int turns;
} *talk;

static uint32_t *share(const char *name, int fd)
{
	uint32_t *at =
		mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);
	if (at == MAP_FAILED)
		give_up("mmap of %s", name);
	kinds[count].name = name;
	kinds[count].fd = fd;
	kinds[count++].at = at;
	for (int k = 0; k < PAGES; k += 2)
		at[k * PAGE / 4] = (uint32_t)(count * 1000 + k);
	return at;
}

static int sized(int fd, const char *what)
{
	if (fd < 0 || ftruncate(fd, SIZE))
		give_up("%s", what);
	return fd;
}

static void check_content(const char *who)
{
	for (int kind = 0; kind < count; kind++)
		for (int k = 0; k < PAGES; k++) {
			uint32_t want = k % 2 ? 0 : (uint32_t)((kind + 1) * 1000 + k);
			uint32_t have = kinds[kind].at[k * PAGE / 4];
			expect(have == want, "%s, %s, page %d: %u became %u", who, kinds[kind].name, k, want,
			       have);
		}
}

static int child_main(void)
{
	sem_wait(&talk->to_child);
	check_content("child");
	for (int kind = 0; kind < count; kind++)
		kinds[kind].at[PAGE / 4 + 1] = 0xc0de0000 + (uint32_t)kind;
	for (int k = 0; k < 1000; k++) {
		pthread_mutex_lock(&talk->lock);
		talk->turns++;
		pthread_mutex_unlock(&talk->lock);
	}
	sem_post(&talk->to_parent);
	sem_wait(&talk->to_child);
	return *faults ? verdict() : 0;
}

int main(void)
{
	begin();
	char name[64];
	snprintf(name, sizeof name, "/torpor-conformance-%d", getpid());
	share("anonymous", -1);
	share("memfd", sized(memfd_create("conformance", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd"));
	share("file", sized(open(in_dir("shared"), O_RDWR | O_CREAT | O_CLOEXEC, 0600), "file"));
	share("/dev/shm", sized(shm_open(name, O_RDWR | O_CREAT, 0600), "shm_open"));
	snprintf(name, sizeof name, "/torpor-conformance-%d-gone", getpid());
	share("/dev/shm without a name", sized(shm_open(name, O_RDWR | O_CREAT, 0600), "shm_open"));
	shm_unlink(name);
	close(kinds[4].fd); /* like multiprocessing's semaphores: only the mapping is left */
	kinds[4].fd = -1;
	share("memfd, mapped only", sized(memfd_create("mapped only", MFD_CLOEXEC), "memfd"));
	close(kinds[5].fd);
	kinds[5].fd = -1;
	uint32_t *partly = share("anonymous, partly read-only", -1);
	mprotect(partly + 4 * PAGE / 4, 4 * PAGE, PROT_READ);
	talk = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	sem_init(&talk->to_child, 1, 0);
	sem_init(&talk->to_parent, 1, 0);
	pthread_mutexattr_t attributes;
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&talk->lock, &attributes);
	lseek(kinds[1].fd, 4321, SEEK_SET);
	pid_t child = fork();
	if (!child)
		_exit(child_main());
	sleeps_in(child, SYS_futex);
	ready_and_wait();

	check_content("parent");
	sem_post(&talk->to_child);
	for (int k = 0; k < 1000; k++) {
		pthread_mutex_lock(&talk->lock);
		talk->turns++;
		pthread_mutex_unlock(&talk->lock);
	}
	sem_wait(&talk->to_parent);
	expect(talk->turns == 2000, "counted %d turns under the shared mutex", talk->turns);
	for (int kind = 0; kind < count; kind++)
		expect(kinds[kind].at[PAGE / 4 + 1] == 0xc0de0000 + (uint32_t)kind,
		       "%s: the child's write is not seen: %x", kinds[kind].name,
		       kinds[kind].at[PAGE / 4 + 1]);
	sem_post(&talk->to_child);
	for (int kind = 0; kind < count; kind++) {
		if (kinds[kind].fd < 0)
			continue;
		uint32_t value = 0;
		expect(pread(kinds[kind].fd, &value, 4, PAGE + 4) == 4 &&
			       value == 0xc0de0000 + (uint32_t)kind,
		       "%s: its descriptor and its mapping are not the same", kinds[kind].name);
	}
	expect(lseek(kinds[1].fd, 0, SEEK_CUR) == 4321, "the memfd's position was lost");
	expect(!fcntl(kinds[1].fd, F_ADD_SEALS, F_SEAL_GROW) &&
		       fcntl(kinds[1].fd, F_GET_SEALS) == F_SEAL_GROW,
	       "the memfd cannot be sealed any more");
	snprintf(name, sizeof name, "/torpor-conformance-%d", getpid());
	struct stat by_name, by_fd;
	int again = shm_open(name, O_RDWR, 0600);
	expect(again >= 0 && !fstat(again, &by_name) && !fstat(kinds[3].fd, &by_fd) &&
		       by_name.st_ino == by_fd.st_ino,
	       "/dev/shm's file is not the one that is mapped");
	shm_unlink(name);
	int status;
	expect(waitpid(child, &status, 0) == child && !status, "the child is not content: %x", status);
	return verdict();
}
