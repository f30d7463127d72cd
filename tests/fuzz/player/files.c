/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Files, directories, names, locks and descriptors.
 */
#include "player.h"

#include <dirent.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

const char *name(long index)
{
	static const char *const names[] = {"a", "b", "d/c", "d/e f", "l", "d", "g", "d/h (deleted)"};
	static _Thread_local char full[4][PATH_MAX + 16];
	static _Thread_local int turn;

	if (index / 8 % 2)
		return names[index % 8];
	snprintf(full[++turn % 4], sizeof(full[0]), "%s/%s", shared->place, names[index % 8]);
	return full[turn % 4];
}

/* descriptor, name, flags */
static long open_(const long *a)
{
	static const int flags[] = {O_RDWR | O_CREAT,
				    O_RDONLY,
				    O_WRONLY | O_CREAT | O_APPEND,
				    O_RDWR | O_CREAT | O_TRUNC,
				    O_RDONLY | O_CLOEXEC,
				    O_DIRECTORY,
				    O_PATH,
				    O_PATH | O_NOFOLLOW,
				    O_RDWR | O_NONBLOCK,
				    O_RDWR | O_CREAT | O_SYNC,
				    O_RDWR | O_CREAT | O_DSYNC,
				    O_RDWR | O_CREAT | O_EXCL,
				    O_RDONLY | O_NOATIME,
				    O_RDWR | O_CREAT | O_DIRECT,
				    O_RDONLY | O_DIRECTORY | O_CLOEXEC};
	int how = flags[(size_t)a[2] % (sizeof(flags) / sizeof(*flags))];

	/* Never wait, for a named pipe's other end or for a lease: the others would, too. */
	int fd = open(name(a[1]), how | (how & O_PATH ? 0 : O_NONBLOCK), 0640);

	if (fd >= 0 && !(how & (O_NONBLOCK | O_PATH)))
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	return place_fd(fd, a[0]);
}

static long nameless(const long *a)
{
	return place_fd(open("/tmp", O_TMPFILE | O_RDWR, 0600), a[0]);
}

static long memfd(const long *a)
{
	return place_fd(memfd_create("mem", MFD_ALLOW_SEALING | (a[1] % 2 ? MFD_CLOEXEC : 0)), a[0]);
}

static long seal(const long *a)
{
	static const int seals[] = {F_SEAL_GROW, F_SEAL_SHRINK, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE, F_SEAL_SEAL};
	long result = fcntl(fd_of(a[0]), F_ADD_SEALS, seals[a[1] % 5]);

	return result < 0 ? -1 : fcntl(fd_of(a[0]), F_GET_SEALS);
}

/* descriptor, bytes, value */
static long write_(const long *a)
{
	char text[9001];
	long size;
	int type;

	if (is_reset(fd_of(a[0])))
		return -2;

	int flags = impatient(fd_of(a[0]));
	if (flags < 0)
		return -1;
	memset(text, 'a' + (int)(a[2] % 26), sizeof(text));
	socklen_t length = sizeof(type);
	/* An empty datagram that waits through two saves is lost (docs/objects.md). */
	bool datagrams = !getsockopt(fd_of(a[0]), SOL_SOCKET, SO_TYPE, &type, &length) && type != SOCK_STREAM;
	size = write(fd_of(a[0]), text, (size_t)(a[1] % 9000 + datagrams));
	patient(fd_of(a[0]), flags);
	arrive(fd_of(a[0]));
	return size;
}

/* descriptor, bytes, value, offset */
static long pwrite_(const long *a)
{
	char text[9000];

	memset(text, 'A' + (int)(a[2] % 26), sizeof(text));
	return pwrite(fd_of(a[0]), text, a[1] % 9000, a[3] % 60000);
}

/* descriptor, bytes */
static long read_(const long *a)
{
	unsigned char text[9000];
	long size, sum = 0;

	if (is_reset(fd_of(a[0])))
		return -2;

	int flags = impatient(fd_of(a[0]));
	if (flags < 0)
		return -1;
	size = read(fd_of(a[0]), text, a[1] % 9000);
	/* What was written to the slave comes to the master by the kernel's workers, and at once to who finds nothing. */
	int number;
	long more = size > 0 && !ioctl(fd_of(a[0]), TIOCGPTN, &number);
	while (more > 0 && (more = read(fd_of(a[0]), text + size, a[1] % 9000 - size)) > 0)
		size += more;
	patient(fd_of(a[0]), flags);
	if (leads_to(fd_of(a[0]), "anon_inode:[signalfd]"))
		return size; /* PIDs are others in every run */
	for (long i = 0; i < size; i++)
		sum = sum * 31 + text[i];
	say(" sum %lx", sum & 0xffffff);
	return size;
}

static long seek(const long *a)
{
	static const int whence[] = {SEEK_SET, SEEK_CUR, SEEK_END};

	return lseek(fd_of(a[0]), a[1] % 20000, whence[a[2] % 3]);
}

static long cut(const long *a)
{
	return ftruncate(fd_of(a[0]), a[1] % 300000);
}

static long unlink_(const long *a)
{
	return unlink(name(a[0]));
}

static long rename_(const long *a)
{
	return rename(name(a[0]), name(a[1]));
}

static long link_(const long *a)
{
	return link(name(a[0]), name(a[1]));
}

static long symlink_(const long *a)
{
	return symlink(name(a[0]), name(a[1]));
}

/* make or remove, which of two */
static long directory(const long *a)
{
	const char *path = name(a[1] % 3 ? 5 : 6);

	return a[0] % 3 ? mkdir(path, 0750) : rmdir(path);
}

/* two names: the file moves from one to the other, as two files for a moment */
static long relink(const long *a)
{
	return link(name(a[0]), name(a[1])) || unlink(name(a[0]));
}

/* where: the folder, its subfolder, a descriptor */
static long go(const long *a)
{
	return a[0] % 3 == 0 ? chdir(shared->place) : a[0] % 3 == 1 ? chdir(name(5)) : fchdir(fd_of(a[1]));
}

static long where(const long *a)
{
	char path[PATH_MAX];
	long size = syscall(SYS_getcwd, path, sizeof(path));
	char *inner;

	(void)a;
	if (size < 0)
		return -1;
	inner = strstr(path, shared->place); /* behind "(unreachable)" where its root is another one */
	say(" %s", inner ? inner + strlen(shared->place) : path);
	return 0;
}

static void tell(const struct stat *it)
{
	say(" mode %o links %ld size %ld uid %d", it->st_mode, (long)(S_ISDIR(it->st_mode) ? 0 : it->st_nlink),
	    (long)(S_ISREG(it->st_mode) ? it->st_size : 0), it->st_uid == getuid());
}

static long stat_(const long *a)
{
	struct stat it;

	if (lstat(name(a[0]), &it))
		return -1;
	tell(&it);
	return 0;
}

static long fstat_(const long *a)
{
	struct stat it, named;

	if (fstat(fd_of(a[0]), &it))
		return -1;
	tell(&it);
	/* A file that never had a name comes back as one that has lost it (docs/objects.md). */
	int shown = fcntl(fd_of(a[0]), F_GETFL);
	say(" flags %x fdflags %d at %ld", (shown & O_TMPFILE) == O_TMPFILE ? shown & ~O_TMPFILE : shown,
	    fcntl(fd_of(a[0]), F_GETFD), (long)(S_ISREG(it.st_mode) ? lseek(fd_of(a[0]), 0, SEEK_CUR) : 0));
	for (long i = 0; i < 8; i++)
		if (!stat(name(i), &named) && named.st_ino == it.st_ino && named.st_dev == it.st_dev)
			say(" is %ld", i);
	return 0;
}

static long dup_(const long *a)
{
	return dup2(fd_of(a[0]), fd_of(a[1])) < 0 ? -1 : 0;
}

static long close_(const long *a)
{
	return close(fd_of(a[0]));
}

/* descriptor, close-on-exec, flags */
static long flags(const long *a)
{
	if (fcntl(fd_of(a[0]), F_SETFD, a[1] % 2 ? FD_CLOEXEC : 0))
		return -1;
	return fcntl(fd_of(a[0]), F_SETFL, (a[2] & 1 ? O_NONBLOCK : 0) | (a[2] & 2 ? O_APPEND : 0));
}

/* What other programs lock, too: devices, and the one inode of all eventfds, timerfds, epolls and so on. */
static bool is_everybodys(int fd)
{
	struct stat it;

	return !fstat(fd, &it) && (S_ISCHR(it.st_mode) || !(it.st_mode & S_IFMT));
}

static long flock_(const long *a)
{
	static const int how[] = {LOCK_SH, LOCK_EX, LOCK_UN};

	if (is_everybodys(fd_of(a[0])))
		return -2;
	return flock(fd_of(a[0]), how[a[1] % 3] | LOCK_NB);
}

/* descriptor, kind, start, length, of the description */
static long range(const long *a)
{
	static const short kinds[] = {F_RDLCK, F_WRLCK, F_UNLCK};
	struct flock lock = {.l_type = kinds[a[1] % 3], .l_start = a[2] % 100, .l_len = a[3] % 50};

	if (is_everybodys(fd_of(a[0])))
		return -2;
	return fcntl(fd_of(a[0]), a[4] % 2 ? F_OFD_SETLK : F_SETLK, &lock);
}

/* descriptor, start, length: who is in the way */
static long holder(const long *a)
{
	struct flock lock = {.l_type = F_WRLCK, .l_start = a[1] % 100, .l_len = a[2] % 50};

	if (is_everybodys(fd_of(a[0])) || fcntl(fd_of(a[0]), F_GETLK, &lock))
		return -1;
	if (lock.l_type != F_UNLCK)
		say(" %d %ld+%ld by %s", lock.l_type, (long)lock.l_start, (long)lock.l_len, whose(lock.l_pid));
	return 0;
}

static long hole(const long *a)
{
	return fallocate(fd_of(a[0]), a[3] % 2 ? 0 : FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, a[1] % 30 * 4096,
			 (a[2] % 8 + 1) * 4096);
}

static long chmod_(const long *a)
{
	struct stat it;

	if (fstat(fd_of(a[0]), &it) || !(S_ISREG(it.st_mode) || S_ISDIR(it.st_mode)))
		return -1; /* the mode of a pipe or a socket, which nobody can open again, is not kept */
	return fchmod(fd_of(a[0]), 0400 | (a[1] % 64) | 0200);
}

static long fifo(const long *a)
{
	return mkfifo(name(a[0]), 0600);
}

static long lease(const long *a)
{
	static const int kinds[] = {F_RDLCK, F_UNLCK, F_WRLCK};

	return fcntl(fd_of(a[0]), F_SETLEASE, kinds[a[1] % 3]);
}

/* two names: each gets the other's file, or the second must not be there */
static long exchange(const long *a)
{
	return renameat2(AT_FDCWD, name(a[0]), AT_FDCWD, name(a[1]), a[2] % 2 ? RENAME_EXCHANGE : RENAME_NOREPLACE);
}

/* descriptor, name: a file that has none gets one */
static long name_it(const long *a)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd_of(a[0]));
	return linkat(AT_FDCWD, path, AT_FDCWD, name(a[1]), AT_SYMLINK_FOLLOW);
}

/* descriptor, seconds: times of a file that nobody reads or writes by chance */
static long times(const long *a)
{
	struct timespec both[] = {{.tv_sec = a[1] % 100000, .tv_nsec = a[2] % 1000}, {.tv_sec = a[2] % 100000}};

	return futimens(fd_of(a[0]), both);
}

/* which device */
static long device(const long *a)
{
	static const char *const paths[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/dev/random"};
	int how = a[1] % 5 > 2 ? O_WRONLY : a[2] % 2 ? O_RDWR : O_RDONLY;

	return place_fd(open(paths[a[1] % 5], how), a[0]);
}

/* descriptor, advice: a hint of how it is read */
static long hint(const long *a)
{
	return posix_fadvise(fd_of(a[0]), 0, 0, a[1] % 2 ? POSIX_FADV_RANDOM : POSIX_FADV_SEQUENTIAL) ? -1 : 0;
}

/* descriptor, signal, whose: who is told that it is ready, by what; and that it is told at all */
static long owner(const long *a)
{
	static const int signals[] = {0, SIGURG, SIGWINCH};
	int fd = fd_of(a[0]);

	if (fcntl(fd, F_SETOWN, a[2] % 3 ? getpid() : 0) || fcntl(fd, F_SETSIG, signals[a[1] % 3]))
		return -1;
	say(" owner %s signal %d", whose(fcntl(fd, F_GETOWN)), fcntl(fd, F_GETSIG));
	return 0;
}

/* from pipe or file to pipe, bytes */
static long splice_(const long *a)
{
	if (is_terminal(fd_of(a[0])) || is_terminal(fd_of(a[1])))
		return -2;
	if (a[3] % 2)
		return tee(fd_of(a[0]), fd_of(a[1]), (size_t)(a[2] % 5000 + 1), SPLICE_F_NONBLOCK);
	long size = splice(fd_of(a[0]), NULL, fd_of(a[1]), NULL, (size_t)(a[2] % 5000 + 1), SPLICE_F_NONBLOCK);
	arrive(fd_of(a[1]));
	return size;
}

static long list(const long *a)
{
	DIR *all = opendir(a[0] % 2 ? "." : shared->place);
	unsigned long sum = 0, count = 0;

	if (!all)
		return -1;
	for (struct dirent *one; (one = readdir(all)); count++)
		for (const char *at = one->d_name; *at; at++)
			sum += (unsigned char)*at * (unsigned long)(at - one->d_name + 1);
	closedir(all);
	say(" sum %lu", sum);
	return (long)count;
}

const struct verb file_verbs[] = {{"open", open_},
				  {"nameless", nameless},
				  {"memfd", memfd},
				  {"seal", seal},
				  {"write", write_},
				  {"pwrite", pwrite_},
				  {"read", read_},
				  {"seek", seek},
				  {"cut", cut},
				  {"unlink", unlink_},
				  {"rename", rename_},
				  {"link", link_},
				  {"relink", relink},
				  {"symlink", symlink_},
				  {"directory", directory},
				  {"go", go},
				  {"where", where},
				  {"stat", stat_},
				  {"fstat", fstat_},
				  {"dup", dup_},
				  {"close", close_},
				  {"flags", flags},
				  {"flock", flock_},
				  {"range", range},
				  {"holder", holder},
				  {"hole", hole},
				  {"chmod", chmod_},
				  {"fifo", fifo},
				  {"lease", lease},
				  {"list", list},
				  {"exchange", exchange},
				  {"name_it", name_it},
				  {"times", times},
				  {"device", device},
				  {"hint", hint},
				  {"owner", owner},
				  {"splice", splice_},
				  {0}};
