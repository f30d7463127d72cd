/* A program that lies in a memfd can be executed, though it is open for writing; mode, owner, size and times of files in
 * memory and of a file without a name stay. */
#include "ready.h"

#include <sys/sendfile.h>
#include <sys/stat.h>

enum { FILES = 3 };

static void same(const char *what, int fd, const struct stat *before)
{
	struct stat now;
	if (fstat(fd, &now)) {
		expect(false, "%s: %m", what);
		return;
	}
	expect(now.st_mode == before->st_mode, "%s: its mode became %o", what, now.st_mode);
	expect(now.st_uid == before->st_uid && now.st_gid == before->st_gid, "%s: it belongs to %d", what, now.st_uid);
	expect(now.st_size == before->st_size, "%s: it has %ld bytes", what, (long)now.st_size);
	expect(now.st_mtim.tv_sec == before->st_mtim.tv_sec && now.st_mtim.tv_nsec == before->st_mtim.tv_nsec,
	       "%s: it was changed at another time", what);
	expect(now.st_nlink == before->st_nlink, "%s: it has %ld names", what, (long)now.st_nlink);
}

int main(void)
{
	begin();
	const char *names[FILES] = {"a program in memory", "a file in memory", "a file without a name"};
	struct stat before[FILES];
	int files[FILES], program = open("/bin/true", O_RDONLY | O_CLOEXEC);
	char path[PATH_MAX];
	snprintf(path, sizeof path, "%s", in_dir("file"));
	files[0] = memfd_create("program", MFD_CLOEXEC);
	files[1] = memfd_create("file", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	files[2] = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0640);
	if (program < 0 || files[0] < 0 || files[1] < 0 || files[2] < 0 || unlink(path))
		give_up("files");
	fstat(program, &before[0]);
	if (sendfile(files[0], program, NULL, (size_t)before[0].st_size) != before[0].st_size)
		give_up("sendfile");
	close(program);
	if (write(files[1], "in memory", 9) != 9 || write(files[2], "on disk", 7) != 7)
		give_up("write");
	fchmod(files[1], 0604);
	fcntl(files[1], F_ADD_SEALS, F_SEAL_GROW);
	struct timespec times[2] = {{1000000000, 5}, {1100000000, 123456000}};
	for (int k = 0; k < FILES; k++)
		if (futimens(files[k], times) || fstat(files[k], &before[k]))
			give_up("stat");
	lseek(files[1], 3, SEEK_SET);
	ready_and_wait();

	for (int k = 0; k < FILES; k++)
		same(names[k], files[k], &before[k]);
	expect(lseek(files[1], 0, SEEK_CUR) == 3, "the position became %ld", (long)lseek(files[1], 0, SEEK_CUR));
	expect(fcntl(files[1], F_GET_SEALS) == F_SEAL_GROW, "the seals became %#x", fcntl(files[1], F_GET_SEALS));
	pid_t child = fork();
	if (!child) {
		fexecve(files[0], (char *const[]){"true", NULL}, (char *const[]){NULL});
		_exit(errno);
	}
	int status = -1;
	waitpid(child, &status, 0);
	expect(!status, "executing a program in memory: %s", strerror(WEXITSTATUS(status)));
	return verdict();
}
