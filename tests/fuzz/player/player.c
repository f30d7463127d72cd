/* SPDX-License-Identifier: BSD-3-Clause
 *
 *     player NAME FOLDER FOLDER...    plays the program of each folder in FOLDER/NAME, beside each other: the steps of
 *                                     FOLDER/script, "ACTOR VERB NUMBER..." a line. The log becomes FOLDER/NAME.log.
 *                                     "0 save N" makes FOLDER/NAME.readyN and waits for FOLDER/NAME.goN.
 *     player ACTOR                    what actor ACTOR becomes by execve; its shared memory is descriptor SHARED_FD.
 */
#include "player.h"

#include <linux/sockios.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

struct shared *shared;
_Thread_local int me;
_Thread_local sigjmp_buf *rescue;

void say(const char *format, ...)
{
	char text[600];
	va_list arguments;
	int size;

	va_start(arguments, format);
	size = vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	if (size > (int)sizeof(text) - 1)
		size = sizeof(text) - 1;
	uint32_t at = atomic_fetch_add(&shared->said, size);
	if (at + size < sizeof(shared->log))
		memcpy(shared->log + at, text, size);
}

const char *whose(int pid)
{
	static _Thread_local char text[4][16];
	static _Thread_local int turn;
	char *one = text[turn++ % 4];

	snprintf(one, 16, pid <= 0 ? "%d" : "other", pid);
	for (int i = 0; i < ACTORS; i++)
		if (pid > 0 && shared->actors[i].pid == pid && !shared->actors[i].thread)
			snprintf(one, 16, "#%d", i);
	return one;
}

long place_fd(int fd, long index)
{
	if (fd < 0)
		return -1;
	if (dup2(fd, fd_of(index)) < 0)
		index = -1;
	if (fd != fd_of(index))
		close(fd);
	return index < 0 ? -1 : index % FDS;
}

int impatient(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags >= 0 && !(flags & (O_NONBLOCK | O_PATH)))
		fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	return flags;
}

/* That a datagram came to nobody is not kept, like a datagram on its way: it is not told. */
void forget_unreached(int fd)
{
	int value;
	socklen_t size = sizeof(value);

	if (!getsockopt(fd, SOL_SOCKET, SO_TYPE, &value, &size) && value == SOCK_DGRAM)
		getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &size);
}

/* Whether a connection was reset. What it says of that depends on what came first, and only it can be asked, once. */
bool is_reset(int fd)
{
	struct pollfd one = {.fd = fd};
	struct stat it;

	forget_unreached(fd);
	return !fstat(fd, &it) && S_ISSOCK(it.st_mode) && poll(&one, 1, 0) == 1 && one.revents & POLLERR;
}

bool leads_to(int fd, const char *link)
{
	char path[64], text[64] = "";

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return readlink(path, text, sizeof(text) - 1) > 0 && !strcmp(text, link);
}

bool is_terminal(int fd)
{
	int error = errno;
	bool found = isatty(fd);

	errno = error;
	return found;
}

/* What was written to the master of a pseudo terminal is taken, and echoed, by the kernel's workers some time later,
 * or by the first who asks the other side. Of TCP little data waits until what came before was acknowledged (Nagle),
 * which takes up to 40 ms. */
void arrive(int fd)
{
	struct timespec moment = {.tv_nsec = 1000000};
	int number, left, error = errno;

	for (int i = 0; i < 60 && !ioctl(fd, SIOCOUTQNSD, &left) && left > 0; i++)
		nanosleep(&moment, NULL);
	if (!ioctl(fd, TIOCGPTN, &number)) {
		struct pollfd slave = {.fd = ioctl(fd, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_NONBLOCK), .events = POLLIN};

		if (slave.fd >= 0) {
			poll(&slave, 1, 0);
			close(slave.fd);
		}
	}
	errno = error;
}

void patient(int fd, int flags)
{
	int error = errno;

	if (!(flags & (O_NONBLOCK | O_PATH)))
		fcntl(fd, F_SETFL, flags);
	errno = error;
}

bool has_threads(void)
{
	for (int i = 0; i < ACTORS; i++)
		if (shared->actors[i].thread && shared->actors[i].pid == getpid())
			return true;
	return false;
}

void tell_all(void)
{
	atomic_fetch_add(&shared->news, 1);
	syscall(SYS_futex, &shared->news, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void done(void)
{
	atomic_fetch_add(&shared->turn, 1);
	tell_all();
}

static void on_fault(int number)
{
	if (rescue)
		siglongjmp(*rescue, number);
	_exit(100 + number);
}

static bool exists(const char *suffix)
{
	char path[PATH_MAX + 16];
	struct stat there;

	snprintf(path, sizeof(path), "%s%s", shared->place, suffix);
	return !stat(path, &there);
}

static void make(const char *suffix, const char *content, size_t size)
{
	char path[PATH_MAX + 16], draft[PATH_MAX + 32];
	int fd;

	snprintf(path, sizeof(path), "%s%s", shared->place, suffix);
	snprintf(draft, sizeof(draft), "%s.draft", path);
	fd = open(draft, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, content, size) != (ssize_t)size || rename(draft, path))
		_exit(99);
	close(fd);
}

static void tell(void)
{
	remove_own();
	make(".log", shared->log, atomic_load(&shared->said));
}

static void save(long round)
{
	struct timespec moment = {.tv_nsec = 2000000};
	char suffix[32];

	remove_unopened();
	snprintf(suffix, sizeof(suffix), ".ready%ld", round);
	make(suffix, "", 0);
	snprintf(suffix, sizeof(suffix), ".go%ld", round);
	while (!exists(suffix))
		nanosleep(&moment, NULL);
}

static const struct verb *find(const char *name)
{
	static const struct verb *const all[] = {memory_verbs,	file_verbs,    channel_verbs, signal_verbs,
						 process_verbs, wait_verbs,    own_verbs,     terminal_verbs,
						 ipc_verbs,	watcher_verbs, port_verbs};

	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		for (const struct verb *one = all[i]; one->name; one++)
			if (!strcmp(one->name, name))
				return one;
	fprintf(stderr, "no verb %s\n", name);
	_exit(98);
}

/* Whether the step is over when this returns. */
static bool act(const struct step *step)
{
	sigjmp_buf back;
	long result;
	int fault;

	if (!strcmp(step->verb, "save")) {
		save(step->a[0]);
		return true;
	}
	say("%u #%d %s:", atomic_load(&shared->turn), me, step->verb);
	if (!strcmp(step->verb, "wait_for")) {
		say(" %ld\n", step->a[0]);
		wait_for(step->a);
		return false;
	}
	fault = sigsetjmp(back, 1);
	if (fault) {
		rescue = NULL;
		say(" fault %d\n", fault);
		return true;
	}
	rescue = &back;
	errno = 0;
	result = find(step->verb)->act(step->a);
	rescue = NULL;
	if (result < 0)
		say(" %s\n", strerrorname_np(errno));
	else
		say(" %ld\n", result);
	return true;
}

/* The first actor sees to it that a process which ends has ended before the next step begins. */
static void see_the_end(void)
{
	struct timespec moment = {.tv_nsec = 200000};
	int pid = atomic_load(&shared->ending);
	char path[64], text[512];

	if (!pid || me)
		return;
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	for (;;) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t size = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);

		if (fd >= 0)
			close(fd);
		text[size > 0 ? size : 0] = 0;
		/* Its children get another parent when its last thread is gone, which is the 18th word from here. */
		char *word = size > 0 ? strrchr(text, ')') : NULL;
		bool ends = word && (word[2] == 'Z' || word[2] == 'X');

		for (int i = 0; word && i < 18; i++)
			word = strchr(word + 1, ' ');
		if (!word || (ends && atoi(word) <= 1))
			break;
		nanosleep(&moment, NULL);
	}
	atomic_store(&shared->ending, 0);
	done();
}

void play(int actor)
{
	me = actor;
	shared->actors[me].pid = getpid();
	shared->actors[me].tid = gettid();
	for (;;) {
		uint32_t news = atomic_load(&shared->news), turn = atomic_load(&shared->turn);

		if (turn >= (uint32_t)shared->steps) {
			if (!me)
				return;
			if (shared->actors[me].thread)
				syscall(SYS_exit, 0);
			_exit(0);
		}
		if (shared->step[turn].actor == me && !atomic_load(&shared->ending)) {
			if (act(&shared->step[turn]))
				done();
			continue;
		}
		see_the_end();
		syscall(SYS_futex, &shared->news, FUTEX_WAIT, news, NULL, NULL, 0);
	}
}

static void read_script(const char *path)
{
	FILE *script = fopen(path, "re");
	char line[256];

	if (!script)
		_exit(97);
	while (fgets(line, sizeof(line), script) && shared->steps < STEPS) {
		struct step *step = &shared->step[shared->steps];
		long *a = step->a;

		if (sscanf(line, "%d %19s %ld %ld %ld %ld %ld", &step->actor, step->verb, a, a + 1, a + 2, a + 3,
			   a + 4) >= 2)
			shared->steps++;
	}
	fclose(script);
}

static void attach(void)
{
	struct sigaction fault = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};

	shared = mmap((void *)0x200000000000, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE,
		      SHARED_FD, 0);
	if (shared == MAP_FAILED)
		_exit(96);
	sigaction(SIGSEGV, &fault, NULL);
	sigaction(SIGBUS, &fault, NULL);
	attach_waits();
	signal(SIGPIPE, SIG_IGN);
	signal(SIGIO, SIG_IGN);	 /* of a lease that is broken */
	signal(SIGHUP, SIG_IGN); /* of a group that was orphaned while it stood still */
}

/* Play the program of a folder. */
static int begin(const char *folder, const char *name)
{
	const char *last = strrchr(folder, '/');
	int memory = memfd_create(last ? last + 1 : folder, 0);
	char path[PATH_MAX];

	setsid();
	if (memory < 0 || ftruncate(memory, sizeof(struct shared)) || dup2(memory, SHARED_FD) < 0)
		return 95;
	close(memory);
	attach();
	snprintf(path, sizeof(path), "%s/script", folder);
	read_script(path);
	snprintf(shared->place, sizeof(shared->place), "%s/%s", folder, name);
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	for (int i = 0; i < shared->steps; i++)
		if (!strcmp(shared->step[i].verb, "wait_for")) {
			begin_waits();
			break;
		}
	if (chdir(shared->place))
		return 94;
	play(0);
	tell();
	return 0;
}

int main(int count, char **words)
{
	if (count == 2) {
		attach();
		done();
		play(atoi(words[1])); /* which returns for the first one only */
		tell();
		return 0;
	}
	for (int i = 2; i < count; i++) {
		int pid = fork();

		if (pid < 0)
			return 93;
		if (!pid)
			return begin(words[i], words[1]);
	}
	while (wait(NULL) > 0)
		;
	return 0;
}
