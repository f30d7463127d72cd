/* System V shared memory: with a key and marked for removal, attached twice and for reading only, by a child as well.
 * Ids and keys are what they were, and attaching by them still works. And parts of one that lie elsewhere, and more than
 * there is of it. */
#include "ready.h"

#include <sys/ipc.h>
#include <sys/shm.h>

enum { SIZE = 5 * PAGE + 100 };

static char *attach(int id, int flags)
{
	char *at = shmat(id, NULL, flags);
	if (at == (char *)-1)
		give_up("shmat");
	return at;
}

int main(void)
{
	begin();
	key_t key = (key_t)(0x54000000 + getpid());
	int keyed = shmget(key, SIZE, IPC_CREAT | IPC_EXCL | 0640);
	int doomed = shmget(IPC_PRIVATE, 3 * PAGE, 0600);
	if (keyed < 0 || doomed < 0)
		unavailable("shmget");
	char *first = attach(keyed, 0), *second = attach(keyed, SHM_RDONLY), *gone = attach(doomed, 0);
	shmctl(doomed, IPC_RMID, NULL);
	strcpy(first, "first page");
	strcpy(first + 5 * PAGE, "last page");
	gone[2 * PAGE] = 7;
	mprotect(first + PAGE, PAGE, PROT_NONE);
	char *moved = mmap(NULL, 16 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	/* Two pages from its middle, beside each other the wrong way round; all of it and more, up to something else. */
	if (mremap(first + 3 * PAGE, 0, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, moved) == MAP_FAILED ||
	    mremap(first + 2 * PAGE, 0, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, moved + PAGE) == MAP_FAILED ||
	    mremap(first, 0, 9 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, moved + 2 * PAGE) == MAP_FAILED)
		give_up("mremap");
	pid_t child = fork();
	if (!child) {
		while (strcmp(first + 2 * PAGE, "go"))
			usleep(1000);
		strcpy(first + 3 * PAGE, "seen");
		_exit(0);
	}
	ready_and_wait();

	struct shmid_ds status;
	expect(!shmctl(keyed, IPC_STAT, &status), "the segment's id is another: %s", strerror(errno));
	expect(status.shm_segsz == SIZE && (status.shm_perm.mode & 0777) == 0640, "size %zu, mode %o", status.shm_segsz,
	       status.shm_perm.mode);
	expect(status.shm_perm.uid == getuid() && status.shm_perm.gid == getgid(), "another's segment");
	expect(shmget(key, SIZE, 0) == keyed, "the key leads to another segment");
	expect(!strcmp(first, "first page") && !strcmp(second + 5 * PAGE, "last page"), "content changed");
	expect(!mprotect(first + PAGE, PAGE, PROT_READ) && !first[PAGE], "a page that was protected");
	expect(mprotect(second, PAGE, PROT_READ | PROT_WRITE) && errno == EACCES,
	       "what was attached for reading can be written");
	strcpy(first + 2 * PAGE, "go");
	int ended;
	expect(waitpid(child, &ended, 0) == child && !ended && !strcmp(second + 3 * PAGE, "seen"),
	       "it is not shared with the child");
	expect(!strcmp(moved, "seen") && !strcmp(moved + PAGE, "go") && !strcmp(moved + 2 * PAGE, "first page"),
	       "parts that lie elsewhere: %.4s, %.4s, %.10s", moved, moved + PAGE, moved + 2 * PAGE);
	expect(mprotect(moved + 10 * PAGE, PAGE, PROT_READ) == 0 && mprotect(moved + 11 * PAGE, PAGE, PROT_NONE) == 0,
	       "more than there is of it");
	char *third = attach(keyed, 0);
	expect(!strcmp(third, "first page"), "attached again it has another content");
	expect(gone[2 * PAGE] == 7 && !shmctl(doomed, IPC_STAT, &status) && status.shm_perm.mode & SHM_DEST,
	       "the segment that is to be removed");
	expect(!shmdt(gone) && shmctl(doomed, IPC_STAT, &status) && errno == EINVAL, "it was not removed");
	expect(!shmctl(keyed, IPC_RMID, NULL), "removing: %s", strerror(errno));
	return verdict();
}
